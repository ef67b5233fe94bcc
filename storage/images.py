"""Images to label or train on: which there are, which class each belongs to, what identifies them.

Two layouts of folders are read: an ImageFolder tree (`root/class/.../name.jpg`, classes are the
sorted top-level folder names) and a flat folder (`root/name.jpg`, no classes). A beton
(`storage.beton`) stands for a folder wherever one is read: its keys name its rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from PIL import Image

from storage.errors import BadImage, UsageError
from storage.pixels import IMAGE_SUFFIXES, decode_rgb

NO_TARGET = -1  # images/target of an image without a class


class ImageStatus(IntEnum):
    """images/status of a store: whether an image was labelled, and if not, why."""

    OK = 0
    UNREADABLE = 1  # empty, truncated, corrupt or of an unknown format: masked
    MISSING = 2  # the file vanished or could not be read between listing and labelling
    UNWRITTEN = 255  # fill value: the block has not been labelled yet


@dataclass(frozen=True)
class ImageBytes:
    """What is kept of one image: an encoded file, or RGB pixels.

    Attributes:
        digest: SHA-256 of the encoded file, also where only its pixels are kept.
        data: the file's bytes, or pixels row by row.
        shape: (height, width) of the pixels; None: `data` is an encoded file.
        problem: why there is no image, where that was found when it was packed.
    """

    digest: bytes
    data: bytes
    shape: tuple[int, int] | None = None
    problem: str = ""

    def rgb(self) -> Image.Image:
        """The decoded image, step 1 of the pixel contract.

        Raises:
            BadImage: there is no image, or it can't be decoded.
        """
        if self.problem:
            raise BadImage(self.problem)
        if self.shape is None:
            return decode_rgb(self.data)
        return Image.frombytes("RGB", (self.shape[1], self.shape[0]), self.data)


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images below one root, in the order that every store and beton uses.

    `root` is a folder and `keys` are POSIX paths relative to it, sorted; or `root` is a beton and
    `keys` are those of its rows, in their order. `targets` index `classes` (`NO_TARGET` in a flat
    folder). `reencoded`: how a beton's images were encoded anew, None where they weren't.
    """

    root: Path
    keys: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    reencoded: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, row: int) -> Path:
        """File of one image; of a folder's only."""
        return self.root / self.keys[row]

    def read(self, row: int) -> ImageBytes:
        """The bytes of one image; see `read_image`."""
        return read_image(self.root, self.keys[row])


def read_image(root: Path | str, key: str) -> ImageBytes:
    """The bytes of one image below a folder, or of a beton.

    Raises:
        OSError: it can't be read, or is masked as missing.
    """
    root = Path(root)
    if root.is_file():
        from storage import beton

        return beton.read_image(root, key)
    data = (root / key).read_bytes()
    return ImageBytes(content_digest(data), data)


def has_image(root: Path | str, key: str) -> bool:
    """Whether there is such an image now: a file, or a row that isn't masked as missing."""
    root = Path(root)
    if not root.is_file():
        return (root / key).is_file()
    try:
        read_image(root, key)
    except OSError:
        return False
    return True


def scan_folder(root: Path | str) -> ImageFolder:
    """List the images of a folder, ImageFolder tree or flat, or of a beton.

    Hidden files and folders are passed over; files without an image suffix too.

    Raises:
        UsageError: no such folder, no images in it, or images both at the top and in class
            folders (it would be unclear which class the former have).
        StoreError: a beton that can't be read.
    """
    root = Path(root)
    if root.is_file():
        from storage import beton

        if root.suffix == beton.SUFFIX:
            return beton.Beton.open(root).listing()
        raise UsageError(
            f"{root} is neither a folder nor a beton: make a beton of it with "
            f"`trainer pack --data {root}`"
        )
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
