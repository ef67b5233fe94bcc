"""Image folders as a source: one file, one image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UsageError
from storage.images import ImageFolder
from trainer.sources.base import CHUNK_IMAGES, Content, stamp_files


@dataclass(frozen=True)
class FileChunk:
    """Image files."""

    paths: tuple[Path, ...]

    def read(self) -> Iterator[Content]:
        """The files' bytes; a file that has gone is no reason to stop."""
        for path in self.paths:
            try:
                yield path.read_bytes()
            except OSError as error:
                yield error


@dataclass(frozen=True)
class FolderSource:
    """The images of a folder, classes by the names of its folders.

    Raises:
        UsageError: a beton, which is packed already.
    """

    folder: ImageFolder

    def __post_init__(self) -> None:
        if self.folder.root.is_file():
            raise UsageError(
                f"{self.folder.root} is packed already: give the images that it was made from"
            )

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.folder.root)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.root.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        return self.folder.classes

    @property
    def keys(self) -> tuple[str, ...]:
        """Paths below the folder."""
        return self.folder.keys

    @property
    def targets(self) -> tuple[int, ...]:
        """Number of each file's class folder."""
        return self.folder.targets

    def __len__(self) -> int:
        return len(self.folder)

    def chunks(self) -> Iterator[FileChunk]:
        """Files in the order of their keys."""
        for start in range(0, len(self), CHUNK_IMAGES):
            stop = min(start + CHUNK_IMAGES, len(self))
            yield FileChunk(tuple(map(self.folder.path, range(start, stop))))

    def stamp(self) -> str:
        """Of the files, and of the folder's own place."""
        paths = map(self.folder.path, range(len(self)))
        place = str(self.folder.root.resolve())
        return hashlib.sha256(f"{place}\0{stamp_files(paths, self.keys)}".encode()).hexdigest()
