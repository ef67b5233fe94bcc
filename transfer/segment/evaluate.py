"""Judging a segmentation network: windows, scales, mirror images; IoU by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from storage.errors import TrainingError
from trainer.config import StudentConfig
from transfer.libraries import segmentation_metrics
from transfer.segment.data import Pair, read_pair
from transfer.segment.masks import ClassTable
from transfer.segment.normalise import normaliser
from transfer.segment.settings import IGNORED, SegmentSettings

_WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class SegmentScores:
    """Over all pixels that aren't ignored, of all images together.

    Attributes:
        miou: mean of the classes' intersection over union; classes that are neither there nor
            predicted don't count. pixel_accuracy: share of pixels that have their own class.
        ious: of every class, None where it doesn't count.
    """

    miou: float
    pixel_accuracy: float
    ious: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "ious": list(self.ious),
        }


class Judge:
    """Counts pixels, image by image."""

    def __init__(self, num_classes: int) -> None:
        metrics = segmentation_metrics()
        options = {"num_classes": num_classes, "ignore_index": IGNORED, "validate_args": False,
                   "sync_on_compute": False}  # fmt: skip  # of several processes one judges alone
        self._iou = metrics.MulticlassJaccardIndex(average="none", **options)
        self._mean = metrics.MulticlassJaccardIndex(average="macro", **options)
        self._accuracy = metrics.MulticlassAccuracy(average="micro", **options)

    def see(self, predicted: Tensor, target: Tensor) -> None:
        """Count an image: int64 [H, W] each, IGNORED in the target counts nowhere."""
        flat = predicted.flatten(), target.flatten()
        for metric in (self._iou, self._mean, self._accuracy):
            metric.update(*flat)

    def scores(self) -> SegmentScores:
        """Of all images so far."""
        matrix = self._iou.confmat
        seen = (matrix.sum(dim=0) + matrix.sum(dim=1) > 0).tolist()
        ious = self._iou.compute().tolist()
        return SegmentScores(
            miou=float(self._mean.compute()),
            pixel_accuracy=float(self._accuracy.compute()),
            ious=tuple(iou if there else None for iou, there in zip(ious, seen, strict=True)),
        )


class Predictor:
    """Class probabilities of whole images by a network.

    Args:
        student: its statistics normalise the images.
    """

    def __init__(
        self, model: nn.Module, student: StudentConfig, settings: SegmentSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._model, self._settings = model, settings
        self._normalised = normaliser(student, device)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """uint8 [3, H, W] -> float32 [C, H, W], summing to 1 over the classes."""
        image = self._normalised(pixels)
        height, width = image.shape[1:]
        side = self._settings.test_side or max(height, width)
        total: Tensor | float = 0.0
        for scale in self._settings.test_scales:
            factor = side * scale / max(height, width)
            size = [max(1, round(height * factor)), max(1, round(width * factor))]
            found = self._at_size(_resized(image, size))
            total = total + _resized(found, [height, width])
        assert isinstance(total, Tensor)
        return total / len(self._settings.test_scales)

    def _at_size(self, image: Tensor) -> Tensor:
        if self._settings.test == "whole":
            return self._run(image[None])[0]
        crop = self._settings.crop
        height, width = image.shape[1:]
        below, right = max(0, crop - height), max(0, crop - width)
        top, left = below // 2, right // 2
        padded = F.pad(image, (left, right - left, top, below - top))  # zeros: the mean colour
        places = window_places(padded.shape[1:], crop, self._settings.window_stride)
        total: Tensor | None = None
        count: Tensor | None = None
        for chunk in _chunks(places, _WINDOWS_AT_ONCE):
            windows = torch.stack([padded[:, y : y + crop, x : x + crop] for y, x in chunk])
            found = self._run(windows)
            if total is None or count is None:
                total = found.new_zeros(found.shape[1], *padded.shape[1:])
                count = found.new_zeros(padded.shape[1:])
            for (y, x), one in zip(chunk, found, strict=True):
                total[:, y : y + crop, x : x + crop] += one
                count[y : y + crop, x : x + crop] += 1
        assert total is not None and count is not None
        return (total / count)[:, top : top + height, left : left + width]

    def _run(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        found: Tensor = self._model(images).float().softmax(dim=1)
        if self._settings.test_flip:
            mirrored = self._model(images.flip(3)).float().softmax(dim=1).flip(3)
            found = (found + mirrored) / 2
        return found


def window_places(sides: tuple[int, ...], crop: int, stride: float) -> list[tuple[int, int]]:
    """Top left corners of windows that cover an image, the last ones flush with its far sides.

    Args:
        sides: height and width, at least crop. stride: share of the crop between windows.
    """
    step = math.ceil(crop * stride)
    lines = []
    for side in sides:
        number = math.ceil((side - crop) / step) + 1
        lines.append([min(i * step, side - crop) for i in range(number)])
    return [(y, x) for y in lines[0] for x in lines[1]]


def _resized(image: Tensor, size: list[int]) -> Tensor:
    if list(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def _chunks(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class _Images(Dataset[Any]):
    """Validation images with their masks, as they are."""

    def __init__(self, pairs: tuple[Pair, ...], table: ClassTable) -> None:
        self._pairs, self._table = pairs, table

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        try:
            image, mask = read_pair(self._pairs[row], self._table)
        except Exception as error:  # it could be read when the run began
            raise TrainingError(
                f"{self._pairs[row].name} has changed since the run began ({error}): put it back "
                "and run the same command again"
            ) from error
        return _pixels(image), torch.from_numpy(mask).long()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def predictions(
    predictor: Predictor, pairs: tuple[Pair, ...], table: ClassTable, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Image uint8 [3, H, W], predicted and true classes int64 [H, W], one image after another."""
    loader = DataLoader(
        _Images(pairs, table),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        generator=torch.Generator(),  # or it would draw from the run's random state
    )
    for pixels, target in loader:
        yield pixels, predictor.probabilities(pixels).argmax(dim=0).cpu(), target


def judge(
    predictor: Predictor,
    model: nn.Module,
    pairs: tuple[Pair, ...],
    table: ClassTable,
    workers: int = 0,
) -> SegmentScores:
    """Scores of a network on images; it is left in the mode it was in."""
    was_training = model.training
    model.eval()
    counts = Judge(len(table.names))
    for _, predicted, target in predictions(predictor, pairs, table, workers):
        counts.see(predicted, target)
    model.train(was_training)
    return counts.scores()
