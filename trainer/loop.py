"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from storage.errors import TrainingError
from trainer.batch import Batch
from trainer.methods.base import Method
from trainer.optim import set_lr


def train_steps(
    student: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    lr_of_step: Callable[[int], float],
    first_step: int,
    autocast_dtype: torch.dtype | None,
    on_step: Callable[[int, Tensor, int], None],
) -> int:
    """One optimiser step a batch.

    Args:
        lr_of_step: learning rate of a global step.
        first_step: global number of the first step.
        autocast_dtype: lower precision of the forward, None for float32.
        on_step: called after each step with its global number, the summed loss (a tensor on the
            device: reading it waits for the device) and the number of crops.
    Returns:
        The number of the next step.
    """
    student.train()
    method.train()
    step = first_step
    for batch in batches:
        set_lr(optimizer, lr_of_step(step))
        with torch.autocast(
            batch.images.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None
        ):
            logits = student(batch.images)
        loss = torch.stack(list(method.loss(logits, batch).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        on_step(step, loss.detach(), len(batch.target))
        step += 1
    return step


class FiniteGuard:
    """Watches the loss without waiting for the device at every step."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._bad: Tensor | None = None  # first step with a non-finite loss, or a huge number

    def see(self, step: int, loss: Tensor) -> None:
        """Take note of a step's loss; looks at the notes every few steps.

        Raises:
            TrainingError: a loss was NaN or infinite.
        """
        here = torch.where(loss.isfinite(), 2**62, step)
        self._bad = here if self._bad is None else torch.minimum(self._bad, here)
        if step % self._every == 0:
            self.check()

    def check(self) -> None:
        """Raise if any loss seen so far was not finite (called before each checkpoint too)."""
        if self._bad is not None and int(self._bad) < 2**62:
            raise TrainingError(
                f"the loss is not finite at step {int(self._bad)}: lower --lr or raise "
                "--warmup-epochs; the last checkpoint is from before that"
            )
