"""What lies in a store's folder: one walk that follows no link and opens no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILE, FOLDER, LINK, OTHER = "file", "folder", "link", "other"


@dataclass(frozen=True, slots=True)
class Found:
    """Something on disk.

    kind: `FILE`, `FOLDER`, `LINK`, or `OTHER` (a device, a pipe).
    size: bytes.
    identity: differs once another file has its place, or it was written to.
    """

    kind: str
    size: int
    identity: tuple[int, int, int]


def list_folder(root: Path) -> dict[str, Found]:
    """Everything below a folder by its path there, `/` between parts; {} where there is none.

    What vanishes meanwhile is left out.
    """
    found: dict[str, Found] = {}
    left = [("", str(root))]
    while left:
        prefix, folder = left.pop()
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            try:
                item = _found(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            name = prefix + entry.name
            found[name] = item
            if item.kind == FOLDER:
                left.append((f"{name}/", entry.path))
    return found


def look(path: Path) -> Found | None:
    """One path as `list_folder` sees it; None where nothing is."""
    try:
        return _found(path.lstat())
    except OSError:
        return None


def folders_of(names: Iterable[str]) -> set[str]:
    """All folders that files of these names lie in."""
    found: set[str] = set()
    for name in names:
        folder = name.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _found(status: os.stat_result) -> Found:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        kind = FILE
    elif stat.S_ISDIR(mode):
        kind = FOLDER
    else:
        kind = LINK if stat.S_ISLNK(mode) else OTHER
    return Found(kind, status.st_size, (status.st_ino, status.st_size, status.st_mtime_ns))
