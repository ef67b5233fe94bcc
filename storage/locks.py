"""Writers of one folder, one after the other: advisory locks that die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder, which must exist; wait for those who hold it against us.

    Guards against this machine's processes and threads. Where the file system has no such locks
    (some network ones) nothing is held: writing is idempotent, so equal writers need none.

    Args:
        shared: hold it together with other sharers.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # lets go of the lock
