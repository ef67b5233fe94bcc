"""Where photos with boxes come from, by what the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from storage.errors import UsageError
from transfer.detect.boxes import PhotoSet, RawSet, clean
from transfer.detect.coco import read_coco
from transfer.detect.voc import is_voc, read_voc


def open_photos(
    locations: Sequence[str],
    images: Path | None,
    split: str,
    classes: Sequence[str] | None = None,
) -> PhotoSet:
    """Photos of one or several sources, joined.

    Args:
        locations: each a COCO annotation file, or a VOC folder, FOLDER:LIST for another list
            than `split`.
        images: folder of a COCO file's images.
        classes: of the training set; None: this is it.
    Raises:
        UsageError: neither of the two, or what the readers and `clean` refuse.
    """
    return clean([_read(location, images, split) for location in locations], classes)


def _read(location: str, images: Path | None, split: str) -> RawSet:
    path = Path(location)
    if path.is_file():
        if images is None:
            raise UsageError(f"{path} needs the folder of its images: give it with --images")
        return read_coco(path, images)
    if not path.is_dir() and ":" in location:
        folder, _, split = location.rpartition(":")
        path = Path(folder)
    if not is_voc(path):
        raise UsageError(
            f"{location} has no boxes: give a COCO annotation file, or a VOC folder (with "
            "Annotations, JPEGImages and ImageSets/Main)"
        )
    return read_voc(path, split)
