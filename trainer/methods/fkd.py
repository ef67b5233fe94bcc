"""FKD: Fast Knowledge Distillation (Shen & Xing 2022, arXiv:2112.01528).

The student sees the stored crop and is asked for the teacher's stored answer to that crop; there
is no hard-label term and no T^2 factor. Departs from the published code in two places: labels
are expanded on the device without the dense vector (same value), and views are used up without
replacement.
"""

from __future__ import annotations

from torch import Tensor

from trainer.batch import Batch
from trainer.losses import soft_cross_entropy_topk
from trainer.methods.base import Method


class FKD(Method):
    """Soft cross-entropy with the stored top-k label."""

    needs_labels = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def loss(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"soft_ce": mean soft cross-entropy in nats}."""
        assert batch.labels is not None
        labels = batch.labels
        return {
            "soft_ce": soft_cross_entropy_topk(
                logits,
                labels.index,
                labels.probs,
                labels.tail,
                self.temperature,
                labels.extra_index,
                labels.extra,
            )
        }
