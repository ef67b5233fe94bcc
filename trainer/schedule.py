"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def lr_at(step: int, *, peak: float, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up from peak / warmup_steps, then half a cosine to 0 at `total_steps`.

    Cosine: 0.5 * peak * (1 + cos(pi * t)), t the fraction of the steps after warm-up
    (Loshchilov & Hutter 2017, arXiv:1608.03983, Eq. 5 without restarts).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * min(1.0, progress)))
