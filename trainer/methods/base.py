"""The method object: everything that sets one way of training apart from another."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from trainer.batch import Batch


class Method(nn.Module, ABC):
    """The training-only half of a run.

    Modules that a method adds live here and never in the student, so that the student's state
    dict is the same under every method.
    """

    needs_labels: bool = False  # reads the store's top-k labels

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; the loop adds them up."""
