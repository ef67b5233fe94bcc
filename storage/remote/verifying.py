"""`verify` of a store wherever it lies: what the server has is asked for, not what is cached."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from storage import progress as bars
from storage.errors import CorruptStore
from storage.remote.files import fetch_file
from storage.remote.location import is_remote
from storage.remote.opening import open_any
from storage.remote.store import RemoteStore
from storage.remote.transport import LostFile
from storage.store import MANIFEST
from storage.threads import for_each
from storage.verify import Problem, VerifyReport, verify
from storage.verify_values import Progress


def verify_any(
    location: Path | str,
    full: bool = False,
    progress: Progress | None = None,
    hashes: bool = False,
    quiet: bool = True,
) -> VerifyReport:
    """`verify` of a folder, or of a sealed store at an address; problems are collected.

    Of an address every file that the manifest names is asked for anew: without `hashes` or `full`
    its size, else its bytes, which are compared with their SHA-256 as they come. A full check
    keeps them all in a scratch folder of the cache until it ends. Files that the manifest doesn't
    name can't be found there: web servers and buckets are not listed.

    Args:
        progress: see `verify`. quiet: say nothing of the bytes that are fetched.
    Raises:
        StoreError, FormatVersion: as `verify`. CorruptStore: manifest or metadata of a store at an
            address are damaged. RemoteError: it can't be reached.
    """
    if not is_remote(str(location)):
        return verify(location, full=full, progress=progress, hashes=hashes)
    store = open_any(location, whole=True)
    assert isinstance(store, RemoteStore), "it is an address"
    return _verify_remote(store, full, progress, hashes or full, quiet)


def _verify_remote(
    store: RemoteStore, full: bool, progress: Progress | None, hashes: bool, quiet: bool
) -> VerifyReport:
    objects = store.manifest.objects
    size = sum(size for size, _ in objects.values())
    found: dict[str, Problem] = {}
    with (
        tempfile.TemporaryDirectory(dir=store.path.parent.parent, prefix="verify-") as scratch,
        bars.Progress(size, "bytes", "fetching", quiet=quiet or not hashes) as fetching,
    ):
        folder = Path(scratch) / "store"
        lock = threading.Lock()

        def look(name: str) -> None:
            problem = _size_problem(store, name)
            if problem is None and hashes:
                problem = _fetch_problem(store, name, folder / name)
                if not full:
                    (folder / name).unlink(missing_ok=True)
                with lock:
                    fetching.advance(objects[name][0])
            if problem is not None:
                found[name] = problem

        for_each(sorted(objects), look)
        report = VerifyReport(path=store.place, full=full, hashes=hashes)
        if full:
            # what was noted above is said better there than by its absence here
            (folder / MANIFEST).write_bytes((store.path / MANIFEST).read_bytes())
            report = verify(folder, full=True, progress=progress)
            report.path = store.place
            report.problems = [p for p in report.problems if p.path not in found]
    report.sealed, report.root = True, store.manifest.root
    report.blocks, report.objects = store.blocks, len(objects)
    report.bytes = size
    report.problems += [problem for _, problem in sorted(found.items())]
    return report


def _size_problem(store: RemoteStore, name: str) -> Problem | None:
    there, expected = store.transport.head(name), store.manifest.objects[name][0]
    if there is None:
        return Problem(name, "missing", "expected a file")
    if there[0] != expected:
        return Problem(name, "size", f"has {there[0]} bytes, expected {expected}")
    return None


def _fetch_problem(store: RemoteStore, name: str, path: Path) -> Problem | None:
    size, digest = store.manifest.objects[name]
    try:
        fetch_file(store.transport, name, size, digest, path)
    except LostFile:
        return Problem(name, "missing", "expected a file")
    except CorruptStore:
        return Problem(name, "hash", f"SHA-256 is not {digest}")
    return None
