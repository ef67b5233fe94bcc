"""Training on the images' own classes: the baseline, and how teachers are made."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from trainer.batch import Batch
from trainer.losses import cross_entropy
from trainer.methods.base import Method


class Supervised(Method):
    """Cross-entropy with the hard class."""

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"ce": mean cross-entropy}."""
        return {"ce": cross_entropy(student(batch.images), batch.target)}
