"""The files of an archive: a folder, or one zip read in place. Names are checked, links refused."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from storage.archives.errors import BadRecord
from storage.errors import UsageError

MAX_RECORD = 256 << 20  # bytes of one file inside an archive


class ArchiveSource:
    """Read-only view of an archive. A context manager; `names` are relative, `/` between parts.

    refused: names that can't be read, each with the reason (path tricks, links).
    """

    def __init__(self, path: Path | str) -> None:
        """Open a folder or a zip file.

        Raises:
            UsageError: no such folder or file, or a file that is no zip.
        """
        self.path = Path(path)
        self.refused: dict[str, str] = {}
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        if self.path.is_dir():
            self.names = sorted(self._folder_names())
        elif self.path.is_file():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except Exception as error:  # zipfile raises many types on damaged archives
                raise UsageError(
                    f"{self.path} is no zip archive ({error}): give the unpacked folder or a .zip"
                ) from error
            self.names = sorted(self._zip_names(self._zip))
        else:
            raise UsageError(f"no archive at {self.path}: give the unpacked folder or a .zip")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._zip is not None:
            self._zip.close()

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            BadRecord: damaged in the zip, too large, or unreadable.
        """
        try:
            if self._zip is None:
                return self._read_file(self.path / name)
            info = self._members[name]
            if info.file_size > MAX_RECORD:
                raise BadRecord(f"unpacks to {info.file_size} bytes; labels have {MAX_RECORD}")
            with self._zip.open(info) as file:
                return file.read(MAX_RECORD + 1)
        except BadRecord:
            raise
        except Exception as error:  # zipfile, zlib and the system raise many types
            raise BadRecord(f"can't be read: {str(error)[:120]}") from error

    def _read_file(self, path: Path) -> bytes:
        # no link is followed, also none that was put there since the listing
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BadRecord("is no plain file")
            data = file.read(MAX_RECORD + 1)
        if len(data) > MAX_RECORD:
            raise BadRecord(f"has more than {MAX_RECORD} bytes")
        return data

    def _folder_names(self) -> Iterator[str]:
        for folder, subfolders, files in os.walk(self.path, followlinks=False):
            base = Path(folder)
            for name in (*subfolders, *files):
                relative = (base / name).relative_to(self.path).as_posix()
                if (base / name).is_symlink():
                    self.refused[relative] = "is a link: refused"
                elif name in files:
                    yield relative

    def _zip_names(self, archive: zipfile.ZipFile) -> Iterator[str]:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")
            if info.is_dir():
                continue
            reason = name_problem(name)
            if stat.S_ISLNK(info.external_attr >> 16):
                reason = "is a link: refused"
            elif name in self._members:
                reason = "is there twice: refused"
            if reason:
                self.refused[name] = reason
            else:
                self._members[name] = info
                yield name


def name_problem(name: str) -> str | None:
    """Why a name of an archive must not be used as a path, or None."""
    if not name or "\0" in name:
        return "is an empty name or has a NUL: refused"
    if PurePosixPath(name).is_absolute() or name[1:2] == ":":
        return "is an absolute path: refused"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has an empty, '.' or '..' part: refused"
    return None
