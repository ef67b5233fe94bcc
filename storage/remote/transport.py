"""Bytes of remote objects through obstore, with retries that go on where a connection broke.

Nothing here knows what the bytes should be: whoever asks compares them with the manifest.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storage.extras import needs_extra
from storage.remote.location import RemoteError, normal_url

REQUEST_BYTES = 32 << 20  # longest range asked for at once


T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How long to insist: attempts in a row without one new byte, and waits between (s)."""

    attempts: int = 6
    first_wait: float = 0.25
    longest_wait: float = 8.0
    timeout: float = 60.0  # of one request

    def wait(self, attempt: int) -> float:
        """Seconds before attempt number `attempt` (from 1)."""
        return min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))


class RangesIgnored(RemoteError):
    """The server answers a range request with the whole file."""


class LostFile(RemoteError):
    """A file that the manifest names is not there."""


class Cancelled(Exception):
    """`Transport.cancel` was called: nobody waits for these bytes any more."""


class Transport:
    """Read and write objects below one URL. Safe on any thread.

    bytes_fetched, requests: what was received so far, bytes of broken answers included.
    """

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        self.url = normal_url(url)
        self.retry = retry or Retry()
        self.bytes_fetched = 0
        self.requests = 0
        self._count = threading.Lock()
        self._cancelled = threading.Event()
        self._store = _object_store(self.url, self.retry)

    def cancel(self) -> None:
        """Stop running and later transfers."""
        self._cancelled.set()

    def get(self, name: str, most: int) -> bytes | None:
        """A whole small object of unknown size; None where there is none.

        Raises:
            RemoteError: unreachable, refused, or more than `most` bytes.
        """

        def read() -> bytes:
            data = bytearray()
            for piece in self._pieces(name, None):
                data += piece
                if len(data) > most:
                    raise RemoteError(f"{self._at(name)} is larger than {most:,} bytes")
            return bytes(data)

        try:
            return self._insist(name, read)
        except _Absent:
            return None

    def read(
        self, name: str, start: int, stop: int, sink: Callable[[bytes], None] | None = None
    ) -> bytes:
        """Bytes `start` to `stop - 1` of an object; broken or short answers are gone on with.

        Args:
            sink: takes the bytes piece by piece; the result is then empty.
        Raises:
            RangesIgnored: the server can't send parts.
            RemoteError: absent, unreachable or refused.
        """
        data = bytearray()
        take = data.extend if sink is None else sink
        position, failures = start, 0
        while position < stop:
            before, problem = position, "it sends fewer bytes than asked for"
            try:
                for piece in self._pieces(name, (position, min(stop, position + REQUEST_BYTES))):
                    take(piece[: stop - position])
                    position = min(stop, position + len(piece))
            except _Broken as error:
                problem = str(error)
            except _Absent as error:
                raise self._absent(name) from error
            if position == before:
                failures = self._again(name, failures, problem)
            elif position < stop:
                failures = 0
        return bytes(data)

    def read_whole(
        self, name: str, size: int, restart: Callable[[], None], sink: Callable[[bytes], None]
    ) -> None:
        """An object of `size` bytes in one answer, for servers that ignore ranges.

        Args:
            restart: called before every attempt; what `sink` got before doesn't count.
        Raises:
            RemoteError: unreachable, refused, absent or of another size.
        """

        def read() -> None:
            restart()
            got = 0
            for piece in self._pieces(name, None):
                got += len(piece)
                if got > size:
                    break
                sink(piece)
            if got != size:
                raise _Broken(f"it has another size than the {size:,} bytes of the manifest")

        try:
            self._insist(name, read)
        except _Absent as error:
            raise self._absent(name) from error

    def head(self, name: str) -> tuple[int, str | None] | None:
        """(bytes, entity tag) of an object; None where there is none."""
        import obstore

        def look() -> tuple[int, str | None]:
            with _translated(self._at(name)):
                meta = obstore.head(self._store, name)
            return int(meta["size"]), meta["e_tag"]

        try:
            return self._insist(name, look)
        except _Absent:
            return None

    def put(self, name: str, data: bytes | Path) -> None:
        """Write a whole object; a reader sees the old one or the new one.

        Raises:
            RemoteError: unreachable or refused.
        """
        import obstore

        def write() -> None:
            with _translated(self._at(name)):
                obstore.put(self._store, name, data)

        try:
            self._insist(name, write)
        except _Absent as error:
            raise RemoteError(f"{self._at(name)} can't be written: no such bucket") from error

    def delete(self, name: str) -> None:
        """Remove an object that exists."""
        import obstore

        def remove() -> None:
            with _translated(self._at(name)):
                obstore.delete(self._store, name)

        self._insist(name, remove)

    def _pieces(self, name: str, span: tuple[int, int] | None) -> Iterator[bytes]:
        import obstore

        with self._count:
            self.requests += 1
        where = self._at(name)
        with _translated(where):
            options: Any = {} if span is None else {"range": span}
            result = obstore.get(self._store, name, options=options)
            if span is not None and result.range[0] != span[0]:
                raise RangesIgnored(f"{where}: the server ignores range requests")
            # as the bytes come: what obstore gathers is lost when the connection breaks
            stream = iter(result.stream(min_chunk_size=1))
        while True:
            if self._cancelled.is_set():
                raise Cancelled
            with _translated(where):
                piece = next(stream, None)
            if piece is None:
                return
            with self._count:
                self.bytes_fetched += len(piece)
            yield bytes(piece)

    def _insist(self, name: str, work: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return work()
            except _Broken as error:
                failures = self._again(name, failures, str(error))

    def _again(self, name: str, failures: int, problem: str) -> int:
        failures += 1
        if failures >= self.retry.attempts:
            raise RemoteError(
                f"{self._at(name)} can't be fetched: {problem} ({failures} attempts): check the "
                "address and the network, then run the same command again"
            )
        if self._cancelled.wait(self.retry.wait(failures)):
            raise Cancelled
        return failures

    def _absent(self, name: str) -> LostFile:
        return LostFile(
            f"{self._at(name)} is not there, but the store's manifest names it: the store was "
            "changed or only partly copied; ask its publisher"
        )

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"


class _Broken(Exception):
    """An answer that may be better next time."""


class _Absent(Exception):
    """There is no such object."""


class _translated:  # noqa: N801 - reads as `with _translated(...)`
    """obstore's exceptions as ours."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        from obstore import exceptions

        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            raise _Absent(self._where) from error
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            raise RemoteError(
                f"{self._where}: the server refuses access ({_short(error)}): check the address "
                "and the credentials in the environment"
            ) from error
        text = str(error)
        if "ange request not supported" in text or "content-range" in text.lower():
            raise RangesIgnored(f"{self._where}: the server ignores range requests") from error
        if isinstance(error, exceptions.BaseError | OSError | ValueError):
            raise _Broken(_short(error)) from error


def _short(error: Exception) -> str:
    """The cause in one short line (obstore's texts hold several and a debug dump)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _own_endpoint(url: str) -> str:
    """A bucket server of the user's own, as obstore finds it in the environment."""
    if url.startswith("gs://"):
        key = os.environ.get("GOOGLE_SERVICE_ACCOUNT") or os.environ.get(
            "GOOGLE_SERVICE_ACCOUNT_PATH"
        )
        try:
            return str(json.loads(Path(key).read_bytes())["gcs_base_url"]) if key else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""  # Google's own, or a key file that obstore says more about
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    found = [os.environ[name] for name in names if os.environ.get(name)]
    return found[0] if found and url.startswith("s3://") else ""


def _object_store(url: str, retry: Retry) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise needs_extra(url, "obstore", "remote") from error
    headers: dict[str, str] = {}
    if url.startswith("hf://"):
        from storage.remote.hub import web_address

        url, headers = web_address(url)
    once: Any = {"max_retries": 0}
    client: Any = {"timeout": f"{retry.timeout:.0f}s", "connect_timeout": "10s"}
    if headers:
        client["default_headers"] = headers
    if urlsplit(url).scheme == "http" or _own_endpoint(url).startswith("http://"):
        client["allow_http"] = True
    try:
        # our own retries count progress and go on inside an object
        return from_url(url, client_options=client, retry_config=once)
    except Exception as error:
        raise RemoteError(f"{url} can't be used as a store's address: {_short(error)}") from error
