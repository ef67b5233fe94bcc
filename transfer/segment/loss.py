"""What segmentation learns from: cross-entropy over the pixels that count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import StudentConfig
from trainer.distributed import World
from transfer.segment.augment import SegmentBatch
from transfer.segment.normalise import normaliser
from transfer.segment.settings import IGNORED


class PixelLoss:
    """Cross-entropy over the pixels that count, of both heads (transfer.finetune.Loss).

    Averaged over processes it is the mean over the pixels of the whole batch, however many of
    them each process has.
    """

    def __init__(
        self, student: StudentConfig, aux_weight: float, device: torch.device, world: World
    ) -> None:
        self._aux_weight, self._device, self._world = aux_weight, device, world
        self._normalised = normaliser(student, device)

    def __call__(self, model: nn.Module, batch: SegmentBatch) -> dict[str, Tensor]:
        images = self._normalised(batch.images)
        target = batch.target.to(self._device).long()
        counted = self._world.sum((target != IGNORED).sum()) / self._world.size
        found = model(images.contiguous(memory_format=torch.channels_last))
        if isinstance(found, tuple):
            main, second = found
            return {"main": pixel_loss(main, target, counted),
                    "aux": self._aux_weight * pixel_loss(second, target, counted)}  # fmt: skip
        return {"main": pixel_loss(found, target, counted)}


def pixel_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that aren't IGNORED; 0 where all are.

    Args:
        logits: [B, C, H, W]. target: int64 [B, H, W].
        counted: number of those pixels; of several processes, what each has on average.
    """
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="sum")
    return total / torch.where(counted > 0, counted, 1)
