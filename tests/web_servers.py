"""Servers on loopback for tests: one that misbehaves on request, nginx, and an S3 look-alike."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from loopback import Handler, LoopbackServer

WAIT = 30.0


class FileServer(LoopbackServer):
    """Serves a folder with range requests, and spoils answers as `spoil` says.

    spoil(path, start, body) -> (body or None, flags); flags: "ignore-range", "short", "drop",
    "status:NNN". Counts requests and the bytes of bodies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spoil: Callable[[str, int, bytes], tuple[bytes, str]] = lambda p, s, b: (b, "")
        self.requests: list[tuple[str, str | None]] = []
        self.bytes_sent = 0
        outer = self

        class Answers(Handler):
            def do_HEAD(self) -> None:  # noqa: N802 - the name http.server calls
                self.do_GET()

            def do_GET(self) -> None:  # noqa: N802 - the name http.server calls
                outer.answer(self)

        self.listen(Answers)

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, asked = request.path.lstrip("/"), request.headers.get("Range")
        self.requests.append((path, asked))
        file = self.folder / path
        if not file.is_file():
            request.send_error(404)
            return
        whole = file.read_bytes()
        start, stop = 0, len(whole)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(len(whole), int(last) + 1)
        body, how = self.spoil(path, start, whole[start:stop])
        if how.startswith("status:"):
            request.send_error(int(how.removeprefix("status:")))
            return
        if how == "ignore-range" and asked:
            asked, start, body = None, 0, whole
        if how == "short":
            body = body[: len(body) // 2]
        request.send_response(206 if asked else 200)
        if asked:
            end = start + len(body) - 1
            request.send_header("Content-Range", f"bytes {start}-{end}/{len(whole)}")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Last-Modified", "Sat, 21 Nov 2026 08:00:00 GMT")
        request.end_headers()
        if request.command == "HEAD":
            return
        if how == "drop":
            body = body[: max(1, len(body) // 2)]
            request.close_connection = True
        with contextlib.suppress(OSError):
            request.wfile.write(body)
            self.bytes_sent += len(body)


@contextlib.contextmanager
def nginx(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """(URL, access log with one `path status body-bytes` a line) of an nginx serving a folder."""
    program = nginx_program()
    assert program is not None
    port = free_port()
    log = scratch / "access.log"
    config = scratch / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; worker_processes 1; pid {scratch}/pid;
error_log {scratch}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format plain '$uri $status $body_bytes_sent';
  access_log {log} plain;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi; uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/s;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""
    )
    command = [program, "-p", str(scratch), "-c", str(config), "-e", str(scratch / "error.log")]
    with _running(command, port):
        yield f"http://127.0.0.1:{port}", log


def nginx_program() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """URL of moto's S3-compatible server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port):
        yield f"http://127.0.0.1:{port}"


class GoogleServer(LoopbackServer):
    """Objects of Google Cloud Storage in memory, by the part of its XML API that obstore speaks:
    PUT, GET with ranges, HEAD and DELETE of /BUCKET/OBJECT. No accounts, no lists."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        outer = self

        class Answers(Handler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
                status, data, headers = outer.answer(self, name, body)
                self.reply(status, data, headers)

            do_GET = do_HEAD = do_PUT = do_DELETE = handle_any  # noqa: N815 - http.server's names

        self.listen(Answers)

    def answer(
        self, request: http.server.BaseHTTPRequestHandler, name: str, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        if request.command == "PUT":
            self.objects[name] = body
            return 200, b"", {"ETag": tag_of(body)}
        data = self.objects.get(name)
        if data is None:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        if request.command == "DELETE":
            del self.objects[name]
            return 204, b"", {}
        headers = {"ETag": tag_of(data), "Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT"}
        asked = request.headers.get("Range")
        if not asked:
            return 200, data, headers
        first, last = (int(x) for x in asked.removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        return 206, data[first : last + 1], headers


def tag_of(data: bytes) -> str:
    """An entity tag."""
    return f'"{hashlib.md5(data).hexdigest()}"'


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < end, f"{command[0]} doesn't answer"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def create_bucket(endpoint: str, bucket: str) -> None:
    """An empty bucket on moto's server."""
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
