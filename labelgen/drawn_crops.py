"""Crops drawn at random from a store and cut again from its images, for `labelgen verify`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelgen.tolerance import label_fits
from labelgen.verify_report import WrongCrop
from storage.augment import replay_view
from storage.codecs import TopKLabels
from storage.errors import BadImage, UsageError
from storage.images import ImageStatus, read_image
from storage.label_stream import row_labels
from storage.pixels import pad_image
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord
from storage.views import Views

BATCH = 32  # crops forwarded together

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DrawnCrop:
    """One crop drawn: its pixels, or None where its image isn't the labelled one."""

    row: int
    view: int
    pixels: Pixels | None
    labels: TopKLabels


def labelled_rows(store: LabelStore) -> npt.NDArray[np.intp]:
    """Rows of a store's images that have labels.

    Raises:
        UsageError: there are none.
    """
    rows = np.flatnonzero(store.read_status() == ImageStatus.OK)
    if not rows.size:
        raise UsageError(f"{store.path} has no labelled image")
    return rows


def drawn_crops(store: LabelStore, count: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """`count` different crops in random order, BATCH at a time."""
    rows, views = labelled_rows(store), store.spec.num_views
    total = rows.size * views
    rng = np.random.default_rng([seed, total])
    if total <= 1 << 20:
        numbers = rng.permutation(total)[:count].tolist()
    else:
        seen: dict[int, None] = {}
        while len(seen) < count:
            seen.update(dict.fromkeys(rng.integers(0, total, count - len(seen)).tolist()))
        numbers = list(seen)
    for first in range(0, count, BATCH):
        part = numbers[first : first + BATCH]
        yield [(int(rows[number // views]), number % views) for number in part]


class CropSource:
    """Crops of a store, cut again from its images."""

    def __init__(self, store: LabelStore, record: TeacherRecord, data: Path) -> None:
        self._store, self._record, self._data = store, record, data
        self._table = store.read_images()
        size = record.input_size
        self.blank = np.zeros((size, size, 3), np.uint8)

    def crop(self, row: int, view: int) -> DrawnCrop:
        """One crop with its stored label."""
        views, labels = row_labels(self._store, self._record.name, row, view + 1)
        picked = TopKLabels(labels.index[view], labels.code[view], labels.tail[view])
        return DrawnCrop(row, view, self._pixels(row, views, view), picked)

    def wrong(self, crop: DrawnCrop, why: str, logs: Floats, eps: float) -> WrongCrop:
        """What is known of a wrong crop."""
        spec = self._store.spec
        others: tuple[int, ...] = ()
        if why != "image":
            others = self._fitting(crop, logs, eps)
        return WrongCrop(
            row=crop.row, view=crop.view, key=self._table.key[crop.row],
            block=crop.row // spec.block_images, why=why, other_views=others,
        )  # fmt: skip

    def _fitting(self, crop: DrawnCrop, logs: Floats, eps: float) -> tuple[int, ...]:
        """Other views of the image whose labels would be right for the crop."""
        codec, views = self._record.codec, self._store.spec.num_views
        _, labels = row_labels(self._store, self._record.name, crop.row, views)
        return tuple(
            v
            for v in range(views)
            if v != crop.view
            and label_fits(
                codec, logs, TopKLabels(labels.index[v], labels.code[v], labels.tail[v]), eps
            )
            is None
        )

    def _pixels(self, row: int, views: Views, view: int) -> Pixels | None:
        spec = self._store.spec
        try:
            found = read_image(self._data, self._table.key[row])
            if found.digest != self._table.digest[row].tobytes():
                return None
            image = pad_image(found.rgb(), spec.pixel.padding)
        except (OSError, BadImage):
            return None
        return replay_view(
            image, views.box[view], bool(views.flip[view]), self._record.input_size,
            spec.pixel.interpolation, spec.augment,
            None if views.draw is None else views.draw[view],
        )  # fmt: skip
