"""Data sets as they are published, on disk: torchvision reads them, nothing is downloaded.

Splits are those of the transfer literature: DTD's first split with train1 and val1 joined,
Caltech-256's first 60 images of every class by number (KDEP), Flowers-102's train and val joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import UsageError
from storage.images import ImageFolder
from transfer.hf_images import open_hf
from transfer.images import ArrayImages, FolderImages, LabelledImages

CALTECH_TRAIN = 60  # images of a class

Opener = Callable[[str, str], LabelledImages]
Origin = tuple[str, str, str]  # name of the data set, ROOT, split


def open_published(name: str, root: str, split: str) -> LabelledImages:
    """A split of a data set.

    Args:
        name: one of NAMES. root: the folder that torchvision is given; of `hf`, see
            `transfer.hf_images.open_hf`.
        split: `train` or `test`.
    Raises:
        UsageError: the data set is not there, or not as it was published.
    """
    try:
        return _OPENERS[name](root, split)
    except (RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
        raise UsageError(
            f"{name}:{root} can't be read ({' '.join(str(error).split())}): expected the published "
            f"files of {_CONTENTS[name]} (nothing is downloaded)"
        ) from error
    except ImportError as error:
        raise UsageError(
            f"{name} needs a library that is not installed ({error}): pip install {error.name}"
        ) from error


def _stl10(root: str, split: str) -> ArrayImages:
    from torchvision import datasets

    images = datasets.STL10(root, split=split, download=False)
    return _array("stl10", root, split, images.classes, images.labels,
                  images.data.transpose(0, 2, 3, 1))  # fmt: skip


def _cifar(name: str) -> Opener:
    def read(root: str, split: str) -> ArrayImages:
        from torchvision import datasets

        # torchvision unpickles these files, but only after their published MD5 was confirmed
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        images = kind(root, train=split == "train", download=False)
        return _array(name, root, split, images.classes, images.targets, images.data)

    return read


def _array(name: str, root: str, split: str, classes: Any, labels: Any, pixels: Any) -> ArrayImages:
    targets = tuple(int(label) for label in labels)
    return ArrayImages(
        f"{name}:{root} ({split})", Path(root), split, tuple(classes), targets, np.asarray(pixels)
    )


def _dtd(root: str, split: str) -> FolderImages:
    from torchvision import datasets

    parts = [
        datasets.DTD(root, split=part, partition=1, download=False, loader=str)
        for part in (("train", "val") if split == "train" else ("test",))
    ]
    folder = Path(root) / "dtd" / "dtd" / "images"
    return _by_path(
        ("dtd", root, split),
        folder,
        parts,
        sorted({name for part in parts for name in part.classes}),
    )


def _flowers(root: str, split: str) -> FolderImages:
    from torchvision import datasets

    parts = [
        datasets.Flowers102(root, split=part, download=False, loader=str)
        for part in (("train", "val") if split == "train" else ("test",))
    ]
    folder = Path(root) / "flowers-102" / "jpg"
    return _by_path(("flowers102", root, split), folder, parts, datasets.Flowers102.classes)


def _by_path(origin: Origin, folder: Path, parts: list[Any], classes: list[str]) -> FolderImages:
    """Data sets of torchvision whose loader hands back the path; classes go by name."""
    number = {name: row for row, name in enumerate(classes)}
    files = [
        (Path(path).relative_to(folder).as_posix(), number[part.classes[label]])
        for part in parts
        for path, label in (part[row] for row in range(len(part)))
    ]
    return _listed(origin, folder, files, classes)


def _pets(root: str, split: str) -> FolderImages:
    from torchvision import datasets

    images = datasets.OxfordIIITPet(
        root, split="trainval" if split == "train" else "test", download=False
    )
    folder = Path(root) / "oxford-iiit-pet" / "images"
    # it has no loader to ask for paths
    files = [(path.name, label) for path, label in zip(images._images, images._labels, strict=True)]
    return _listed(("pets", root, split), folder, files, images.classes)


def _caltech(root: str, split: str) -> FolderImages:
    from torchvision import datasets

    folder = Path(root) / "caltech256" / "256_ObjectCategories"
    if not folder.is_dir():  # torchvision would make an empty folder first
        raise FileNotFoundError(f"no folder {folder}")
    images = datasets.Caltech256(root, download=False)
    files = [
        (f"{images.categories[label]}/{label + 1:03d}_{number:04d}.jpg", label)
        for label, number in zip(images.y, images.index, strict=True)
        if (number <= CALTECH_TRAIN) == (split == "train")
    ]
    return _listed(("caltech256", root, split), folder, files, images.categories)


def _cub(root: str, split: str) -> FolderImages:
    """CUB-200-2011 by its own lists; torchvision has no reader."""
    folder = Path(root)
    if (folder / "CUB_200_2011").is_dir():
        folder = folder / "CUB_200_2011"
    paths, labels, is_train, classes = (
        _numbered(folder / f"{name}.txt")
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    if not paths.keys() == labels.keys() == is_train.keys():
        raise ValueError("its lists name different images")
    numbers = {number: row for row, number in enumerate(classes)}
    wanted = "1" if split == "train" else "0"
    files = [(paths[key], numbers[labels[key]]) for key in paths if is_train[key] == wanted]
    return _listed(("cub200", root, split), folder / "images", files, list(classes.values()))


def _listed(
    origin: Origin, folder: Path, files: list[tuple[str, int]], classes: Sequence[str]
) -> FolderImages:
    """Images of a list: paths below a folder, each with its class."""
    name, root, split = origin
    ordered = sorted(files)
    images = ImageFolder(
        root=folder,
        keys=tuple(key for key, _ in ordered),
        targets=tuple(target for _, target in ordered),
        classes=tuple(classes),
    )
    return FolderImages(images, f"{name}:{root} ({split})", Path(root))


def _numbered(path: Path) -> dict[str, str]:
    """Lines of a number and a value."""
    found = {}
    for line in path.read_text().splitlines():
        number, _, value = line.strip().partition(" ")
        if not value:
            raise ValueError(f"{path.name} has a line {line[:60]!r}; expected a number and a value")
        found[number] = value
    return found


_OPENERS: dict[str, Opener] = {
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "dtd": _dtd,
    "caltech256": _caltech,
    "cub200": _cub,
    "flowers102": _flowers,
    "pets": _pets,
    "stl10": _stl10,
    "hf": open_hf,
}
NAMES = tuple(_OPENERS)
_CONTENTS = {
    "cifar10": "CIFAR-10 in ROOT/cifar-10-batches-py",
    "cifar100": "CIFAR-100 in ROOT/cifar-100-python",
    "dtd": "DTD in ROOT/dtd/dtd",
    "caltech256": "Caltech-256 in ROOT/caltech256/256_ObjectCategories",
    "cub200": "CUB-200-2011 in ROOT or ROOT/CUB_200_2011",
    "flowers102": "Flowers-102 in ROOT/flowers-102",
    "pets": "Oxford-IIIT Pet in ROOT/oxford-iiit-pet",
    "stl10": "STL-10 in ROOT/stl10_binary",
    "hf": "a Hugging Face image data set in ROOT",
}
