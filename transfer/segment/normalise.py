"""Pixels as the student takes them, in training and when it is judged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.config import StudentConfig


def normaliser(student: StudentConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 [..., 3, H, W] -> float32 of that shape on the device, (x / 255 - mean) / std."""
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1) for values in (student.mean, student.std)
    )
    return lambda pixels: (pixels.to(device).float() / 255 - mean) / std
