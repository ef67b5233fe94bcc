"""FKD: Fast Knowledge Distillation (Shen & Xing 2022, arXiv:2112.01528).

The student sees the stored crop and is asked for the teacher's stored answer to that crop; there
is no hard-label term and no T^2 factor. Departs from the published code in two places: labels
are expanded on the device without the dense vector (same value), and views are used up without
replacement.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.batch import Batch, TopKTarget
from trainer.losses import counted_mean, soft_cross_entropy_rows
from trainer.method_config import MixConfig
from trainer.methods.base import Method
from trainer.mix import Mixed, mix_images


class FKD(Method):
    """Soft cross-entropy with the stored top-k label, of plain or mixed crops."""

    needs_labels = True

    def __init__(
        self,
        temperature: float = 1.0,
        mix: MixConfig | None = None,
        views_per_image: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self._mix_config, self._views = mix or MixConfig(), views_per_image
        self.mixes = self._mix_config.kind != "none"
        # its own, and part of the state: what is drawn depends on nothing but the steps before
        self._chance = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        """State of the draws."""
        return self._chance.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of `get_extra_state`."""
        self._chance.set_state(state.cpu())

    def begin_pass(self, epochs_left: int) -> None:
        """Mixing ends with the first pass that begins in the last epochs without it."""
        config = self._mix_config
        self.mixes = config.kind != "none" and epochs_left > config.off_epochs

    def mix(self, batch: Batch) -> Mixed | None:
        """Mix the images of a batch, in place, if that is asked for."""
        if not self.mixes:
            return None
        return mix_images(batch.images, self._mix_config, self._views, self._chance)

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """Terms of the batch after mixing, which changes its images."""
        mixed = self.mix(batch)
        return self.soft_terms(student(batch.images), batch, mixed)

    def soft_terms(self, logits: Tensor, batch: Batch, mixed: Mixed | None) -> dict[str, Tensor]:
        """{"soft_ce": ...} of a batch that was mixed, or not."""
        return self.loss(logits, batch) if mixed is None else self._mixed_loss(logits, batch, mixed)

    def loss(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"soft_ce": mean soft cross-entropy in nats}."""
        return {"soft_ce": self.average(self.rows(logits, _labels(batch), batch.target), batch)}

    def _mixed_loss(self, logits: Tensor, batch: Batch, mixed: Mixed) -> dict[str, Tensor]:
        """Cross-entropy is linear in the label: that with lambda a + (1 - lambda) b."""
        own = self.rows(logits, _labels(batch), batch.target)
        others = _labels(batch).take(mixed.partner), batch.target[mixed.partner]
        rows = mixed.share * own + (1 - mixed.share) * self.rows(logits, *others)
        return {"soft_ce": self.average(rows, batch)}

    def rows(self, logits: Tensor, label: TopKTarget, target: Tensor) -> Tensor:
        """Loss [B] of each crop; target: its image's own class, which FKD doesn't read."""
        return soft_cross_entropy_rows(logits, label, self.temperature)

    def average(self, rows: Tensor, batch: Batch) -> Tensor:
        """One loss of a batch's rows: the mean of those that count."""
        return counted_mean(rows, _labels(batch).counts)


def _labels(batch: Batch) -> TopKTarget:
    assert batch.labels is not None
    return batch.labels
