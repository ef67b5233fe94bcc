"""Exported files: whole or not there, but not flushed one by one (a million small ones)."""

from __future__ import annotations

import os
from pathlib import Path

from storage.atomic import TEMPORARY


def write_renamed(path: Path, data: bytes) -> None:
    """Write beside and rename: a killed export leaves no half file under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}.{os.getpid()}"
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
