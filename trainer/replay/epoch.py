"""What the replay loaders share: batches, settings, the check of an epoch's plan.

The loaders read the same beton and give the same bytes; `epoch(rows, box, flip, draw)` takes the
order and the views from the caller's plan, so nothing here is random.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from storage.augment import Augment
from storage.errors import StoreMismatch, UsageError
from storage.images import ImageStatus
from storage.pixels import PixelContract
from trainer.replay.beton import Beton

MAX_SIZE = 1024
NAMED_ROWS = 3  # rows named in an error


@dataclass(frozen=True, kw_only=True)
class ReplayBatch:
    """B images, V views each, in the order asked for.

    `images` may be overwritten by the loader once the next batch is taken: copy or move it to
    the device before that. `digests` are those of the records that were decoded, to be
    compared with the label plane's. A `failed` image could not be decoded now although it
    could when the beton was packed; its pixels are zeros.
    """

    images: torch.Tensor  # uint8 [B, V, S, S, 3]
    rows: npt.NDArray[np.int64]  # [B]
    digests: npt.NDArray[np.uint8]  # [B, 32]
    failed: npt.NDArray[np.bool_]  # [B]


class ReplayLoader(ABC):
    """What both loaders share: settings, their checks, the check of an epoch's plan.

    Args:
        beton: the packed images.
        size: side S of a view in pixels.
        views: V, views cut from one decode.
        interpolation, padding: of the pixel contract that the boxes were drawn under.
        augment: what the store does to every view after it is cut, by the epoch's draws.
        batch_images: images in a batch (a batch has `batch_images * views` crops).
        workers: threads (FFCV) or processes (torch; 0 works in this process).
    Raises:
        UsageError: a setting is out of range.
    """

    def __init__(
        self,
        beton: Beton,
        *,
        size: int,
        views: int,
        interpolation: str = "bilinear",
        padding: int = 0,
        augment: Augment | None = None,
        batch_images: int,
        workers: int,
    ) -> None:
        for name, value, least in (
            ("views", views, 1), ("batch_images", batch_images, 1), ("workers", workers, 0),
        ):  # fmt: skip
            if value < least:
                raise UsageError(f"{name} is {value}; expected at least {least}")
        self.beton = beton
        self.contract = PixelContract(interpolation=interpolation, padding=padding)
        self.augment = augment
        self.views, self.batch_images, self.workers = views, batch_images, workers
        self.resize(size)

    def resize(self, size: int) -> None:
        """Cut views of another side from the next epoch on; nothing is compiled anew.

        Raises:
            UsageError: a side out of range.
        """
        if not 1 <= size <= MAX_SIZE:
            raise UsageError(f"size is {size}; expected 1 to {MAX_SIZE} pixels")
        self.size = size

    def epoch(
        self,
        rows: npt.NDArray[np.int64],
        box: npt.NDArray[np.uint16],
        flip: npt.NDArray[np.uint8],
        draw: npt.NDArray[np.int16] | None = None,
    ) -> Iterator[ReplayBatch]:
        """Batches of one epoch; the last may be short. Leaving the loop early is fine.

        Args:
            rows: int64 [n], beton rows in the order of this epoch (to resume, the rest of it).
            box: uint16 [num_rows, V, 4], (top, left, height, width) in the padded image.
            flip: uint8 [num_rows, V].
            draw: int16 [num_rows, V, D] where the loader has augmentations, else None.
        Raises:
            UsageError: shapes that don't fit, unknown rows.
            StoreMismatch: masked rows, boxes outside their images, or draws that the
                augmentations can't have.
            TrainingError: a worker failed or died.
        """
        rows = np.ascontiguousarray(rows, np.int64)
        self._check(rows, box, flip)
        self._check_draws(rows, draw)
        return self._batches(rows, box, flip, draw)

    @abstractmethod
    def _batches(
        self, rows: np.ndarray, box: np.ndarray, flip: np.ndarray, draw: np.ndarray | None
    ) -> Iterator[ReplayBatch]:
        """The batches of a checked epoch."""

    def _check(self, rows: np.ndarray, box: np.ndarray, flip: np.ndarray) -> None:
        plane = (self.beton.num_rows, self.views)
        if box.shape != (*plane, 4) or flip.shape != plane or rows.ndim != 1:
            raise UsageError(
                f"box {box.shape}, flip {flip.shape} and rows {rows.shape} don't fit a beton of "
                f"{plane[0]} rows and {plane[1]} views an image"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= self.beton.num_rows):
            raise UsageError(
                f"rows {rows.min()} to {rows.max()} were asked of a beton of {plane[0]} rows"
            )
        masked = rows[self.beton.status[rows] != ImageStatus.OK]
        if masked.size:
            raise StoreMismatch(
                f"{self.beton.path}: {masked.size} rows have no pixels ({self._name(masked)}): "
                "leave masked images out of the epoch"
            )
        boxes = box[rows].astype(np.int32)
        sides = self.beton.sizes[rows].astype(np.int32)[:, None] + 2 * self.contract.padding
        inside = (boxes[..., 2:] > 0) & (boxes[..., :2] + boxes[..., 2:] <= sides)
        outside = rows[~inside.all(axis=(1, 2))]
        if outside.size:
            raise StoreMismatch(
                f"{self.beton.path}: boxes of {outside.size} images are empty or leave the image "
                f"({self._name(outside)}): the labels are of other images"
            )

    def _check_draws(self, rows: np.ndarray, draw: np.ndarray | None) -> None:
        columns = self.augment.columns if self.augment else 0
        wanted = (self.beton.num_rows, self.views, columns) if columns else None
        shape = None if draw is None else draw.shape
        if shape != wanted:
            raise UsageError(f"draws of shape {shape} for augmentations that need {wanted}")
        if self.augment is None or draw is None:
            return
        wrong = rows[self.augment.faults(draw[rows]).any(axis=1)]
        if wrong.size:
            raise StoreMismatch(
                f"{self.beton.path}: draws of {wrong.size} images are none that the store's "
                f"augmentations can have ({self._name(wrong)}): run `labelstore verify --full`"
            )

    def _name(self, rows: np.ndarray) -> str:
        names = ", ".join(self.beton.keys[row] for row in rows[:NAMED_ROWS])
        return names + (", ..." if len(rows) > NAMED_ROWS else "")
