"""Whether a student takes crops of every size that its schedule has."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from trainer.config import StudentConfig
from trainer.models.feature_tap import crops_of, noise_batch

WAY_OUT = "take another student, or leave the resolution section out"


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
            with crops_of(side, config.arch, WAY_OUT):
                student(noise_batch(side, device))
    finally:
        student.train(was_training)
