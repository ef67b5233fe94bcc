"""Whether a student takes crops of every size that its schedule has."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from storage.errors import UsageError
from trainer.config import StudentConfig
from trainer.models.feature_tap import noise_batch


@torch.no_grad()
def check_sides(student: nn.Module, sides: Iterable[int], config: StudentConfig) -> None:
    """Show the student noise of every other size than its own, before training.

    Raises:
        UsageError: it was built for one size (a vision transformer's positions, mostly).
    """
    was_training, device = student.training, next(student.parameters()).device
    student.eval()
    try:
        for side in sorted(set(sides) - {config.input_size}):
            try:
                student(noise_batch(side, device))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                raise UsageError(
                    f"student {config.arch} can't take crops of {side} pixels a side "
                    f"({reason[0]}): take another student, or leave the resolution section out"
                ) from error
    finally:
        student.train(was_training)
