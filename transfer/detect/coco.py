"""COCO's annotation files, parsed by faster-coco-eval and checked here."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from storage.errors import UsageError
from transfer.detect.boxes import RawBox, RawPhoto, RawSet, image_path
from transfer.libraries import coco_evaluation

KIND = "coco"
LARGEST = 1e9  # pixels; anything beyond is no coordinate


def read_coco(path: Path, images: Path) -> RawSet:
    """Photos and boxes of an annotation file; crowds are ignored in evaluation.

    Args:
        images: folder that the file names are in.
    Raises:
        UsageError: not such a file, ids that stand twice or don't exist, boxes that are none.
    """
    values = _load(path)
    images_by_id = _by_id(values, "images", path)
    names = _category_names(values, path)
    boxes: dict[int, list[RawBox]] = defaultdict(list)
    for number, one in _by_id(values, "annotations", path).items():
        boxes[_reference(one, "image_id", images_by_id, number, path)].append(
            _box(one, names[_reference(one, "category_id", names, number, path)], number, path)
        )
    photos = tuple(
        _photo(one, number, tuple(boxes[number]), images, path)
        for number, one in images_by_id.items()
    )
    if not photos:
        raise UsageError(f"{path} lists no images: give an annotation file that does")
    classes = tuple(names[number] for number in sorted(names))
    return RawSet(str(path), images, KIND, photos, classes, sort_classes=False)


def _load(path: Path) -> dict[str, Any]:
    try:
        values = coco_evaluation().COCO.load_json(path)
    except (OSError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"{path} can't be read as COCO annotations ({reason[:200]}): give a whole JSON file"
        ) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(values, dict) or not all(isinstance(values.get(p), list) for p in parts):
        raise UsageError(
            f"{path} is no COCO annotation file: expected lists {', '.join(parts)} at its top"
        )
    return values


def _by_id(values: dict[str, Any], part: str, path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for place, one in enumerate(values[part]):
        number = one.get("id") if isinstance(one, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise UsageError(f"{path}: entry {place} of {part} has no whole number as its id")
        if number in found:
            raise UsageError(f"{path}: id {number} stands twice in {part}: give each its own")
        found[number] = one
    return found


def _category_names(values: dict[str, Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, one in _by_id(values, "categories", path).items():
        name = one.get("name")
        if not isinstance(name, str) or not name or name in names.values():
            raise UsageError(
                f"{path}: category {number} is named {name!r}; expected a name of its own"
            )
        names[number] = name
    return names


def _reference(
    one: dict[str, Any], field: str, known: dict[int, Any], number: int, path: Path
) -> int:
    value = one.get(field)
    if not isinstance(value, int) or value not in known:
        raise UsageError(f"{path}: annotation {number} has {field} {value!r}, which isn't listed")
    return value


def _box(one: dict[str, Any], name: str, number: int, path: Path) -> RawBox:
    box = one.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    ):
        raise UsageError(
            f"{path}: annotation {number} has bbox {str(box)[:80]}; expected [left, top, width, "
            "height]"
        )
    sides = (float(v) if abs(v) < LARGEST else math.inf for v in box)  # also of NaN
    left, top, width, height = sides
    corners = (left, top, left + width, top + height)
    written = f"{box} (annotation {number})"
    return RawBox(corners, name, one.get("iscrowd", 0) not in (0, False), written)


def _photo(
    one: dict[str, Any], number: int, boxes: tuple[RawBox, ...], images: Path, path: Path
) -> RawPhoto:
    name, width, height = one.get("file_name"), one.get("width"), one.get("height")
    if not isinstance(name, str):
        raise UsageError(f"{path}: image {number} has no file_name")
    size = None
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        size = width, height
    return RawPhoto(name, image_path(images, name, path), boxes, size)
