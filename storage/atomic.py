"""Whole files or none: write beside, flush to disk, rename."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

TEMPORARY = ".teachonce-"  # prefix of files that a killed process may leave behind


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees the old file or the whole new one.

    The bytes and their folder entry are on the disk when this returns. On any error (no space
    left, killed) the path holds the old file or the whole new one, never a part.

    Raises:
        OSError: the system's own error, with `path` as its file name.
    """
    temporary = path.parent / f"{TEMPORARY}{path.name}.{os.getpid()}.{threading.get_ident()}"
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        _remove(temporary)
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each entry flushed to disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut.

    Raises:
        OSError: the system's own error, with `folder` as its file name.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
