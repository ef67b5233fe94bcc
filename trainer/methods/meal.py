"""Fast MEAL V2: a pretrained student, stored ensemble labels and a discriminator.

Shen & Savvides 2020 (arXiv:2009.08453), with labels from a store as FKD's repository has it. The
student is asked for the stored label, and a small network learns to tell its probabilities from
the stored ones. As published there is no gradient reversal: student and discriminator minimise
the same term in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch
from trainer.losses import dense_probs
from trainer.method_config import MealConfig, MixConfig
from trainer.methods.fkd import FKD


class Discriminator(nn.Module):
    """From C probabilities to two logits (student, teacher): widths C, C / 8, 15, 2.

    Linear maps (1x1 convolutions of a vector), a ReLU after each, the last one too.
    """

    HIDDEN = 15

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (num_classes, max(1, num_classes // 8), self.HIDDEN, 2)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, probs: Tensor) -> Tensor:
        """Float [B, C] to [B, 2]."""
        for layer in self.layers:
            probs = F.relu(layer(probs))
        return probs


class MealV2(FKD):
    """FKD's soft cross-entropy and the discriminator's term."""

    def __init__(
        self,
        config: MealConfig,
        num_classes: int,
        temperature: float = 1.0,
        mix: MixConfig | None = None,
        views_per_image: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(temperature, mix, views_per_image, seed)
        self._weight, self._num_classes = config.discriminator_weight, num_classes
        self.discriminator = Discriminator(num_classes) if config.discriminator else None

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"soft_ce": ..., "discriminator": ...}; mixed crops are told from mixed labels."""
        mixed = self.mix(batch)
        logits = student(batch.images)
        found = self.soft_terms(logits, batch, mixed)
        if self.discriminator is None:
            return found
        assert batch.labels is not None
        stored = dense_probs(batch.labels, self._num_classes)
        if mixed is not None:
            stored = mixed.share * stored + (1 - mixed.share) * stored[mixed.partner]
        return found | {"discriminator": self._weight * self._told_apart(logits, stored)}

    def _told_apart(self, logits: Tensor, stored: Tensor) -> Tensor:
        """Binary cross-entropy, mean over 2B rows and both outputs: [1, 0] for the student's."""
        assert self.discriminator is not None
        probs = torch.cat([logits.float().softmax(dim=-1), stored])
        of_student = torch.arange(2, device=probs.device).repeat_interleave(len(logits)) == 0
        wanted = torch.stack([of_student, ~of_student], dim=1).float()
        return F.binary_cross_entropy_with_logits(self.discriminator(probs), wanted)
