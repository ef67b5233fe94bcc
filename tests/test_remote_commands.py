"""Every command that reads a store takes an address in place of a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from remote_helpers import connect, publish
from store_helpers import make_spec
from web_servers import FileServer

from storage.adding import begin_addition
from storage.cli import cli
from storage.errors import CorruptStore, StoreError, UsageError
from storage.extend import continue_store
from storage.manifest import CHUNKS, MANIFEST, read_manifest
from storage.match import match
from storage.remote import open_any
from storage.remote.verifying import verify_any
from storage.store import LabelStore
from storage.verify import verify


@pytest.fixture
def site(tmp_path, monkeypatch):
    """(server, address, local store), with the cache of commands in a folder of its own."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    local = publish(tmp_path / "www/labels/store.zarr", segment_views=4)
    with FileServer(tmp_path / "www") as server:
        yield server, f"{server.url}/labels/store.zarr", local


def run(*words: object) -> tuple[int, dict]:
    """Exit code and JSON of a `labelstore` command."""
    result = CliRunner().invoke(cli, [*map(str, words), "--json"], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, json.loads(result.stdout)


def bytes_of(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and not p.relative_to(root).as_posix().startswith(("receipts/", "local"))
    }


@pytest.mark.parametrize("depth", [(), ("--hashes",), ("--full",)])
def test_verify_of_an_address_says_what_it_says_of_the_folder(site, depth):
    _, url, local = site
    code, found = run("verify", url, *depth)
    expected_code, expected = run("verify", local.path, *depth)
    assert code == expected_code == 0
    assert found == {**expected, "path": url}


def test_a_fast_verify_of_an_address_fetches_no_labels(site):
    server, url, _ = site
    before = server.bytes_sent
    run("verify", url)
    metadata = sum(len(d) for n, d in bytes_of(server.folder / "labels/store.zarr").items()
                   if n.endswith(".json"))  # fmt: skip
    assert server.bytes_sent - before <= metadata


@pytest.mark.parametrize("depth", ["fast", "hashes", "full"])
def test_verify_names_every_bad_file_of_an_address(site, depth):
    _, url, local = site
    open_any(url).fetch_all()  # sound copies in the cache say nothing about the server
    lost, longer, flipped = "views/flip/c/0/0", "images/target/c/0", "labels/toy/tail/c/1/1"
    (local.path / lost).unlink()
    path = local.path / longer
    path.write_bytes(path.read_bytes() + b"x")
    path = local.path / flipped
    data = bytearray(path.read_bytes())
    data[5] ^= 8
    path.write_bytes(data)
    report = verify_any(url, full=depth == "full", hashes=depth == "hashes")
    kinds = {problem.path: problem.kind for problem in report.problems}
    expected = {lost: "missing", longer: "size"}
    assert kinds == (expected if depth == "fast" else {**expected, flipped: "hash"})
    assert report.exit_code == 1


def test_a_full_verify_of_an_address_leaves_no_scratch_behind(site, tmp_path):
    run("verify", site[1], "--full")
    assert not list((tmp_path / "cache").rglob("verify-*"))


@pytest.mark.parametrize(
    "words", [("--views", "4:8"), ("--top-k", "2"), ("--views", "0:5", "--top-k", "1")]
)
def test_a_subset_of_an_address_is_that_of_the_folder(site, tmp_path, words):
    _, url, local = site
    _, far = run("subset", url, "--out", tmp_path / "far", *words)
    _, near = run("subset", local.path, "--out", tmp_path / "near", *words)
    assert far == near
    assert bytes_of(tmp_path / "far") == bytes_of(tmp_path / "near")


def test_a_subset_of_an_address_fetches_only_files_that_it_uses(site, tmp_path):
    server, url, _ = site
    run("subset", url, "--out", tmp_path / "part", "--views", "4:8")
    fetched = {path for path, _ in server.requests}
    assert any("labels/toy/index/c/0/1" in path for path in fetched)
    assert not any("labels/toy/index/c/0/0" in path for path in fetched)


def test_stores_at_addresses_are_merged(site, tmp_path):
    _, url, local = site
    for name, views in (("first", "0:4"), ("second", "4:8")):
        run("subset", local.path, "--out", tmp_path / "www" / name, "--views", views)
    base = url.removesuffix("/labels/store.zarr")
    run("merge", f"{base}/first", tmp_path / "www/second", "--out", tmp_path / "both")
    run("merge", tmp_path / "www/first", tmp_path / "www/second", "--out", tmp_path / "near")
    assert bytes_of(tmp_path / "both") == bytes_of(tmp_path / "near")
    with pytest.raises(UsageError, match="each once"):
        run("merge", f"{base}/first", f"{base}/first/", "--out", tmp_path / "twice")


def test_what_is_made_from_an_address_is_made_of_proven_bytes(site, tmp_path):
    server, url, _ = site

    def spoil(path, start, body):
        return (body[:-1] + bytes([body[-1] ^ 1]) if "toy/tail/c/1/0" in path else body), ""

    server.spoil = spoil
    with pytest.raises(CorruptStore, match=r"toy/tail/c/1/0.*other bytes"):
        run("subset", url, "--out", tmp_path / "part", "--top-k", "2")
    assert not (tmp_path / "part").exists()


def test_stores_are_compared_across_places(site, tmp_path):
    server, url, local = site
    code, found = run("diff", url, local.path)
    assert code == 0 and found["same_root"]
    server.requests.clear()
    other = publish(tmp_path / "other", segment_views=4, seed=9)
    code, found = run("diff", url, other.path)
    near_code, near = run("diff", local.path, other.path)
    assert (code, found) == (near_code, near) == (1, near)


def test_match_fetches_the_images_table_only(site, tmp_path):
    server, url, local = site
    folder = tmp_path / "data/a"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) * 9)
    code, found = run("match", url, folder.parent, "--workers", "1")
    assert code == 1 and found["missing"]["count"] == match(local, folder.parent).to_json(5)[
        "missing"]["count"]  # fmt: skip
    assert not any("/c/" in path and "/images/" not in path for path, _ in server.requests)


def test_origin_and_card_of_an_address(site, tmp_path):
    _, url, local = site
    assert run("origin", url) == run("origin", local.path)
    run("card", url, "--out", tmp_path / "far")
    run("card", local.path, "--out", tmp_path / "near")
    assert bytes_of(tmp_path / "far").keys() == {"README.md", "croissant.json"}
    far, near = ((tmp_path / n / "README.md").read_text() for n in ("far", "near"))
    assert far == near  # its name and root, not a folder of the cache


@pytest.mark.parametrize("kind", ["fkd", "webdataset"])
def test_an_address_is_exported(site, tmp_path, kind):
    pytest.importorskip("torch")
    _, url, local = site
    words = ("--label-type", "hard") if kind == "fkd" else ()
    run("export", kind, url, "--out", tmp_path / "far", *words)
    run("export", kind, local.path, "--out", tmp_path / "near", *words)
    far, near = bytes_of(tmp_path / "far"), bytes_of(tmp_path / "near")
    assert far and far == near


def test_a_signature_is_checked_at_an_address(site, tmp_path):
    pytest.importorskip("cryptography")
    _, url, local = site
    key = tmp_path / "key"
    with pytest.raises(StoreError, match="not signed"):
        run("sign", local.path, "--key", key, "--create-key")
        (local.path / "manifest.json.sig").rename(tmp_path / "kept")
        run("verify-signature", url, "--key", f"{key}.pub")
    shutil.copy(tmp_path / "kept", local.path / "manifest.json.sig")
    _, found = run("verify-signature", url, "--key", f"{key}.pub")
    assert found["root"] == read_manifest(local.path).root
    run("sign", local.path, "--key", tmp_path / "other", "--create-key")
    with pytest.raises(CorruptStore, match="signed by key"):
        run("verify-signature", url, "--key", f"{key}.pub")


@pytest.mark.parametrize(
    "words",
    [("seal",), ("sign", "--key", "nokey"), ("card", "--write"), ("push", "somewhere")],
)
def test_commands_that_write_refuse_an_address(site, words):
    with pytest.raises(UsageError, match=r"lies elsewhere.*labelstore pull"):
        run(words[0], site[1], *words[1:])


def test_additions_and_continuations_start_from_an_address(site, tmp_path):
    _, url, local = site
    spec = make_spec(num_images=12, num_views=8, segment_views=4)
    record = spec.teachers["toy"]
    far, near = (
        begin_addition(parent, tmp_path / name, teachers={"other": record_named(record, "other")})
        for parent, name in ((url, "far"), (local.path, "near"))
    )
    assert far.spec == near.spec and far.missing_blocks() == near.missing_blocks()
    kept = [name for name in read_manifest(local.path).objects if name != "zarr.json"]
    for name in kept:
        assert (far.path / name).read_bytes() == (near.path / name).read_bytes()
    assert continue_store(url, tmp_path / "more", 12).spec.num_views == 4


def record_named(record, name):
    import dataclasses

    return dataclasses.replace(record, name=name)


def test_a_cache_that_is_too_small_for_the_parent_still_gives_its_subset(
    site, tmp_path, monkeypatch
):
    _, url, local = site
    monkeypatch.setenv("TEACHONCE_CACHE_SIZE", "20KB")
    run("subset", url, "--out", tmp_path / "far", "--top-k", "2")
    run("subset", local.path, "--out", tmp_path / "near", "--top-k", "2")
    assert bytes_of(tmp_path / "far") == bytes_of(tmp_path / "near")
    monkeypatch.setenv("TEACHONCE_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match="cache size"):
        run("info", url)


def test_the_address_is_what_people_are_told(site):
    _, url, _ = site
    assert run("info", url)[1]["path"] == url
    assert connect(url, Path(open_any(url).path).parent.parent).place == url
    assert {CHUNKS, MANIFEST} <= {p.name for p in LabelStore.open(site[2].path).path.iterdir()}
    assert verify(site[2].path).problems == []


def test_a_prefix_that_fits_is_not_a_file_that_fits(site):
    """An answer cut to the manifest's size would hide what was appended."""
    _, url, local = site
    path = local.path / "labels/toy/tail/c/0/0"
    path.write_bytes(path.read_bytes() + b"tail")
    assert [p.kind for p in verify_any(url, hashes=True).problems] == ["size"]
    np.testing.assert_array_equal(
        open_any(url).read_plane(0, 2, "toy").tail, open_any(url, whole=True).read_plane(
            0, 2, "toy").tail)  # fmt: skip
