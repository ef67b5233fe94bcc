"""Student and method together: all that learns in a run, and what one step makes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from trainer.batch import Batch, TopKTarget
from trainer.methods.base import Method


class Learner(nn.Module):
    """What is trained as one module, so that data-parallel training reduces all its gradients.

    Args:
        autocast_dtype: lower precision of the student's forward, None for float32. Losses are
            computed outside of it.
        compiled: run the student through torch.compile; its state stays that of `student`.
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        autocast_dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.method = student, method
        self._logits: Tensor | None = None  # of the last batch
        self._labels: TopKTarget | None = None
        self._autocast_dtype = autocast_dtype
        # in a tuple: a compiled module registered here would double every name of the state
        self._call: tuple[Callable[[Tensor], Tensor]] = (
            torch.compile(student) if compiled else student,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms of a batch, weighted; their sum is the loss."""
        self._logits, self._labels = None, batch.labels
        return self.method.terms(self._run_student, batch)

    def agreement(self) -> float | None:
        """Share of the last batch's crops whose likeliest class is that of the stored label.

        None where there are no labels, or where mixed crops aren't asked for their own label.
        Waits for the device.
        """
        if self._logits is None or self._labels is None or self.method.mixes:
            return None
        return float((self._logits.argmax(dim=-1) == self._labels.index[:, 0]).float().mean())

    def _run_student(self, images: Tensor) -> Tensor:
        with self._autocast(images.device):
            logits = self._call[0](images)
        self._logits = logits.detach()
        return logits

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = self._autocast_dtype
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def total(terms: dict[str, Tensor]) -> Tensor:
    """The loss: sum of all terms."""
    return torch.stack(list(terms.values())).sum()
