"""Pascal VOC folders: Annotations/*.xml, JPEGImages, ImageSets/Main/*.txt.

The XML's meaning is read by torchvision's own VOC parser. Before that, files with a document type
are refused: entities are the only way in which XML can fetch other files or grow without bound.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from storage.errors import UsageError
from storage.pixels import IMAGE_SUFFIXES
from transfer.detect.boxes import RawBox, RawPhoto, RawSet, image_path

KIND = "voc"
ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", Path("ImageSets") / "Main"
DEEPEST = 16  # elements inside each other; VOC has 5
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Refused(ValueError):
    """XML that is well-formed but isn't parsed."""


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as VOC."""
    return (folder / ANNOTATIONS).is_dir()


def read_voc(folder: Path, split: str) -> RawSet:
    """The photos that ImageSets/Main/SPLIT.txt lists.

    Coordinates are VOC's: whole pixels from 1 on, the last one inside the box. So xmin = xmax is
    one pixel wide; such boxes are slips of the mouse and count as having no area.

    Raises:
        UsageError: no such list, a missing or damaged annotation.
    """
    photos = []
    for stem in _stems(folder, split):
        path = image_path(folder / ANNOTATIONS, f"{stem}.xml", folder / LISTS / f"{split}.txt")
        values = _annotation(path)
        boxes = tuple(_box(one, path) for one in _objects(values, path))
        photos.append(RawPhoto(stem, _image(folder, stem), boxes, _size(values)))
    classes = sorted({box.name for photo in photos for box in photo.boxes})
    return RawSet(f"{folder}:{split}", folder, KIND, tuple(photos), tuple(classes), True)


def _stems(folder: Path, split: str) -> list[str]:
    path = folder / LISTS / f"{split}.txt"
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        there = sorted(file.stem for file in (folder / LISTS).glob("*.txt"))
        known = f"the folder has {', '.join(there[:8])}" if there else f"{path.parent} has no lists"
        raise UsageError(
            f"{path} can't be read ({known}): name a list as in {folder}:LIST"
        ) from error
    stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise UsageError(f"{path} lists no images: give a list with one name a line")
    return stems


def _image(folder: Path, stem: str) -> Path:
    """The image of a name, whatever its suffix; the expected JPEG where there is none."""
    paths = [folder / IMAGES / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _annotation(path: Path) -> dict[str, Any]:
    from torchvision.datasets import VOCDetection

    try:
        data = path.read_bytes()
        _check_harmless(data)
        values = VOCDetection.parse_voc_xml(ElementTree.fromstring(data))["annotation"]
        if not isinstance(values, dict):
            raise _Refused("its annotation is empty")
    except KeyError as error:
        raise UsageError(f"{path} is no VOC annotation: its root isn't <annotation>") from error
    except (OSError, ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise UsageError(
            f"{path} can't be read as a VOC annotation ({error}): mend it, or take its image out "
            "of the list"
        ) from error
    return values


def _check_harmless(data: bytes) -> None:
    depth = 0

    def on_doctype(*_: Any) -> None:
        raise _Refused("it has a document type, which annotations don't need: entities are refused")

    def on_start(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise _Refused(f"more than {DEEPEST} elements inside each other")

    def on_end(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = on_doctype
    parser.StartElementHandler, parser.EndElementHandler = on_start, on_end
    parser.Parse(data, True)


def _objects(values: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    objects = values.get("object", [])
    objects = objects if isinstance(objects, list) else [objects]
    if not all(isinstance(one, dict) for one in objects):
        raise UsageError(f"{path} has an <object> that holds no elements: mend or remove it")
    return objects


def _box(values: dict[str, Any], path: Path) -> RawBox:
    name, corners = values.get("name"), values.get("bndbox")
    if not isinstance(name, str) or not isinstance(corners, dict):
        raise UsageError(f"{path} has an <object> without one <name> and one <bndbox>: mend it")
    try:
        left, top, right, bottom = (float(corners[key]) for key in CORNERS)
        ignored = int(values.get("difficult", 0)) != 0
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: the box of an object {name!r} is {corners}; expected numbers for "
            f"{', '.join(CORNERS)}, and difficult 0 or 1"
        ) from error
    written = f"[{left:g}, {top:g}, {right:g}, {bottom:g}]"
    empty = right == left or bottom == top
    return RawBox((left - 1, top - 1, right, bottom), name, ignored, written, empty)


def _size(values: dict[str, Any]) -> tuple[int, int] | None:
    """What is stated; many tools leave it out or write zeros."""
    try:
        width, height = (float(values["size"][key]) for key in ("width", "height"))
    except (KeyError, TypeError, ValueError):
        return None
    sound = all(math.isfinite(side) and side >= 1 for side in (width, height))
    return (int(width), int(height)) if sound else None
