"""The Hub at its HTTP boundary: the real client and obstore against a look-alike on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from hub_server import UploadHub
from loopback import Handler, LoopbackServer
from remote_helpers import assert_same, connect, publish

from storage.errors import StoreError
from storage.manifest import read_manifest
from storage.remote.location import RemoteError
from storage.remote.pull import pull
from storage.remote.push import push
from storage.verify import verify

hub = pytest.importorskip("huggingface_hub")
# the client's own calls of httpx; and it shows a bar for every file
quiet_client = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(LoopbackServer):
    """Answers as the Hub does: a revision's commit, and files by redirects to another host."""

    def __init__(self, files: Path) -> None:
        self.paths: list[str] = []
        self.commit = COMMIT
        outer = self

        class Answers(Handler):
            def do_GET(self) -> None:  # noqa: N802 - the name http.server calls
                outer.paths.append(self.path)
                resolve = f"/datasets/lab/labels/resolve/{outer.commit}/"
                if self.path == "/api/datasets/lab/labels/revision/v1.0":
                    body = {"_id": "1", "id": "lab/labels", "sha": outer.commit, "siblings": []}
                    self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
                elif self.path.startswith("/api/"):
                    self.reply(404, b'{"error":"Revision Not Found"}',
                               {"X-Error-Code": "RevisionNotFound"})  # fmt: skip
                elif self.path.startswith(resolve):
                    name = self.path.removeprefix(resolve)
                    if not (files / name).is_file():
                        self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                    else:
                        self.reply(302, b"", {"Location": f"/cdn/{name}"})
                elif self.path.startswith("/cdn/"):
                    self.send_part((files / self.path.removeprefix("/cdn/")).read_bytes())
                else:
                    self.reply(404, b"", {})

            def send_part(self, data: bytes) -> None:
                asked = self.headers.get("Range")
                headers = {"Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT"}
                if not asked:
                    return self.reply(200, data, headers)
                first, last = (int(x) for x in asked.removeprefix("bytes=").split("-"))
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                return self.reply(206, data[first : last + 1], headers)

        self.listen(Answers)


@pytest.fixture
def served(tmp_path, monkeypatch):
    local = publish(tmp_path / "files/r152.zarr")
    with Hub(tmp_path / "files") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server, local


def test_a_dataset_is_read_at_the_commit_that_its_tag_names(served, tmp_path):
    server, local = served
    remote = connect("hf://datasets/lab/labels@v1.0/r152.zarr", tmp_path / "cache")
    assert_same(remote, local, 2, 2)
    files = [path for path in server.paths if not path.startswith(("/api/", "/cdn/"))]
    assert files and all(f"/resolve/{COMMIT}/r152.zarr/" in path for path in files)
    assert server.paths.count("/api/datasets/lab/labels/revision/v1.0") == 1


def test_an_unknown_revision_is_named(served, tmp_path):
    with pytest.raises(RemoteError, match="hf://datasets/lab/labels@v9"):
        connect("hf://datasets/lab/labels@v9/r152.zarr", tmp_path / "cache")


class FakeApi:
    """Stands in for uploads, which end at the Hub's own protocol."""

    calls: ClassVar[list[tuple[str, dict]]] = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))

    def upload_file(self, **options):
        self.calls.append(("upload_file", options))


def test_a_push_to_the_hub_sends_the_manifest_last(tmp_path, monkeypatch):
    local = publish(tmp_path / "s", chunks=False)
    FakeApi.calls.clear()
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    push(local.path, "hf://datasets/lab/labels@main/r152.zarr")
    names = [name for name, _ in FakeApi.calls]
    assert names == ["create_repo", "upload_folder", "upload_file", "upload_file"]
    folder = FakeApi.calls[1][1]
    assert folder["repo_id"] == "lab/labels" and folder["path_in_repo"] == "r152.zarr"
    assert {"manifest.json", "receipts/*", "local.json"} <= set(folder["ignore_patterns"])
    assert [c["path_in_repo"] for _, c in FakeApi.calls[2:]] == [
        "r152.zarr/chunks.json", "r152.zarr/manifest.json"]  # fmt: skip


def test_a_damaged_store_is_not_pushed_to_the_hub(tmp_path, monkeypatch):
    local = publish(tmp_path / "s", chunks=False)
    FakeApi.calls.clear()
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    path = local.path / "images/target/c/0"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="images/target"):
        push(local.path, "hf://datasets/lab/labels")
    assert not FakeApi.calls


@pytest.fixture
def uploads(monkeypatch):
    with UploadHub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_notatoken")
        yield server


@quiet_client
def test_what_is_pushed_to_the_hub_is_read_and_pulled_from_there(uploads, tmp_path):
    local = publish(tmp_path / "s", chunks=False)
    (local.path / "README.md").write_text("a card\n")
    push(local.path, "hf://datasets/lab/labels@main/r152.zarr")
    assert uploads.puts > 0, "else no file went the way of large ones"
    names = {name.removeprefix("r152.zarr/") for name in uploads.files}
    about = {"manifest.json", "chunks.json", "README.md"}
    assert names == about | set(read_manifest(local.path).objects)
    remote = connect("hf://datasets/lab/labels@main/r152.zarr", tmp_path / "cache")
    assert_same(remote, local, 2, 2)
    pull(connect("hf://datasets/lab/labels/r152.zarr", tmp_path / "c2", whole=True), tmp_path / "p")
    assert verify(tmp_path / "p", full=True).root == read_manifest(local.path).root


@quiet_client
def test_no_commit_on_the_way_to_the_hub_holds_half_a_store(uploads, tmp_path):
    local = publish(tmp_path / "s", chunks=False)
    push(local.path, "hf://datasets/lab/labels/r152.zarr")
    whole = {f"r152.zarr/{name}" for name in read_manifest(local.path).objects}
    assert len(uploads.order) > 1
    for commit in uploads.order:
        files = set(uploads.commits[commit])
        assert whole <= files or "r152.zarr/manifest.json" not in files


@quiet_client
def test_a_push_to_the_hub_that_broke_off_goes_on_with_what_it_lacks(uploads, tmp_path):
    local = publish(tmp_path / "s", chunks=False)
    uploads.refuse = [403] * 3
    with pytest.raises(RemoteError, match="hf://datasets/lab/labels"):
        push(local.path, "hf://datasets/lab/labels/r152.zarr")
    assert "r152.zarr/manifest.json" not in uploads.files
    uploads.refuse = []
    kept, before = len(uploads.stored), uploads.puts
    push(local.path, "hf://datasets/lab/labels/r152.zarr")
    assert uploads.puts - before == len(uploads.stored) - kept  # nothing was sent again
    again = uploads.puts
    push(local.path, "hf://datasets/lab/labels/r152.zarr")
    assert uploads.puts == again
