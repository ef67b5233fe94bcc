"""Photos with boxes, cleaned: what can't be learnt from is counted, left out and listed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.errors import UsageError
from storage.pixels import IMAGE_FORMATS

# Reasons to leave a box out, and what is said of those cut at the image's edge.
EMPTY, INVERTED, OUTSIDE, UNREAL = "zero area", "inverted", "outside the image", "not finite"
CLIPPED = "cut at the image's edge"


@dataclass(frozen=True)
class RawBox:
    """A box as its file has it.

    Attributes:
        corners: left, top, right, bottom in pixels from the image's top left corner; right and
            bottom are where the box ends, so that its width is right - left.
        name: class.
        ignored: neither a hit nor a miss in evaluation (COCO's crowds, VOC's difficult ones).
        written: as its file puts it, for people.
        empty: says so where the file's own coordinates have no area, though the corners do.
    """

    corners: tuple[float, float, float, float]
    name: str
    ignored: bool = False
    written: str = ""
    empty: bool = False


@dataclass(frozen=True)
class RawPhoto:
    """A photo as its annotations have it. size: (width, height) they state, if any."""

    key: str
    path: Path
    boxes: tuple[RawBox, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo and its sound boxes.

    Attributes:
        key: name, unique in its set. size: (width, height).
        boxes: float32 [n, 4], left, top, right, bottom within the image. labels: int64 [n], from 1
            on (0 is the background), in the order of the set's classes. ignored: bool [n].
    """

    key: str
    path: Path
    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Findings:
    """What cleaning has left out or changed: lines for a file, counts by reason."""

    lines: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Photos to learn from or to judge on.

    Attributes:
        location: as it was given. folders: where the data lie, for their licence.
        classes: names; label i + 1 is classes[i]. found: what was left out.
        kind: `coco` or `voc`.
    """

    location: str
    folders: tuple[Path, ...]
    kind: str
    classes: tuple[str, ...]
    photos: tuple[Photo, ...]
    found: Findings

    @property
    def num_boxes(self) -> int:
        """Boxes of all photos, ignored ones too."""
        return sum(len(photo.labels) for photo in self.photos)

    def identity(self) -> str:
        """Hex SHA-256 of classes, names, sizes (also of the files) and boxes."""
        total = hashlib.sha256("\0".join([self.kind, *self.classes]).encode())
        for photo in self.photos:
            total.update(f"\0{photo.key}\0{photo.size}\0{photo.path.stat().st_size}".encode())
            for values in (photo.boxes, photo.labels, photo.ignored):
                total.update(values.tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class RawSet:
    """What a reader found: photos, and class names of which some may have no box."""

    location: str
    folder: Path
    kind: str
    photos: tuple[RawPhoto, ...]
    classes: tuple[str, ...]
    sort_classes: bool  # whether the order of the names is the reader's own


def clean(sets: Sequence[RawSet], classes: Sequence[str] | None = None) -> PhotoSet:
    """Check and join what readers found.

    Photos that can't be opened or aren't as large as their annotations say are left out; so are
    boxes without area, inverted or outside. Boxes that reach over the edge are cut.

    Args:
        classes: those of the training set, which these photos may not go beyond; None: their own.
    Raises:
        UsageError: a missing image, one that stands twice, a class that training lacks, no photo
            or no box left.
    """
    raw = [photo for one in sets for photo in one.photos]
    location = ", ".join(one.location for one in sets)
    _check_files(raw, location)
    names = _class_names(sets) if classes is None else tuple(classes)
    _check_classes(raw, names, location)
    index = {name: i + 1 for i, name in enumerate(names)}
    lines: list[tuple[str, str]] = []  # reason, line
    photos = [photo for one in raw if (photo := _photo(one, index, lines)) is not None]
    if not any(len(photo.labels) for photo in photos):
        raise UsageError(
            f"{location} has no usable box in {len(photos)} readable images ({len(lines)} left "
            "out): give annotations with boxes"
        )
    found = Findings(tuple(line for _, line in lines), dict(Counter(why for why, _ in lines)))
    folders = tuple(dict.fromkeys(one.folder for one in sets))
    return PhotoSet(location, folders, sets[0].kind, names, tuple(photos), found)


def image_path(folder: Path, name: str, source: Path) -> Path:
    """Where an annotation's image lies.

    Raises:
        UsageError: the name leads out of the folder.
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise UsageError(f"{source} names the image {name[:80]!r}: expected a path within {folder}")
    return folder / pure


def _check_files(raw: Sequence[RawPhoto], location: str) -> None:
    twice = [key for key, count in Counter(photo.key for photo in raw).items() if count > 1]
    if twice:
        raise UsageError(
            f"{location} has {len(twice)} images more than once, such as {twice[0]}: list each once"
        )
    missing = [photo.path for photo in raw if not photo.path.is_file()]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(raw)} images of {location} are missing, such as {missing[0]}: "
            "put them there, say where they are (--images for COCO), or take them out of the lists"
        )


def _class_names(sets: Sequence[RawSet]) -> tuple[str, ...]:
    names = list(dict.fromkeys(name for one in sets for name in one.classes))
    return tuple(sorted(names) if all(one.sort_classes for one in sets) else names)


def _check_classes(raw: Sequence[RawPhoto], names: tuple[str, ...], location: str) -> None:
    other = Counter(box.name for photo in raw for box in photo.boxes if box.name not in names)
    if other:
        name, count = other.most_common(1)[0]
        raise UsageError(
            f"{location} has {len(other)} classes that the training data lack, such as {name!r} "
            f"({count} boxes): take their boxes out, or train on data that have them"
        )


def _photo(raw: RawPhoto, index: dict[str, int], lines: list[tuple[str, str]]) -> Photo | None:
    try:
        with Image.open(raw.path, formats=IMAGE_FORMATS) as image:
            size = image.size
    except Exception as error:  # Pillow raises many types on damaged headers
        lines.append(("unreadable image", f"{raw.key}: unreadable image ({type(error).__name__})"))
        return None
    if raw.size is not None and raw.size != size:
        wrong = "image of another size"
        lines.append((wrong, f"{raw.key}: the file is {size[0]}x{size[1]}, its annotation says "
                           f"{raw.size[0]}x{raw.size[1]}"))  # fmt: skip
        return None
    kept: list[tuple[tuple[float, ...], RawBox]] = []
    for box in raw.boxes:
        why, corners = _judge(box, size)
        if why:
            lines.append((why, f"{raw.key}: {box.name} {box.written}: {why}"))
        if corners is not None:
            kept.append((corners, box))
    return Photo(
        raw.key,
        raw.path,
        size,
        np.array([corners for corners, _ in kept], np.float32).reshape(-1, 4),
        np.array([index[box.name] for _, box in kept], np.int64),
        np.array([box.ignored for _, box in kept], np.bool_),
    )


def _judge(
    box: RawBox, size: tuple[int, int]
) -> tuple[str | None, tuple[float, float, float, float] | None]:
    """What is to be said of a box, and its corners within the image (None: left out)."""
    left, top, right, bottom = box.corners
    if not all(math.isfinite(value) for value in box.corners):
        return UNREAL, None
    if right < left or bottom < top:
        return INVERTED, None
    if box.empty or right == left or bottom == top:
        return EMPTY, None
    width, height = size
    cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        return OUTSIDE, None
    stored = np.array(cut, np.float32)
    if np.any(stored[2:] <= stored[:2]):
        return EMPTY, None
    return (CLIPPED if cut != box.corners else None), cut


def count_boxes(photos: Iterable[Photo], classes: Sequence[str]) -> dict[str, int]:
    """Boxes of every class."""
    counts = Counter(int(label) for photo in photos for label in photo.labels)
    return {name: counts[i + 1] for i, name in enumerate(classes)}
