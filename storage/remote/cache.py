"""The local cache of remote stores: a folder a store, laid out as the store itself.

A file is either whole or sparse, with some of its chunks at their places. What is there is
told from the bytes alone, by their digests, whenever it is first used in a process: so any number
of processes may share a cache, be killed, or find bytes that rotted. Least recently used files go
when the limit is passed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from storage.atomic import make_folder
from storage.errors import CorruptStore, UsageError
from storage.manifest import CHUNKS
from storage.remote.digests import DIGEST_BYTES, short_digest
from storage.remote.files import fetch_file, holds, wrong_bytes
from storage.remote.transport import REQUEST_BYTES, RangesIgnored, Transport
from storage.shards import ABSENT, index_bytes, parse_index
from storage.store import MANIFEST, ROOT_METADATA

CACHE_ENVIRONMENT = "TEACHONCE_CACHE"
SIZE_ENVIRONMENT = "TEACHONCE_CACHE_SIZE"
DEFAULT_LIMIT = 50 * 10**9
STORES = "stores"
DISK_BLOCK = 4096
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def default_cache() -> Path:
    """$TEACHONCE_CACHE, else the user's cache folder."""
    chosen = os.environ.get(CACHE_ENVIRONMENT)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "teachonce"


def default_limit() -> int:
    """Bytes of $TEACHONCE_CACHE_SIZE, else 50 GB.

    Raises:
        UsageError: it is no size.
    """
    chosen = os.environ.get(SIZE_ENVIRONMENT)
    return parse_size(chosen) if chosen else DEFAULT_LIMIT


def parse_size(text: str) -> int:
    """Bytes of "500MB", "20 GB", "1.5TB" or a plain number.

    Raises:
        UsageError: anything else.
    """
    compact = text.replace(" ", "").upper()
    number = compact.rstrip("KMGTB")
    try:
        size = int(float(number) * UNITS[compact[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError(f"the cache size is {text!r}; expected e.g. 500MB or 20GB")
    return size


class Cache:
    """Files of one remote store on this machine.

    Args:
        folder: of this store.
        transport: where its files come from.
        limit: bytes of all stores below `folder`'s parent to keep; what is in use may pass it.
    """

    def __init__(self, folder: Path, transport: Transport, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._transport = transport
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._whole: set[str] = set()  # files that this process has compared with the manifest
        self._pinned: dict[str, int] = {}
        self._size: int | None = None

    @contextlib.contextmanager
    def pinned(self, names: Sequence[str]) -> Iterator[None]:
        """These files aren't evicted meanwhile."""
        with self._guard:
            for name in names:
                self._pinned[name] = self._pinned.get(name, 0) + 1
        try:
            yield
        finally:
            with self._guard:
                for name in names:
                    self._pinned[name] -= 1
                    if not self._pinned[name]:
                        del self._pinned[name]

    def need_whole(self, name: str, size: int, digest: str) -> None:
        """Make a file whole: its bytes are those of the manifest.

        Raises:
            CorruptStore: the server has other bytes.
            RemoteError: it can't be fetched.
        """
        path = self.folder / name
        with self._lock(name):
            if name in self._whole and path.exists():
                os.utime(path)
                return
            if holds(path, size, digest):
                os.utime(path)
            else:
                fetch_file(self._transport, name, size, digest, path)
                self._grew(size)
            self._whole.add(name)

    def need_chunks(
        self, name: str, size: int, digest: str, chunks: Sequence[int], known: Sequence[bytes]
    ) -> None:
        """Put some chunks of a shard in their places.

        Args:
            known: digests of the shard's index and chunks.
        Raises:
            CorruptStore: the server has other bytes.
            RemoteError: it can't be fetched.
        """
        try:
            with self._lock(name):
                if name not in self._whole or not (self.folder / name).exists():
                    self._need_chunks(name, size, chunks, known)
                os.utime(self.folder / name)
        except RangesIgnored:
            self.need_whole(name, size, digest)

    def _need_chunks(
        self, name: str, size: int, chunks: Sequence[int], known: Sequence[bytes]
    ) -> None:
        path, tail = self.folder / name, index_bytes(len(known) - 1)
        if size < tail:
            raise CorruptStore(f"{self._at(name)} has {size} bytes in the manifest, too few")
        make_folder(path.parent)
        path.touch()
        with path.open("r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                file.truncate(size)
            index = os.pread(file.fileno(), tail, size - tail)
            if short_digest(index) != known[0]:
                index = self._fetch(file.fileno(), name, size - tail, size, [(0, tail, known[0])])
            try:
                entries = parse_index(index, len(known) - 1, size).tolist()
            except ValueError as error:
                raise CorruptStore(f"{self._at(name)}: {error}") from error
            missing = []
            for chunk in chunks:
                offset, length = entries[chunk]
                if offset == ABSENT or known[chunk + 1] == b"\0" * DIGEST_BYTES:
                    raise CorruptStore(f"{self._at(name)} lacks chunk {chunk}")
                if short_digest(os.pread(file.fileno(), length, offset)) != known[chunk + 1]:
                    missing.append((offset, length, known[chunk + 1]))
            for start, stop, parts in _runs(missing):
                self._fetch(file.fileno(), name, start, stop, parts)

    def _fetch(
        self, file: int, name: str, start: int, stop: int, parts: list[tuple[int, int, bytes]]
    ) -> bytes:
        """Fetch a range, compare its parts (offset in it, length, digest), write it."""
        for attempt in (1, 2):
            data = self._transport.read(name, start, stop)
            if all(short_digest(data[at : at + length]) == d for at, length, d in parts):
                os.pwrite(file, data, start)
                self._grew(len(data))
                return data
            if attempt == 2:
                break
        raise wrong_bytes(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._transport.url}/{name}"

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())

    def _grew(self, size: int) -> None:
        with self._guard:
            if self._size is None:
                self._size = sum(used for _, used, _ in _files(self.folder.parent))
            else:
                self._size += -(-size // DISK_BLOCK) * DISK_BLOCK

    def evict(self) -> None:
        """Remove least recently used files down to 90 % of the limit, if it is passed."""
        with self._guard:
            if self._size is None or self._size <= self.limit:
                return
            pinned = {self.folder / name for name in self._pinned}
            found = sorted(_files(self.folder.parent))
            self._size = sum(used for _, used, _ in found)
            for _, used, path in found:
                if self._size <= self.limit * 0.9:
                    break
                if path not in pinned:
                    with contextlib.suppress(OSError):
                        path.unlink()
                        self._size -= used


def _runs(
    parts: list[tuple[int, int, bytes]],
) -> Iterator[tuple[int, int, list[tuple[int, int, bytes]]]]:
    """Ranges that cover (offset, length, digest) parts and nothing else: start, stop and the
    parts of each with their offsets in it."""
    run: list[tuple[int, int, bytes]] = []
    start = stop = 0
    for offset, length, digest in sorted(parts):
        if run and (offset != stop or offset + length - start > REQUEST_BYTES):
            yield start, stop, run
            run = []
        if not run:
            start = stop = offset
        run.append((offset - start, length, digest))
        stop = offset + length
    if run:
        yield start, stop, run


def _files(root: Path) -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes on disk, path) of every cached file that may go."""
    for folder, _, names in os.walk(root):
        for name in names:
            if name in (ROOT_METADATA, MANIFEST, CHUNKS):
                continue
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                found = path.stat()
                yield found.st_mtime, found.st_blocks * 512, path
