"""A look-alike of the Hub that takes uploads: commits of small files and of LFS objects.

It follows what the client sends and checks what a Hub would (sizes and SHA-256 of LFS objects, a
commit's parent); it has no accounts, no Xet storage and one branch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from typing import Any

from loopback import Handler, LoopbackServer

REPO = "lab/labels"
SMALL = 512  # bytes up to which a file goes into the commit itself


class UploadHub(LoopbackServer):
    """commits: by id, every file of the dataset then; order: their ids, the oldest first.

    stored: LFS objects by SHA-256; puts: how often one was uploaded. refuse: next answers to `PUT`.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.order: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.puts = 0
        self.refuse: list[int] = []
        self._lock = threading.Lock()
        outer = self

        class Answers(Handler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with outer._lock:
                    status, data, headers = outer.answer(self.command, self.path, body)
                asked = self.headers.get("Range")
                if asked and status == 200:
                    first, last = (int(x) for x in asked.removeprefix("bytes=").split("-"))
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                    status, data = 206, data[first : last + 1]
                self.reply(status, data, headers)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - http.server's names

        self.listen(Answers)

    @property
    def files(self) -> dict[str, bytes]:
        """What the branch holds now."""
        return self.commits[self.order[-1]] if self.order else {}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        path = path.split("?")[0]
        api, resolve = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/"
        if path == "/api/repos/create":
            return as_json({"url": f"{self.url}/datasets/{REPO}", "id": REPO})
        if path == f"{api}/revision/main":
            return as_json({"_id": "1", "id": REPO, "sha": self.order[-1], "siblings": []})
        if path == f"{api}/preupload/main":
            wanted = json.loads(body)["files"]
            return as_json({"files": [
                {"path": f["path"], "uploadMode": "regular" if f["size"] <= SMALL else "lfs",
                 "shouldIgnore": False} for f in wanted]})  # fmt: skip
        if path == f"/datasets/{REPO}.git/info/lfs/objects/batch":
            return self.batch(json.loads(body)["objects"])
        if method == "PUT" and path.startswith("/lfs/"):
            return self.put(path.removeprefix("/lfs/"), body)
        if path == f"{api}/commit/main":
            return self.commit([json.loads(line) for line in body.splitlines() if line.strip()])
        if path.startswith(resolve):
            commit, _, name = path.removeprefix(resolve).partition("/")
            if name in self.commits.get(commit, {}):
                return 200, self.commits[commit][name], {
                    "Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT"}  # fmt: skip
        return 404, b'{"error":"not found"}', {"X-Error-Code": "EntryNotFound"}

    def batch(self, objects: list[dict[str, Any]]) -> tuple[int, bytes, dict[str, str]]:
        found = []
        for item in objects:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.stored:
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
            found.append(entry)
        return as_json({"transfer": "basic", "objects": found}, "application/vnd.git-lfs+json")

    def put(self, oid: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if self.refuse:
            return self.refuse.pop(0), b"refused", {}
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, b"another SHA-256", {}
        self.stored[oid] = body
        self.puts += 1
        return 200, b"", {}

    def commit(self, lines: list[dict[str, Any]]) -> tuple[int, bytes, dict[str, str]]:
        files = dict(self.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if len(self.stored.get(value["oid"], b"")) != value["size"]:
                    return 400, b'{"error":"LFS object is missing"}', {}
                files[value["path"]] = self.stored[value["oid"]]
        number = hashlib.sha1(f"{len(self.order)}".encode()).hexdigest()
        self.commits[number] = files
        self.order.append(number)
        return as_json({"success": True, "commitOid": number, "hookOutput": "",
                        "commitUrl": f"{self.url}/datasets/{REPO}/commit/{number}"})  # fmt: skip


def as_json(
    value: dict[str, Any], kind: str = "application/json"
) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": kind}
