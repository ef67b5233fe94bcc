"""Whether a folder holds the images that the canaries are of, under the classes of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labelgen.doctor.crops import CanaryCrop, StoredCanary, files_of, with_file
from labelgen.doctor.diagnosis import Finding
from labelgen.doctor.recipes import Recipe, make
from storage.canaries import sketch_of
from storage.errors import BadImage, UsageError
from storage.images import ImageFolder, has_image, scan_folder
from storage.match_classes import compare_classes
from storage.pixels import decode_rgb, pixel_digest
from storage.store import LabelStore

PATH = "images"
ALIKE = 6.0  # levels that a re-encoded image's sketch is away on average, at most
NAMED = 3
_MATCH = "`labelstore match` lists all that differ"
_WHY = {
    "image-missing": ("are gone", f"bring them back; {_MATCH}"),
    "images-swapped": ("lie under other names than when they were labelled",
                       "training joins them by content, all else that goes by name errs: give "
                       "them their names back"),
    "images-rewritten": ("have other bytes but the same pixels (metadata, packing)",
                         f"labels are joined by bytes: use the original files; {_MATCH}"),
    "images-rotated": ("have width and height exchanged: someone rotated them by their EXIF",
                       "use the original files"),
    "images-resized": ("are of another size: someone resized them", "use the original files"),
    "images-re-encoded": ("were encoded again", "use the original files"),
    "images-changed": ("are other images than those that were labelled",
                       f"use the labelled files; {_MATCH}"),
    "images-damaged": ("can't be decoded any more", "copy the original files again"),
}  # fmt: skip


@dataclass(kw_only=True)
class Checked:
    """Canaries whose images are right, and what is wrong with the others."""

    crops: list[CanaryCrop] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def check_images(store: LabelStore, canaries: Sequence[StoredCanary], root: Path) -> Checked:
    """Read the canaries' images from a folder and say what is wrong with those that differ.

    Raises:
        UsageError: no such folder.
    """
    if not root.exists():
        raise UsageError(f"{root} is not a folder: give the labelled images with --data")
    folder = scan_folder(root)
    files = files_of(root, [each.key for each in canaries])
    found = Checked()
    known = {each.digest for each in canaries}
    wrong: dict[str, list[str]] = {}
    for each in canaries:
        data = files.get(each.key)
        if data is None and root.is_file() and has_image(root, each.key):
            continue  # a beton keeps this image as pixels: no file that could be decoded otherwise
        if data is None:
            data = _elsewhere(folder, each)
        if data is not None and hashlib.sha256(data).digest() == each.digest:
            found.crops.append(with_file(store, each, data))
        else:
            keys = wrong.setdefault(_why(store, each, data, known), [])
            if each.key not in keys:
                keys.append(each.key)
    lost = sum(map(len, wrong.values()))
    strange = sum(len(wrong.get(cause, ())) for cause in ("image-missing", "images-changed"))
    if canaries and not found.crops and 2 * strange > lost:
        found.findings.append(Finding(
            cause="wrong-folder", path=PATH, crops=lost,
            text=f"none of the {lost} images looked for is in {root}",
            way_out="give the folder that was labelled with --data",
        ))  # fmt: skip
        return found
    for cause, keys in sorted(wrong.items()):
        what, way_out = _WHY[cause]
        names = ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")
        found.findings.append(Finding(
            cause=cause, path=PATH, crops=len(keys), text=f"{len(keys)} images {what}: {names}",
            way_out=way_out,
        ))  # fmt: skip
    return found


def _elsewhere(folder: ImageFolder, each: StoredCanary) -> bytes | None:
    """The labelled bytes from a file of the same name in another class folder, if there is one."""
    name = each.key.rpartition("/")[2]
    for key in folder.keys:
        if key.rpartition("/")[2] == name:
            data = files_of(folder.root, [key]).get(key)
            if data is not None and hashlib.sha256(data).digest() == each.digest:
                return data
    return None


def check_classes(store: LabelStore, root: Path) -> list[Finding]:
    """Whether the folder's classes are the store's, in its order."""
    if not store.spec.dataset["classes"]:
        return []
    report = compare_classes(store.spec, scan_folder(root).classes)
    found = []
    if report.state == "different":
        only = [*report.only_store, *report.only_data][:NAMED]
        found.append(Finding(
            cause="class-order", path=PATH,
            text="the folder's classes are not the store's"
            + (f" (such as {', '.join(only)})" if only else ", or stand in another order"),
            way_out="class numbers differ: give the class folders the names that the store has",
        ))  # fmt: skip
    found += [
        Finding(cause="class-order", path="store", text=problem, way_out="fetch the store again")
        for problem in report.problems
    ]
    return found


def _why(store: LabelStore, each: StoredCanary, data: bytes | None, known: set[bytes]) -> str:
    """What happened to an image that is not the one that was labelled."""
    if data is None:
        return "image-missing"
    if hashlib.sha256(data).digest() in known:
        return "images-swapped"
    try:
        image = decode_rgb(data)
    except BadImage:
        return "images-damaged"
    if pixel_digest(image).hex() == each.canary.image:
        return "images-rewritten"
    if (image.height, image.width) != (each.height, each.width):
        if (image.width, image.height) == (each.height, each.width):
            return "images-rotated"
        same_shape = abs(image.width * each.height - image.height * each.width) <= max(
            each.height, each.width, image.height, image.width
        )
        return "images-resized" if same_shape else "images-changed"
    crop = with_file(store, each, data)
    made = make(crop, Recipe())
    stated = np.frombuffer(bytes.fromhex(each.canary.sketch), np.uint8).astype(np.int16)
    if made is None:
        return "images-changed"
    away = np.abs(sketch_of(made).ravel().astype(np.int16) - stated).mean()
    return "images-re-encoded" if away <= ALIKE else "images-changed"
