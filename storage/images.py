"""Image folders: which files there are, which class each belongs to, what identifies them.

Two layouts are read: an ImageFolder tree (`root/class/.../name.jpg`, classes are the sorted
top-level folder names) and a flat folder (`root/name.jpg`, no classes).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from storage.errors import UsageError
from storage.pixels import IMAGE_SUFFIXES

NO_TARGET = -1  # images/target of an image without a class


class ImageStatus(IntEnum):
    """images/status of a store: whether an image was labelled, and if not, why."""

    OK = 0
    UNREADABLE = 1  # empty, truncated, corrupt or of an unknown format: masked
    MISSING = 2  # the file vanished or could not be read between listing and labelling
    UNWRITTEN = 255  # fill value: the block has not been labelled yet


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images below one root, in the order that every store and beton uses.

    `keys` are POSIX paths relative to `root`, sorted; `targets` index `classes`
    (`NO_TARGET` in a flat folder).
    """

    root: Path
    keys: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, row: int) -> Path:
        """File of one image."""
        return self.root / self.keys[row]


def scan_folder(root: Path | str) -> ImageFolder:
    """List the images of a folder, ImageFolder tree or flat.

    Hidden files and folders are passed over; files without an image suffix too.

    Raises:
        UsageError: no such folder, no images in it, or images both at the top and in class
            folders (it would be unclear which class the former have).
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(
            f"{root} is not a folder: give the image folder with --data or $TEACHONCE_DATA"
        )
    keys = sorted(_image_keys(root))
    if not keys:
        raise UsageError(
            f"{root} holds no images (looked for {', '.join(IMAGE_SUFFIXES)}): "
            "give an ImageFolder tree or a flat folder of images with --data"
        )
    top_level = [key for key in keys if "/" not in key]
    if len(top_level) == len(keys):
        return ImageFolder(
            root=root, keys=tuple(keys), targets=(NO_TARGET,) * len(keys), classes=()
        )
    if top_level:
        raise UsageError(
            f"{root} mixes images at the top ({top_level[0]}) with class folders: move them "
            "into a class folder, or label the class folders alone"
        )
    classes = sorted({key.split("/", 1)[0] for key in keys})
    index = {name: i for i, name in enumerate(classes)}
    targets = tuple(index[key.split("/", 1)[0]] for key in keys)
    return ImageFolder(root=root, keys=tuple(keys), targets=targets, classes=tuple(classes))


def _image_keys(root: Path) -> list[str]:
    keys = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = Path(folder).relative_to(root).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        keys += [
            prefix + name
            for name in names
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
        ]
    return keys


def content_digest(data: bytes) -> bytes:
    """SHA-256 of the encoded file: the identity of an image in stores and betons."""
    return hashlib.sha256(data).digest()


def class_order_hash(classes: Sequence[str]) -> str:
    """Hex SHA-256 that binds class names and their order."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
