"""Images and their masks: where data sets keep them, what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.errors import BadImage, UsageError
from storage.images import content_digest
from storage.pixels import decode_rgb
from storage.progress import Progress
from transfer.segment.masks import CLASSES_NAME, ClassTable, decode_mask, read_classes
from transfer.segment.settings import IGNORED

LAYOUTS = ("voc", "cityscapes", "ade20k", "folder")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
ADE_CLASSES = 150
_LISTED = 3  # names of a message
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """An image and its mask. name: for people."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class SegmentData:
    """A data set as it lies on disk, unread.

    Attributes:
        layout: one of LAYOUTS. location: as it was given.
        notes: what people should know.
    """

    layout: str
    location: str
    root: Path
    table: ClassTable
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """The images of a split that can be decoded.

    Attributes:
        pixels: int64 [C], of each class. images: int64 [C], that show it.
        digest: of all names and bytes.
    """

    pairs: tuple[Pair, ...]
    pixels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    digest: str
    bad: tuple[str, ...]


def open_data(location: str) -> SegmentData:
    """A data set by where it lies.

    Args:
        location: a folder with images/{train,val}, masks/{train,val} and classes.json; or
            `voc:ROOT` (ROOT/VOCdevkit/VOC2012), `cityscapes:ROOT` (leftImg8bit, gtFine),
            `ade20k:ROOT` (images and annotations, each with training and validation).
    Raises:
        UsageError: nothing of the kind there, images without masks, or an empty split.
    """
    layout, colon, rest = location.partition(":")
    if not colon or layout not in LAYOUTS:
        layout, rest = "folder", location
    root = Path(rest)
    if not root.is_dir():
        raise UsageError(
            f"no folder at {root}: give --data FOLDER, or one of "
            f"{', '.join(f'{name}:ROOT' for name in LAYOUTS[:-1])}"
        )
    readers = {"voc": _voc, "cityscapes": _cityscapes, "ade20k": _ade20k, "folder": _folder}
    table, train, val, notes = readers[layout](root)
    for name, pairs in (("training", train), ("validation", val)):
        if not pairs:
            raise UsageError(f"{location} has no {name} images: put some there")
        missing = [pair for pair in pairs if not pair.mask.is_file()]
        if missing:
            raise UsageError(
                f"no mask for {len(missing)} of the {len(pairs)} {name} images of {location}, such "
                f"as {missing[0].name} (expected {missing[0].mask}): add it, or take the image out"
            )
    return SegmentData(layout, location, root, table, tuple(train), tuple(val), tuple(notes))


Found = tuple[ClassTable, list[Pair], list[Pair], list[str]]


def _folder(root: Path) -> Found:
    table = read_classes(root / CLASSES_NAME)
    train, val = (_by_stem(root, "images", "masks", split) for split in ("train", "val"))
    return table, train, val, []


def _ade20k(root: Path) -> Found:
    names = tuple(f"class {i}" for i in range(1, ADE_CLASSES + 1))
    listed = root / "objectInfo150.txt"
    if listed.is_file():
        rows = [line.split("\t") for line in listed.read_text().splitlines()[1:] if line.strip()]
        if len(rows) == ADE_CLASSES:
            names = tuple(row[-1].strip().split(",")[0] for row in rows)
    ids = tuple(range(1, ADE_CLASSES + 1))
    table = ClassTable(names, ids, frozenset({0}), "ADE20K's scene-parsing benchmark")
    train, val = (
        _by_stem(root, "images", "annotations", split) for split in ("training", "validation")
    )
    return table, train, val, []


def _by_stem(root: Path, images: str, masks: str, split: str) -> list[Pair]:
    """Images of a split's folder, each with the PNG of its name."""
    folder = root / images / split
    if not folder.is_dir():
        raise UsageError(
            f"{root} has no folder {images}/{split}: expected {images}/ and {masks}/ with the same "
            "split folders"
        )
    return [
        Pair(str(path.relative_to(root)), path,
             (root / masks / split / path.relative_to(folder)).with_suffix(".png"))
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]  # fmt: skip


def _voc(root: Path) -> Found:
    from torchvision.datasets import VOCSegmentation

    table = ClassTable(VOC_CLASSES, tuple(range(21)), frozenset({255}), "PASCAL VOC")
    base = root / "VOCdevkit" / "VOC2012"
    try:
        sets = [VOCSegmentation(str(root), "2012", split) for split in ("train", "val")]
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"{root} is not VOC 2012's segmentation ({error}): expected VOCdevkit/VOC2012 with "
            "ImageSets/Segmentation, JPEGImages and SegmentationClass in it"
        ) from error
    train, val = (_pairs(zip(one.images, one.masks, strict=True), base) for one in sets)
    listed, masks = base / "ImageSets/Segmentation/trainaug.txt", base / "SegmentationClassAug"
    if listed.is_file() and masks.is_dir():
        names = listed.read_text().split()
        stems = [Path(name).stem for name in dict.fromkeys(names) if not name.endswith(".png")]
        train = [Pair(f"JPEGImages/{stem}.jpg", base / "JPEGImages" / f"{stem}.jpg",
                      masks / f"{stem}.png") for stem in dict.fromkeys(stems)]  # fmt: skip
        return table, train, val, []
    return (
        table,
        train,
        val,
        [
            f"learns VOC's own {len(train)} training images: the published runs learn the 10,582 "
            "of trainaug, which need ImageSets/Segmentation/trainaug.txt and SegmentationClassAug"
        ],
    )


def _cityscapes(root: Path) -> Found:
    from torchvision.datasets import Cityscapes

    learnt = [one for one in Cityscapes.classes if 0 <= one.train_id < IGNORED]
    learnt.sort(key=lambda one: one.train_id)
    ignored = {one.id for one in Cityscapes.classes if one.id >= 0} - {one.id for one in learnt}
    table = ClassTable(
        tuple(one.name for one in learnt),
        tuple(one.id for one in learnt),
        frozenset(ignored | {255}),  # -1, the licence plate, in 8 bits
        "Cityscapes' labelIds",
    )
    if not (root / "leftImg8bit" / "train").is_dir():  # torchvision would unpack archives
        raise UsageError(
            f"{root} is not Cityscapes: expected leftImg8bit/{{train,val}} and gtFine/{{train,val}}"
        )
    try:
        sets = [Cityscapes(str(root), split, "fine", "semantic") for split in ("train", "val")]
    except RuntimeError as error:
        raise UsageError(f"{root} is not Cityscapes ({error})") from error
    train, val = (
        _pairs(sorted(zip(one.images, (t[0] for t in one.targets), strict=True)), root)
        for one in sets
    )
    return table, train, val, []


def _pairs(found: object, root: Path) -> list[Pair]:
    return [
        Pair(str(Path(image).relative_to(root)), Path(image), Path(mask))
        for image, mask in found  # type: ignore[attr-defined]
    ]


def read_pair(pair: Pair, table: ClassTable) -> tuple[Image.Image, Pixels]:
    """The RGB image, and its mask as uint8 [H, W] of class numbers and IGNORED.

    Raises:
        BadImage, OSError: the image can't be decoded. UsageError: see `decode_mask`.
    """
    image = decode_rgb(pair.image.read_bytes())
    return image, decode_mask(pair.mask.read_bytes(), str(pair.mask), table, image.size)


def scan(pairs: Sequence[Pair], table: ClassTable, label: str, threads: int = 2) -> Split:
    """Read every image and mask once; images that can't be decoded are left out.

    Raises:
        UsageError: a mask that can't be used, or no image that can.
    """

    def look(pair: Pair) -> tuple[npt.NDArray[np.int64], bytes] | None:
        try:
            _, mask = read_pair(pair, table)
        except (BadImage, OSError):
            return None
        digest = content_digest(pair.image.read_bytes()) + content_digest(pair.mask.read_bytes())
        return np.bincount(mask.ravel(), minlength=IGNORED + 1)[: len(table.names)], digest

    with (
        ThreadPoolExecutor(max(1, threads)) as pool,
        Progress(len(pairs), "images", f"checking {label}") as shown,
    ):
        found = []
        for one in pool.map(look, pairs):
            found.append(one)
            shown.advance(1)
    good = [(pair, one) for pair, one in zip(pairs, found, strict=True) if one is not None]
    if not good:
        raise UsageError(f"none of the {len(pairs)} {label} images can be decoded: give others")
    counts = np.stack([one[0] for _, one in good])
    if not counts.any():
        raise UsageError(
            f"none of the {len(good)} {label} masks has a pixel of a class (all are ignored): "
            f"see {table.source}"
        )
    listing = json.dumps([(pair.name, one[1].hex()) for pair, one in good])
    return Split(
        pairs=tuple(pair for pair, _ in good),
        pixels=counts.sum(axis=0),
        images=(counts > 0).sum(axis=0),
        digest=hashlib.sha256(listing.encode()).hexdigest(),
        bad=tuple(p.name for p, one in zip(pairs, found, strict=True) if one is None),
    )


def notes_on(table: ClassTable, train: Split, val: Split) -> list[str]:
    """What spoils a comparison: images left out, classes of one split alone, shared images."""
    notes = [
        f"{label} images that can't be decoded are left out: {_some(split.bad)}; repair them or "
        "take them out"
        for label, split in (("training", train), ("validation", val))
        if split.bad
    ]
    unlearnt = [n for n, a, b in zip(table.names, train.images, val.images, strict=True)
                if b and not a]  # fmt: skip
    if unlearnt:
        notes.append(
            f"in validation masks but in no training mask: {_some(unlearnt)}; these classes can "
            "only score 0: add images of them, or name them under ignore_index"
        )
    unseen = [n for n, b in zip(table.names, val.images, strict=True) if not b]
    if unseen:
        notes.append(
            f"in no validation mask: {_some(unseen)}; these classes count as 0 where predicted, "
            "else not at all"
        )
    shared = {p.image for p in train.pairs} & {p.image for p in val.pairs}
    if shared:
        notes.append(f"images in both splits: {_some(sorted(map(str, shared)))}")
    return notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
