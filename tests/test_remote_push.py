"""push and pull: resumable, checked, the manifest last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from remote_helpers import FAST, assert_same, connect, publish
from store_helpers import fill_store
from web_servers import FileServer, GoogleServer, create_bucket, s3_server

from storage.commands.remote import COMMANDS
from storage.errors import CorruptStore, IncompleteStore, StoreError, UsageError
from storage.manifest import CHUNKS, file_entry, read_manifest
from storage.remote.location import RemoteError
from storage.remote.pull import pull
from storage.remote.push import push
from storage.remote.transport import Transport
from storage.store import MANIFEST, LabelStore
from storage.verify import verify


def files(root: Path) -> dict[str, tuple[int, str]]:
    return {
        p.relative_to(root).as_posix(): file_entry(p)
        for p in root.rglob("*")
        if p.is_file() and not p.relative_to(root).as_posix().startswith("receipts/")
    }


def command(name: str):
    return next(c for c in COMMANDS if c.name == name)


@pytest.fixture
def local(tmp_path):
    return publish(tmp_path / "source.zarr", chunks=False, segment_views=4)


@pytest.fixture
def server(local, tmp_path):
    push(local.path, str(tmp_path / "www/s"))
    with FileServer(tmp_path / "www") as server:
        yield server


def test_a_pushed_folder_is_the_store_with_digests_and_without_local_files(local, tmp_path):
    report = push(local.path, str(tmp_path / "www"))
    expected = files(local.path)
    found = files(tmp_path / "www")
    found.pop(CHUNKS)
    assert found == expected and report.sent == len(expected) - 1
    assert not (tmp_path / "www/receipts").exists()
    assert verify(tmp_path / "www", full=True).problems == []
    again = push(local.path, str(tmp_path / "www"))
    assert (again.sent, again.kept) == (0, report.sent)


def test_an_interrupted_push_leaves_nothing_that_opens_and_goes_on(local, tmp_path):
    class Stop(Exception):
        pass

    done = []

    def advance(size):
        done.append(size)
        if len(done) == 10:
            raise Stop

    with pytest.raises(Stop):
        push(local.path, str(tmp_path / "www"), advance=advance)
    assert not (tmp_path / "www" / MANIFEST).exists()
    report = push(local.path, str(tmp_path / "www"))
    assert report.kept >= 10 and report.sent > 0
    assert verify(tmp_path / "www", full=True).problems == []


def test_damaged_and_unsealed_stores_are_not_pushed(local, tmp_path):
    path = local.path / "views/box/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="views/box"):
        push(local.path, str(tmp_path / "www"))
    assert not (tmp_path / "www" / MANIFEST).exists()
    fill_store(tmp_path / "open.zarr")
    with pytest.raises(IncompleteStore, match="not sealed"):
        push(tmp_path / "open.zarr", str(tmp_path / "www2"))


def test_another_store_is_replaced_only_when_asked(local, tmp_path):
    other = publish(tmp_path / "other.zarr", chunks=False, segment_views=4, seed=9)
    push(other.path, str(tmp_path / "www"))
    with pytest.raises(StoreError, match="another store"):
        push(local.path, str(tmp_path / "www"))
    push(local.path, str(tmp_path / "www"), overwrite=True)
    assert read_manifest(tmp_path / "www").root == read_manifest(local.path).root


def test_a_web_server_cannot_be_pushed_to(local):
    with pytest.raises(UsageError, match="web server"):
        push(local.path, "https://host/x")


def test_a_pulled_store_is_byte_for_byte_the_original(local, server, tmp_path):
    store = connect(f"{server.url}/s", tmp_path / "cache", whole=True)
    report = pull(store, tmp_path / "copy.zarr")
    assert files(tmp_path / "copy.zarr") == files(local.path)
    assert verify(tmp_path / "copy.zarr", full=True).problems == []
    assert report.root == read_manifest(local.path).root
    before = server.bytes_sent
    pull(store, tmp_path / "copy.zarr")
    assert server.bytes_sent == before


def test_an_interrupted_pull_goes_on_and_is_no_store_before_its_end(server, tmp_path):
    asked = []

    def spoil(path, start, body):
        asked.append(path)
        return body, "status:500" if len(asked) > 25 else ""

    server.spoil = spoil
    store = connect(f"{server.url}/s", tmp_path / "cache", whole=True)
    with pytest.raises(RemoteError):
        pull(store, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr" / MANIFEST).exists()
    have = {n for n in files(tmp_path / "copy.zarr") if "/c/" in n}
    server.spoil = lambda path, start, body: (body, "")
    server.requests.clear()
    pull(store, tmp_path / "copy.zarr")
    assert have and not have & {path.removeprefix("s/") for path, _ in server.requests}
    assert verify(tmp_path / "copy.zarr", full=True).problems == []
    assert not list((tmp_path / "copy.zarr").rglob(".teachonce-*"))


def test_half_a_file_of_an_interrupted_pull_is_gone_on_with(server, tmp_path):
    store = connect(f"{server.url}/s", tmp_path / "cache", whole=True)
    name = "labels/toy/index/c/0/0/0"
    size, digest = store.manifest.objects[name]
    half = (tmp_path / "www/s" / name).read_bytes()[: size // 2]
    folder = tmp_path / "copy.zarr" / Path(name).parent
    folder.mkdir(parents=True)
    (tmp_path / f"copy.zarr/.teachonce-pull-{store.manifest.root[:16]}").touch()
    (folder / f".teachonce-0.{digest[:16]}.part").write_bytes(half)
    pull(store, tmp_path / "copy.zarr")
    assert [r for p, r in server.requests if p == f"s/{name}"] == [f"bytes={size // 2}-{size - 1}"]
    assert verify(tmp_path / "copy.zarr", full=True).problems == []


def test_a_pull_refuses_what_is_in_the_way(server, tmp_path):
    store = connect(f"{server.url}/s", tmp_path / "cache", whole=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    with pytest.raises(StoreError, match="unfinished copy"):
        pull(store, tmp_path / "full")
    other = publish(tmp_path / "other.zarr", chunks=False, seed=9)
    with pytest.raises(StoreError, match="another store"):
        pull(store, other.path)
    with pytest.raises(UsageError, match="views 0:99"):
        pull(store, tmp_path / "copy", views=(0, 99))


def test_wrong_bytes_are_not_pulled(server, tmp_path):
    store = connect(f"{server.url}/s", tmp_path / "cache", whole=True)

    def spoil(path, start, body):
        if "labels/toy/tail/c/1" in path:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return body, ""

    server.spoil = spoil
    with pytest.raises(CorruptStore, match=r"toy/tail.*other bytes"):
        pull(store, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr" / MANIFEST).exists()


def test_views_and_classes_can_be_pulled_alone(local, server, tmp_path):
    url = f"{server.url}/s"
    result = CliRunner().invoke(
        command("pull"),
        [url, "--out", str(tmp_path / "part.zarr"), "--views", "0:4", "--k", "2", "--json",
         "--cache", str(tmp_path / "cache")],
        standalone_mode=False,
    )  # fmt: skip
    assert result.exception is None, result.exception
    part = LabelStore.open(tmp_path / "part.zarr")
    assert verify(part.path, full=True).problems == []
    assert part.spec.num_views == 4 and part.spec.teachers["toy"].codec.top_k == 2
    plane, whole = part.read_plane(0, 4, "toy"), local.read_plane(0, 4, "toy")
    np.testing.assert_array_equal(plane.box, whole.box)
    np.testing.assert_array_equal(plane.index, whole.index[..., :2])
    assert json.loads(result.stdout)["source_root"] == read_manifest(local.path).root
    assert not any("/c/" in path and "box/c/0/1" in path for path, _ in server.requests)


def test_the_commands_say_what_they_did(local, tmp_path):
    runner = CliRunner()
    result = runner.invoke(command("push"), [str(local.path), str(tmp_path / "www/s")])
    assert result.exit_code == 0 and "files sent" in result.output
    with FileServer(tmp_path / "www") as server:
        arguments = [f"{server.url}/s", "--out", str(tmp_path / "copy"),
                     "--cache", str(tmp_path / "cache")]  # fmt: skip
        result = runner.invoke(command("pull"), arguments)
    assert result.exit_code == 0 and read_manifest(local.path).root in result.output
    result = runner.invoke(
        command("pull"), [str(local.path), "--out", str(tmp_path / "x")], standalone_mode=False
    )
    assert isinstance(result.exception, UsageError)


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto.server", reason="moto is not installed")
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3, monkeypatch, request):
    name = f"labels-{abs(hash(request.node.name)) % 10**9}"
    create_bucket(s3, name)
    for variable, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)
    return f"s3://{name}/lab/store.zarr"


def test_a_store_goes_to_a_bucket_and_is_read_and_pulled_from_there(local, bucket, tmp_path):
    report = push(local.path, bucket, cache=tmp_path / "cache", transport=Transport(bucket, FAST))
    assert report.kept == 0
    remote = connect(bucket, tmp_path / "cache")
    assert remote._digests
    assert_same(remote, local, 2, 2)
    assert not (remote.path / "views/box/c/0/1/0").exists()
    pull(connect(bucket, tmp_path / "cache", whole=True), tmp_path / "copy")
    assert files(tmp_path / "copy") == files(local.path)


def test_a_push_to_a_bucket_goes_on_and_trusts_only_what_it_wrote(local, bucket, tmp_path):
    options = {"cache": tmp_path / "cache"}
    first = push(local.path, bucket, **options)
    again = push(local.path, bucket, **options)
    assert (again.sent, again.kept) == (0, first.sent)
    name = "views/flip/c/0/0"
    data = (local.path / name).read_bytes()
    Transport(bucket, FAST).put(name, data[:-1] + b"?")
    third = push(local.path, bucket, **options)
    assert (third.sent, third.kept) == (1, first.sent - 1)
    assert_same(connect(bucket, tmp_path / "c2", whole=True), local, 0, 8)


def test_another_store_in_a_bucket_is_not_overwritten(local, bucket, tmp_path):
    options = {"cache": tmp_path / "cache"}
    other = publish(tmp_path / "other.zarr", chunks=False, seed=9)
    push(other.path, bucket, **options)
    with pytest.raises(StoreError, match="another store"):
        push(local.path, bucket, **options)
    push(local.path, bucket, overwrite=True, **options)
    assert connect(bucket, tmp_path / "c2").manifest.root == read_manifest(local.path).root


def test_a_bucket_that_is_not_there_is_named(s3, bucket, local, tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        push(
            local.path,
            "s3://nowhere/x",
            cache=tmp_path,
            transport=Transport("s3://nowhere/x", FAST),
        )
    shutil.rmtree(tmp_path / "pushes", ignore_errors=True)


@pytest.fixture
def google(tmp_path, monkeypatch):
    """(server, address) with a key file that names the server, as for Google's emulators."""
    with GoogleServer() as server:
        key = {"gcs_base_url": server.url, "disable_oauth": True, "client_email": "",
               "private_key": "", "private_key_id": ""}  # fmt: skip
        (tmp_path / "key.json").write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
        yield server, "gs://lab/labels/store.zarr"


def test_a_store_goes_to_google_and_is_read_and_pulled_from_there(local, google, tmp_path):
    server, address = google
    options = {"cache": tmp_path / "cache"}
    report = push(local.path, address, transport=Transport(address, FAST), **options)
    names = {name.removeprefix("lab/labels/store.zarr/") for name in server.objects}
    assert names == set(read_manifest(local.path).objects) | {CHUNKS, MANIFEST}
    remote = connect(address, tmp_path / "cache")
    assert remote._digests
    assert_same(remote, local, 2, 2)
    pull(connect(address, tmp_path / "cache", whole=True), tmp_path / "copy")
    assert files(tmp_path / "copy") == files(local.path)
    again = push(local.path, address, **options)
    assert (again.sent, again.kept) == (0, report.sent)


def test_another_store_at_google_is_replaced_only_when_asked(local, google, tmp_path):
    other = publish(tmp_path / "other.zarr", chunks=False, seed=9)
    push(other.path, google[1], cache=tmp_path / "cache")
    with pytest.raises(StoreError, match="another store"):
        push(local.path, google[1], cache=tmp_path / "cache")
    push(local.path, google[1], overwrite=True, cache=tmp_path / "cache")
    root = read_manifest(local.path).root
    assert connect(google[1], tmp_path / "c2").manifest.root == root
