"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from trainer.step_config import ScheduleConfig


def lr_at(
    step: int, config: ScheduleConfig, *, peak: float, epoch_steps: int, epochs: int
) -> float:
    """Learning rate of a global step.

    Warm-up: from `warmup_lr` in equal rises to the peak, which the last step of the warm-up has.
    Then `cosine`: half a cosine from the peak to `final_lr` (Loshchilov & Hutter 2017,
    arXiv:1608.03983, Eq. 5 without restarts); `linear`: a straight line to it; `poly`: falls as the
    `power` of what is left (Chen et al. 2018, arXiv:1606.00915, section 4.1.2); `step`: times gamma
    after every `step_epochs` epochs or at the milestones, counted from the run's start;
    `constant`: the peak.
    """
    warmup_steps = round(config.warmup_epochs * epoch_steps)
    if step < warmup_steps:
        return config.warmup_lr + (peak - config.warmup_lr) * (step + 1) / warmup_steps
    if config.kind == "step":
        return peak * config.gamma ** _steps_down(step / epoch_steps, config)
    if config.kind == "constant":
        return peak
    done = min(1.0, (step - warmup_steps) / max(1, epoch_steps * epochs - warmup_steps))
    return config.final_lr + (peak - config.final_lr) * _share_left(done, config)


def _share_left(done: float, config: ScheduleConfig) -> float:
    if config.kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return float((1.0 - done) ** (config.power if config.kind == "poly" else 1.0))


def _steps_down(epoch: float, config: ScheduleConfig) -> int:
    if config.milestones:
        return sum(epoch >= milestone for milestone in config.milestones)
    return int(epoch // config.step_epochs)
