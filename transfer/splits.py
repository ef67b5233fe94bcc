"""What is learnt from and what is judged on, their classes matched by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.classes import map_classes
from storage.errors import UsageError
from transfer.images import LabelledImages, fingerprint, is_published, open_labelled
from transfer.licence import licence_note


@dataclass(frozen=True)
class Split:
    """Images of one side with what identifies them; labels: class numbers of the training side."""

    images: LabelledImages
    digest: str
    contents: frozenset[bytes]
    labels: np.ndarray

    def to_json(self) -> dict[str, object]:
        """Plain values for results."""
        return {
            "location": self.images.location,
            "images": len(self.images.targets),
            "classes": len(self.images.classes),
            "sha256": self.digest,
        }


def open_splits(data: str, val: str | None) -> tuple[Split, Split]:
    """Training and validation images, see `transfer.images.open_labelled`.

    Args:
        val: None: the other split of `data`, which must be a data set by name.
    Raises:
        UsageError: a class of the validation images that the training images lack, fewer than
            two classes, or no validation images given.
    """
    if val is None and not is_published(data):
        raise UsageError(f"{data} is one folder: give the images to judge on with --val")
    train_images = open_labelled(data, "train")
    val_images = open_labelled(data if val is None else val, "test")
    classes = train_images.classes
    if len(classes) < 2:
        raise UsageError(f"{data} has one class ({classes[0]}): at least two are needed")
    mapping = map_classes(val_images.classes, classes)
    if mapping is None:
        lacking = [name for name in val_images.classes if name not in set(classes)]
        raise UsageError(
            f"{val_images.location} has {len(lacking)} classes that {train_images.location} lacks, "
            f"such as {(lacking or list(val_images.classes))[0]!r}: the class names must be the "
            "same"
        )
    return (
        Split(train_images, *fingerprint(train_images), np.arange(len(classes))),
        Split(val_images, *fingerprint(val_images), mapping),
    )


def split_notes(train: Split, val: Split) -> tuple[str, ...]:
    """What people should know about the two sides before they trust a number."""
    shared = len((train.contents & val.contents) - {_NOTHING})
    absent = len(train.images.classes) - len(val.images.classes)
    licence = licence_note(*(side.images.folder_of_origin for side in (train, val)))
    return (
        *((f"{shared} images are in both --data and --val: the results are too good",)
          * (shared > 0)),
        *((f"{absent} of {len(train.images.classes)} classes have no validation images",)
          * (absent > 0)),
        *((licence,) if licence is not None else ()),
    )  # fmt: skip


_NOTHING = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
