"""Whole files from elsewhere: compared with the manifest, put in place atomically, resumable."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from storage.atomic import TEMPORARY, make_folder, sync_folder
from storage.errors import CorruptStore
from storage.manifest import file_entry
from storage.remote.transport import RangesIgnored, Transport

HASH_PIECE = 1 << 20


def holds(path: Path, size: int, digest: str) -> bool:
    """Whether a plain file with these bytes is there."""
    try:
        if path.is_symlink() or path.stat().st_size != size:
            return False
        return file_entry(path) == (size, digest)
    except OSError:
        return False


def fetch_file(transport: Transport, name: str, size: int, digest: str, path: Path) -> None:
    """Fetch a whole file; what an interrupted attempt left beside it is gone on with.

    Processes that want the same file wait for each other.

    Raises:
        CorruptStore: the server has other bytes.
        RemoteError: it can't be fetched.
    """
    make_folder(path.parent)
    for _ in range(2):  # damage on the way gets a second chance
        with _part(path, digest) as (file, part):
            if holds(path, size, digest):  # another process was first
                part.unlink()
                return
            if _fill(transport, name, size, digest, file):
                os.fsync(file)
                part.replace(path)
                sync_folder(path.parent)
                return
            part.unlink()
    raise wrong_bytes(f"{transport.url}/{name}")


def wrong_bytes(where: str) -> CorruptStore:
    """The error for bytes that are not the manifest's."""
    return CorruptStore(
        f"{where}: the server sends other bytes than the store's manifest names (damaged on the "
        "way, or the store was replaced while it was read): run the same command again, and if "
        "that doesn't help ask its publisher"
    )


def _fill(transport: Transport, name: str, size: int, digest: str, file: int) -> bool:
    sink = _Sink(file, size)
    try:
        transport.read(name, sink.position, size, sink.take)
    except RangesIgnored:
        transport.read_whole(name, size, sink.restart, sink.take)
    return sink.hexdigest() == digest


class _Sink:
    """Appends to a file and hashes it all, what it held before included."""

    def __init__(self, file: int, most: int) -> None:
        self._file = file
        self.restart()
        while piece := os.pread(file, min(HASH_PIECE, most - self.position), self.position):
            self._hash.update(piece)
            self.position += len(piece)

    def restart(self) -> None:
        self._hash = hashlib.sha256()
        self.position = 0

    def take(self, piece: bytes) -> None:
        self._hash.update(piece)
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._file, view, self.position)
            self.position += written
            view = view[written:]

    def hexdigest(self) -> str:
        os.ftruncate(self._file, self.position)
        return self._hash.hexdigest()


@contextlib.contextmanager
def _part(path: Path, digest: str) -> Iterator[tuple[int, Path]]:
    """(descriptor, path) of the file that grows beside `path`, held by this process alone."""
    part = path.parent / f"{TEMPORARY}{path.name}.{digest[:16]}.part"
    while True:
        file = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                # its last holder may have renamed or removed it while we waited
                if os.path.samestat(os.fstat(file), part.stat()):
                    yield file, part
                    return
        finally:
            os.close(file)
