"""Reading stores from servers on loopback: right bytes, few bytes, and no wrong ones ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from remote_helpers import FAST, assert_same, connect, publish
from store_helpers import fill_store, make_spec
from web_servers import FileServer, free_port, nginx, nginx_program

from storage.errors import CorruptStore, StoreError, StoreMismatch, UsageError
from storage.info import store_info
from storage.manifest import CHUNKS, read_manifest
from storage.remote import open_any
from storage.remote.cache import parse_size
from storage.remote.digests import digests_to_bytes, store_digests
from storage.remote.location import RemoteError, hub_location, normal_url
from storage.remote.transport import Transport
from storage.sealing import seal
from storage.shards import index_bytes, parse_index
from storage.store import MANIFEST, LabelStore
from storage.verify import verify
from storage.views import PaddedCrop

needs_nginx = pytest.mark.skipif(nginx_program() is None, reason="nginx is not installed")


@pytest.fixture
def site(tmp_path):
    """(server, local store) of a store at <url>/labels/store.zarr."""
    local = publish(tmp_path / "www/labels/store.zarr")
    with FileServer(tmp_path / "www") as server:
        yield server, local


def url_of(server: FileServer) -> str:
    return f"{server.url}/labels/store.zarr"


def chunk_bytes(store: LabelStore, names: list[str], planes: list[int]) -> int:
    """Bytes of these planes' chunks in files that hold four, by the files' own indices."""
    total = 0
    for name in names:
        data = (store.path / name).read_bytes()
        index = parse_index(data[-index_bytes(4) :], 4, len(data))
        total += sum(int(index[plane][1]) for plane in planes)
    return total


def test_a_store_behind_a_url_reads_like_the_folder_it_was_copied_from(site, tmp_path):
    server, local = site
    remote = connect(url_of(server) + "/", tmp_path / "cache")
    for first, count in ((0, 2), (6, 2), (1, 3), (0, 8)):
        assert_same(remote, local, first, count)
    found, wanted = remote.read_images(), local.read_images()
    np.testing.assert_array_equal(found.digest, wanted.digest)
    assert found.key == wanted.key
    assert remote.is_sealed and remote.missing_blocks() == []
    assert remote.dataset_fingerprint == wanted_fingerprint(local)
    assert store_info(remote)["root"] == read_manifest(local.path).root


def wanted_fingerprint(local: LabelStore) -> str | None:
    return LabelStore.open(local.path).dataset_fingerprint


def test_a_plane_costs_its_own_chunks_and_the_indices(site, tmp_path):
    server, local = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_images()
    before = server.bytes_sent
    remote.read_plane(2, 2, "toy")
    sent = server.bytes_sent - before
    names = [n for n in remote.manifest.objects if "/c/" in n and not n.startswith("images/")]
    assert sent == chunk_bytes(local, names, [1]) + len(names) * index_bytes(4)
    before = server.bytes_sent
    remote.read_plane(2, 2, "toy")
    assert server.bytes_sent == before  # from the cache
    remote.read_plane(4, 2, "toy")
    assert server.bytes_sent - before == chunk_bytes(local, names, [2])


def test_an_unread_teacher_is_not_fetched(site, tmp_path):
    server, _ = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_plane(0, 2)
    assert not any("labels/toy/" in path and "/c/" in path for path, _ in server.requests)


def test_another_process_uses_the_cache(site, tmp_path):
    server, local = site
    connect(url_of(server), tmp_path / "cache").read_plane(0, 4, "toy")
    before = [path for path, _ in server.requests]
    again = connect(url_of(server), tmp_path / "cache")
    assert_same(again, local, 0, 4)
    new = [path for path, _ in server.requests][len(before) :]
    assert {Path(path).name for path in new} == {MANIFEST, CHUNKS}


def test_bytes_that_rotted_in_the_cache_are_fetched_again(site, tmp_path):
    server, local = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_plane(0, 2, "toy")
    for name in remote.manifest.objects:
        path = remote.path / name
        if "/c/" in name and path.exists():
            data = bytearray(path.read_bytes())
            data[len(data) // 5] ^= 1
            data[0] ^= 1
            path.write_bytes(data)
    assert_same(connect(url_of(server), tmp_path / "cache"), local, 0, 2)


def test_without_chunk_digests_whole_files_are_fetched_and_compared(site, tmp_path):
    server, local = site
    (local.path / CHUNKS).unlink()
    remote = connect(url_of(server), tmp_path / "cache")
    assert_same(remote, local, 2, 2)
    assert all(asked is None or asked.startswith("bytes=0-") for _, asked in server.requests)


def test_whole_files_on_request(site, tmp_path):
    server, local = site
    remote = connect(url_of(server), tmp_path / "cache", whole=True)
    assert_same(remote, local, 2, 2)
    flip = "views/flip/c/0/0"
    assert (remote.path / flip).read_bytes() == (local.path / flip).read_bytes()


def test_fetch_all_gives_a_folder_that_verifies(site, tmp_path):
    server, _ = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_plane(0, 2, "toy")
    assert verify(remote.fetch_all(), full=True).problems == []


def test_the_next_plane_is_fetched_in_the_background(site, tmp_path):
    server, local = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_plane(0, 2, "toy")
    remote.prefetch(2, 2, "toy")
    remote._ahead.join()
    before = server.bytes_sent
    assert_same(remote, local, 2, 2)
    assert server.bytes_sent == before


def test_a_prefetch_that_fails_is_the_readers_problem(site, tmp_path):
    server, _ = site
    remote = connect(url_of(server), tmp_path / "cache")
    server.spoil = lambda path, start, body: (body, "status:500")
    remote.prefetch(0, 2, "toy")
    remote._ahead.join()
    with pytest.raises(RemoteError, match="can't be fetched"):
        remote.read_plane(0, 2, "toy")


def test_dropped_connections_are_gone_on_with(site, tmp_path):
    server, local = site
    drops = iter(range(10**6))

    def spoil(path, start, body):
        return body, "drop" if "/c/" in path and next(drops) % 2 == 0 and len(body) > 8 else ""

    server.spoil = spoil
    assert_same(connect(url_of(server), tmp_path / "cache"), local, 0, 8)
    assert any(asked and not asked.startswith("bytes=0-") for _, asked in server.requests)


def test_errors_of_the_moment_are_survived(site, tmp_path):
    server, local = site
    seen: set[str] = set()

    def spoil(path, start, body):
        first = path not in seen
        seen.add(path)
        return body, "status:503" if first else ""

    server.spoil = spoil
    assert_same(connect(url_of(server), tmp_path / "cache"), local, 0, 2)


def test_a_server_that_ignores_ranges_costs_whole_files(site, tmp_path):
    server, local = site
    server.spoil = lambda path, start, body: (body, "ignore-range")
    assert_same(connect(url_of(server), tmp_path / "cache"), local, 2, 2)


def test_a_server_that_always_sends_short_ranges_is_named(site, tmp_path):
    server, _ = site
    server.spoil = lambda path, start, body: (body, "short" if "/c/" in path else "")
    remote = connect(url_of(server), tmp_path / "cache")
    with pytest.raises(RemoteError, match="can't be fetched"):
        remote.read_plane(0, 2, "toy")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("part", ["images/digest", "views/box", "views/flip", "labels/toy/index"])
def test_wrong_bytes_are_never_returned(site, tmp_path, part, whole):
    server, local = site

    def spoil(path, start, body):
        if f"{part}/c/" in path and body:
            body = bytes([body[0] ^ 4]) + body[1:]
        return body, ""

    server.spoil = spoil
    remote = connect(url_of(server), tmp_path / "cache", whole=whole)
    with pytest.raises(CorruptStore, match=f"{part}.*other bytes"):
        remote.read_images()
        remote.read_plane(0, 2, "toy")
    server.spoil = lambda path, start, body: (body, "")
    assert_same(remote, local, 0, 2)


def test_damage_on_the_way_gets_a_second_chance(site, tmp_path):
    server, local = site
    seen: set[tuple[str, int]] = set()

    def spoil(path, start, body):
        if "/c/" in path and (path, start) not in seen:
            seen.add((path, start))
            body = body[:-1] + bytes([body[-1] ^ 1])
        return body, ""

    server.spoil = spoil
    assert_same(connect(url_of(server), tmp_path / "cache"), local, 0, 2)


@pytest.mark.parametrize("spoiled", [MANIFEST, CHUNKS])
def test_every_flipped_bit_of_the_manifest_is_found(site, tmp_path, spoiled):
    server, local = site
    size = (local.path / spoiled).stat().st_size
    for at in range(0, size, max(1, size // 12)):

        def spoil(path, start, body, at=at):
            if path.endswith(spoiled):
                body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            return body, ""

        server.spoil = spoil
        with pytest.raises(CorruptStore, match=spoiled):
            connect(url_of(server), tmp_path / "cache")


def test_a_store_replaced_while_it_is_read_is_an_error_not_a_mixture(site, tmp_path):
    server, local = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_plane(0, 2, "toy")
    shutil.rmtree(local.path)
    publish(local.path, seed=6)
    with pytest.raises(StoreError, match=r"replaced|not there"):
        remote.read_plane(2, 2, "toy")
    assert_same(connect(url_of(server), tmp_path / "cache"), LabelStore.open(local.path), 2, 2)


def test_a_file_of_another_store_with_equal_sizes_is_found(site, tmp_path):
    server, local = site
    other = publish(tmp_path / "other", seed=6)
    name = "views/flip/c/1/0"
    data = (other.path / name).read_bytes()
    assert len(data) == (local.path / name).stat().st_size, "else this tests nothing"
    remote = connect(url_of(server), tmp_path / "cache")
    (local.path / name).write_bytes(data)
    with pytest.raises(CorruptStore, match="other bytes"):
        remote.read_plane(0, 2, "toy")


def test_a_lost_file_is_named(site, tmp_path):
    server, local = site
    (local.path / "views/box/c/1/0/0").unlink()
    remote = connect(url_of(server), tmp_path / "cache")
    with pytest.raises(RemoteError, match=r"views/box/c/1/0/0 is not there"):
        remote.read_plane(0, 2, "toy")


def test_digests_of_another_store_are_not_used(site, tmp_path):
    server, local = site
    other = publish(tmp_path / "other", seed=6)
    shutil.copy(other.path / CHUNKS, local.path / CHUNKS)
    assert_same(connect(url_of(server), tmp_path / "cache"), local, 0, 2)


def test_an_unsealed_store_and_a_wrong_address_are_named(tmp_path):
    fill_store(tmp_path / "www/open.zarr")
    with FileServer(tmp_path / "www") as server:
        with pytest.raises(RemoteError, match="not sealed"):
            connect(f"{server.url}/open.zarr", tmp_path / "cache")
        with pytest.raises(RemoteError, match="not a label store"):
            connect(f"{server.url}/none.zarr", tmp_path / "cache")
    with pytest.raises(RemoteError, match="attempts"):
        connect(f"http://127.0.0.1:{free_port()}/x", tmp_path / "cache")


def test_refused_access_is_named_at_once(site, tmp_path):
    server, _ = site
    server.spoil = lambda path, start, body: (body, "status:403")
    with pytest.raises(RemoteError, match="refuses access"):
        connect(url_of(server), tmp_path / "cache")
    assert len(server.requests) == 1


def test_the_root_can_be_pinned(site, tmp_path):
    server, local = site
    root = read_manifest(local.path).root
    for location in (url_of(server), str(local.path)):
        options = {"cache": tmp_path / "cache"}
        assert open_any(location, root=root.upper(), **options).is_sealed
        with pytest.raises(StoreMismatch, match="root"):
            open_any(location, root="0" * 64, **options)


def test_a_remote_store_is_not_written(site, tmp_path):
    server, _ = site
    remote = connect(url_of(server), tmp_path / "cache")
    with pytest.raises(StoreError, match="can't be written"):
        remote.write_block(0, None, "cpu")
    remote.write_local(tmp_path)
    assert remote.local_data_folder() is None


def test_the_cache_keeps_to_its_limit_and_drops_the_oldest_first(tmp_path):
    local = publish(tmp_path / "www/s", num_images=64, num_views=64, block_images=32,
                    plane_views=2, segment_views=8, sampler=PaddedCrop())  # fmt: skip
    with FileServer(tmp_path / "www") as server:
        remote = connect(f"{server.url}/s", tmp_path / "cache", limit=200_000)
        for first in range(0, 64, 8):
            assert_same(remote, local, first, 8)
        kept = [p for p in remote.path.rglob("c/*/*") if p.is_file()]
        used = sum(p.stat().st_blocks * 512 for p in kept)
        assert used <= 200_000
        assert (remote.path / "labels/toy/tail/c/1/7").exists()
        assert not (remote.path / "views/box/c/0/0/0").exists()
        assert_same(remote, local, 0, 8)


def test_manifest_keys_cannot_leave_the_cache(site, tmp_path):
    server, local = site
    manifest = read_manifest(local.path)
    for name in ("../evil", "/evil", "a/../../evil", "labels/evil"):
        entry = manifest.objects["zarr.json"]
        objects = {**manifest.objects, name: entry}
        lying = type(manifest)(objects, manifest.provenance).to_bytes()
        (local.path / MANIFEST).write_bytes(lying)
        with pytest.raises(CorruptStore, match="evil"):
            connect(url_of(server), tmp_path / "cache")
    assert not list(tmp_path.rglob("evil"))


def test_locations():
    assert normal_url("https://host/a b/store.zarr/") == "https://host/a b/store.zarr"
    for bad in ("ftp://host/x", "https://me:secret@host/x", "https://host/x?token=1", "s3://",
                "https://host/a/../b", "hf://models/org/name", "hf://datasets/org"):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            normal_url(bad)
        assert "secret" not in str(caught.value)
    place = hub_location("hf://datasets/lab/labels@v1.0/r152.zarr")
    assert (place.repo, place.revision, place.folder) == ("lab/labels", "v1.0", "r152.zarr")
    assert hub_location("hf://datasets/lab/labels").revision == "main"


def test_cache_sizes():
    assert parse_size("1.5 GB") == 1_500_000_000 and parse_size("200mb") == 200_000_000
    assert parse_size("4096") == 4096
    for bad in ("", "0", "-3GB", "12 parsecs", "nan"):
        with pytest.raises(UsageError):
            parse_size(bad)


@needs_nginx
def test_nginx_serves_a_plane_for_the_bytes_of_a_plane(tmp_path):
    local = publish(tmp_path / "www/store.zarr", num_images=1024, num_views=32, block_images=1024,
                    plane_views=4, segment_views=32, sampler=PaddedCrop())  # fmt: skip
    with nginx(tmp_path / "www", tmp_path) as (url, log):
        remote = connect(f"{url}/store.zarr", tmp_path / "cache")
        remote.read_images()
        seen = len(log.read_text().splitlines())
        for first in (4, 16):
            assert_same(remote, local, first, 4)
        lines = [line.rsplit(" ", 2) for line in log.read_text().splitlines()[seen:]]
    assert {status for _, status, _ in lines} == {"206"}
    fetched = sum(int(size) for _, _, size in lines)
    names = [n for n in remote.manifest.objects if "/c/" in n and not n.startswith("images/")]
    needed = 0
    for name in names:
        data = (local.path / name).read_bytes()
        index = parse_index(data[-index_bytes(8) :], 8, len(data))
        needed += int(index[1][1] + index[4][1])
    assert fetched / needed <= 1.05, (fetched, needed)


def test_training_bytes_are_counted(site, tmp_path):
    server, _ = site
    remote = connect(url_of(server), tmp_path / "cache")
    remote.read_plane(0, 2, "toy")
    assert remote.transport.bytes_fetched == server.bytes_sent
    assert remote.transport.requests == len(server.requests)


def test_local_paths_open_as_ever(tmp_path):
    local = fill_store(tmp_path / "s", make_spec())
    seal(local)
    assert type(open_any(tmp_path / "s")) is LabelStore
    assert digests_to_bytes("ab", store_digests(local)) == digests_to_bytes(
        "ab", store_digests(LabelStore.open(tmp_path / "s"))
    )
    assert verify(tmp_path / "s").problems == []


def test_cache_follows_the_environment(site, tmp_path, monkeypatch):
    server, _ = site
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "elsewhere"))
    remote = open_any(url_of(server), cache_size="1GB")
    assert remote.path.is_relative_to(tmp_path / "elsewhere")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["stores"]
    assert Transport(url_of(server), FAST).get("absent", 10) is None
