"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from storage.errors import TrainingError
from trainer.batch import Counted
from trainer.learner import total
from trainer.optim import set_lr


def train_steps(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Counted],
    *,
    lr_of_step: Callable[[int], float],
    first_step: int,
    on_step: Callable[[int, Tensor, int], None],
    accumulate: int = 1,
    clip_norm: float | None = None,
) -> int:
    """One optimiser step every `accumulate` batches, with the mean of their gradients.

    The last step of an epoch may have fewer batches, where images failed to decode; each still
    weighs 1 / accumulate.

    Args:
        learner: trainer.learner.Learner, maybe wrapped for data-parallel training.
        lr_of_step: learning rate of a global step.
        first_step: global number of the first step.
        on_step: called after each step with its global number, the loss (a tensor on the
            device: reading it waits for the device) and the number of crops.
        clip_norm: largest norm of all gradients together.
    Returns:
        The number of the next step.
    """
    learner.train()
    step, crops = first_step, 0
    losses: list[Tensor] = []

    def take_step() -> None:
        nonlocal step, crops
        set_lr(optimizer, lr_of_step(step))
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(learner.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step, torch.stack(losses).sum(), crops)
        losses.clear()
        step, crops = step + 1, 0

    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        loss = total(learner(batch)) / accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        crops += len(batch.target)
        if len(losses) == accumulate:
            take_step()
    if losses:
        take_step()
    return step


class FiniteGuard:
    """Watches the loss without waiting for the device at every step.

    Args:
        every: steps between looks at the device.
        describe: where a step stands and what it is made of, for the message; called for the
            step that went wrong alone.
    """

    def __init__(self, every: int, describe: Callable[[int], str]) -> None:
        self._every, self._describe = every, describe
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
                f"the loss is not finite at {self._describe(int(self._bad))}: lower --lr or raise "
                "--warmup-epochs; the last checkpoint is from before that"
            )


def check_weights(student: nn.Module, where: str) -> None:
    """Refuse weights that a last finite loss has left broken, before they are saved.

    Raises:
        TrainingError: a tensor of the student has a value that isn't finite.
    """
    values = {n: t for n, t in student.state_dict().items() if t.is_floating_point()}
    sound = torch.stack([t.isfinite().all() for t in values.values()]).tolist()
    if not all(sound):
        name = list(values)[sound.index(False)]
        raise TrainingError(
            f"{name} of the student is not finite after {where}: lower --lr or raise "
            "--warmup-epochs; the last checkpoint is from before that"
        )
