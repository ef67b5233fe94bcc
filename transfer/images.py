"""Labelled images to probe on: class folders, Tiny-ImageNet's own val folder, STL-10's archive."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from storage.errors import UsageError
from storage.images import ImageFolder, content_digest, scan_folder
from storage.pixels import decode_rgb

ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's val: file, class, box, by tabs
STL10 = "stl10:"  # stl10:ROOT, where ROOT/stl10_binary holds the published files


class LabelledImages(Protocol):
    """Images with a class each."""

    @property
    def location(self) -> str:
        """Where they lie, for people."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of `targets`."""

    @property
    def targets(self) -> tuple[int, ...]:
        """Class of every image."""

    def name(self, row: int) -> str:
        """Name of an image, for people."""

    def content(self, row: int) -> bytes:
        """The bytes that are the image's identity."""

    def decode(self, row: int) -> Image.Image:
        """An RGB image; raises BadImage or OSError."""


@dataclass(frozen=True)
class FolderImages:
    """Image files of a folder."""

    folder: ImageFolder

    @property
    def location(self) -> str:
        """Root of the folder."""
        return str(self.folder.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders."""
        return self.folder.classes

    @property
    def targets(self) -> tuple[int, ...]:
        """Class of every file."""
        return self.folder.targets

    def name(self, row: int) -> str:
        """Path below the root."""
        return self.folder.keys[row]

    def content(self, row: int) -> bytes:
        """The encoded file; nothing where it can't be read."""
        try:
            return self.folder.path(row).read_bytes()
        except OSError:
            return b""

    def decode(self, row: int) -> Image.Image:
        """The decoded file."""
        return decode_rgb(self.folder.path(row).read_bytes())


@dataclass(frozen=True, eq=False)
class Stl10Images:
    """A labelled split of STL-10, read by torchvision."""

    root: str
    split: str
    images: Any  # torchvision.datasets.STL10

    @property
    def location(self) -> str:
        """As it was given, with its split."""
        return f"{STL10}{self.root} ({self.split})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten names of the archive."""
        return tuple(self.images.classes)

    @property
    def targets(self) -> tuple[int, ...]:
        """Class of every image."""
        return tuple(int(label) for label in self.images.labels)

    def name(self, row: int) -> str:
        """Number within the split."""
        return f"{self.split} {row}"

    def content(self, row: int) -> bytes:
        """The raw pixels."""
        return bytes(np.ascontiguousarray(self.images.data[row]))

    def decode(self, row: int) -> Image.Image:
        """96 x 96 pixels."""
        return self.images[row][0]


def open_labelled(location: str, split: str) -> LabelledImages:
    """Labelled images by where they lie.

    Args:
        location: a folder of class folders; Tiny-ImageNet's `val` as it is published; or
            `stl10:ROOT`.
        split: `train` or `test`, read where the location holds both.
    Raises:
        UsageError: nothing there, no classes, or annotations that don't fit their images.
    """
    if location.startswith(STL10):
        return _open_stl10(location.removeprefix(STL10), split)
    root = Path(location)
    if (root / ANNOTATIONS).is_file():
        return FolderImages(_annotated(root))
    folder = scan_folder(root)
    if not folder.classes:
        raise UsageError(
            f"{root} has no class folders: a probe needs root/class/image files, Tiny-ImageNet's "
            f"val with its {ANNOTATIONS}, or {STL10}ROOT"
        )
    return FolderImages(folder)


def fingerprint(images: LabelledImages) -> tuple[str, frozenset[bytes]]:
    """Hex SHA-256 of all names, classes and contents, and the contents' own digests."""
    total, seen = hashlib.sha256(), set()
    for row, target in enumerate(images.targets):
        digest = content_digest(images.content(row))
        seen.add(digest)
        total.update(f"{images.name(row)}\0{images.classes[target]}\0".encode() + digest)
    return total.hexdigest(), frozenset(seen)


def _annotated(root: Path) -> ImageFolder:
    listed: dict[str, str] = {}
    for number, line in enumerate((root / ANNOTATIONS).read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0] or not fields[1] or "/" in fields[0]:
            raise UsageError(
                f"{root / ANNOTATIONS}, line {number} is {line[:60]!r}; expected a file name and "
                "a class, separated by a tab"
            )
        listed[fields[0]] = fields[1]
    keys = scan_folder(root).keys
    unlisted = [key for key in keys if Path(key).name not in listed]
    absent = sorted(listed.keys() - {Path(key).name for key in keys})
    if unlisted or absent:
        raise UsageError(
            f"{root}: {len(unlisted)} images have no line in {ANNOTATIONS} and {len(absent)} "
            f"lines have no image, such as {(unlisted + absent)[0]}"
        )
    classes = sorted(set(listed.values()))
    targets = tuple(classes.index(listed[Path(key).name]) for key in keys)
    return ImageFolder(root=root, keys=keys, targets=targets, classes=tuple(classes))


def _open_stl10(root: str, split: str) -> Stl10Images:
    from torchvision import datasets

    try:
        return Stl10Images(root, split, datasets.STL10(root, split=split, download=False))
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(
            f"{STL10}{root} holds no STL-10 that torchvision reads ({error}): expected "
            f"{root}/stl10_binary with the published files"
        ) from error
