"""Labelled images by where they lie: class folders, Tiny-ImageNet's val, data sets by name."""

from __future__ import annotations

import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.atomic import TEMPORARY
from storage.errors import UsageError
from storage.images import ImageFolder, content_digest, scan_folder

ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's val: file, class, box, by tabs


class LabelledImages(Protocol):
    """Images with a class each."""

    @property
    def location(self) -> str:
        """Where they lie, for people."""

    @property
    def folder_of_origin(self) -> Path:
        """The folder that would hold their licence."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of `targets`."""

    @property
    def targets(self) -> tuple[int, ...]:
        """Class of every image."""

    def name(self, row: int) -> str:
        """Name of an image, for people."""

    def content(self, row: int) -> bytes:
        """The bytes that are the image's identity; nothing where they can't be read."""

    def decode(self, row: int) -> Image.Image:
        """An RGB image; raises BadImage or OSError."""

    def encoded(self, row: int) -> tuple[bytes, str]:
        """An image file, and the ending of its name."""


@dataclass(frozen=True)
class FolderImages:
    """Image files below a folder, of class folders or as a list says.

    Attributes:
        described: the data set and the split, where it isn't the folder. origin: the data set's
            own folder, where it isn't the root.
    """

    folder: ImageFolder
    described: str | None = None
    origin: Path | None = None

    @property
    def location(self) -> str:
        """Root of the folder, or data set and split."""
        return self.described or str(self.folder.root)

    @property
    def folder_of_origin(self) -> Path:
        """Root of the data set."""
        return self.origin or self.folder.root

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.folder.classes

    @property
    def targets(self) -> tuple[int, ...]:
        """Class of every file."""
        return self.folder.targets

    def name(self, row: int) -> str:
        """Path below the root."""
        return self.folder.keys[row]

    def content(self, row: int) -> bytes:
        """The encoded file."""
        try:
            return self.folder.read(row).data
        except OSError:
            return b""

    def decode(self, row: int) -> Image.Image:
        """The decoded file."""
        return self.folder.read(row).rgb()

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The file itself."""
        return self.content(row), self.folder.path(row).suffix


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of equal size that a library has read into memory.

    Attributes:
        pixels: uint8 [N, H, W, 3]. split: of which they are, for people.
    """

    location: str
    folder_of_origin: Path
    split: str
    classes: tuple[str, ...]
    targets: tuple[int, ...]
    pixels: npt.NDArray[np.uint8]

    def name(self, row: int) -> str:
        """Number within the split."""
        return f"{self.split} {row}"

    def content(self, row: int) -> bytes:
        """The raw pixels."""
        return bytes(self.pixels[row].tobytes())

    def decode(self, row: int) -> Image.Image:
        """The pixels as they are."""
        return Image.fromarray(np.ascontiguousarray(self.pixels[row]))

    def encoded(self, row: int) -> tuple[bytes, str]:
        """A PNG without compression: the same bytes whatever the compressor's release."""
        file = io.BytesIO()
        self.decode(row).save(file, "PNG", compress_level=0)
        return file.getvalue(), ".png"


def open_labelled(location: str, split: str) -> LabelledImages:
    """Labelled images by where they lie.

    Args:
        location: a folder of class folders; Tiny-ImageNet's `val` as it is published; or a data
            set of `transfer.published` as NAME:ROOT.
        split: `train` or `test`, read where the location holds both.
    Raises:
        UsageError: nothing there, no classes, or annotations that don't fit their images.
    """
    from transfer.published import NAMES, open_published

    if is_published(location):
        name, _, root = location.partition(":")
        return open_published(name, root, split)
    folder = Path(location)
    if (folder / ANNOTATIONS).is_file():
        return FolderImages(_annotated(folder))
    found = scan_folder(folder)
    if not found.classes:
        raise UsageError(
            f"{folder} has no class folders: expected root/class/image files, Tiny-ImageNet's val "
            f"with its {ANNOTATIONS}, or NAME:ROOT of {', '.join(NAMES)}"
        )
    return FolderImages(found)


def is_published(location: str) -> bool:
    """Whether a location names a data set, which has both splits."""
    from transfer.published import NAMES

    name, colon, _ = location.partition(":")
    return bool(colon) and name in NAMES


def fingerprint(images: LabelledImages) -> tuple[str, frozenset[bytes]]:
    """Hex SHA-256 of all names, classes and contents, and the contents' own digests."""
    total, seen = hashlib.sha256(), set()
    for row, target in enumerate(images.targets):
        digest = content_digest(images.content(row))
        seen.add(digest)
        total.update(f"{images.name(row)}\0{images.classes[target]}\0".encode() + digest)
    return total.hexdigest(), frozenset(seen)


def as_folder(images: LabelledImages, cache: Path) -> ImageFolder:
    """The images as files: those they are, or written once below `cache`."""
    if isinstance(images, FolderImages):
        return images.folder
    keys = tuple(f"{row:07d}" for row in range(len(images.targets)))
    if not cache.exists():
        temporary = cache.with_name(f"{TEMPORARY}{cache.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        temporary.mkdir(parents=True)
        for row, key in enumerate(keys):
            content, suffix = images.encoded(row)
            (temporary / (key + suffix)).write_bytes(content)
        temporary.replace(cache)
    files = sorted(path.name for path in cache.iterdir())
    if tuple(name.partition(".")[0] for name in files) != keys:
        raise UsageError(f"{cache} has other files than were written there: remove the folder")
    return ImageFolder(
        root=cache, keys=tuple(files), targets=images.targets, classes=images.classes
    )


def _annotated(root: Path) -> ImageFolder:
    listed_classes: dict[str, str] = {}
    for number, line in enumerate((root / ANNOTATIONS).read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0] or not fields[1] or "/" in fields[0]:
            raise UsageError(
                f"{root / ANNOTATIONS}, line {number} is {line[:60]!r}; expected a file name and "
                "a class, separated by a tab"
            )
        listed_classes[fields[0]] = fields[1]
    keys = scan_folder(root).keys
    unlisted = [key for key in keys if Path(key).name not in listed_classes]
    absent = sorted(listed_classes.keys() - {Path(key).name for key in keys})
    if unlisted or absent:
        raise UsageError(
            f"{root}: {len(unlisted)} images have no line in {ANNOTATIONS} and {len(absent)} "
            f"lines have no image, such as {(unlisted + absent)[0]}"
        )
    classes = sorted(set(listed_classes.values()))
    targets = tuple(classes.index(listed_classes[Path(key).name]) for key in keys)
    return ImageFolder(root=root, keys=keys, targets=targets, classes=tuple(classes))
