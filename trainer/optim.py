"""Optimisers by name, with weight decay where it belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from storage.errors import UsageError
from trainer.step_config import OptimConfig


def create(config: OptimConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """Optimiser over all parameters of the student and the method's modules that learn.

    Raises:
        UsageError: a timm optimiser that timm doesn't have.
    """
    return from_groups(config, parameter_groups(config, *modules))


def from_groups(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Optimiser over groups of `parameter_groups`, maybe of several calls.

    Raises:
        UsageError: a timm optimiser that timm doesn't have.
    """
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
        )
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    from timm.optim import create_optimizer_v2, list_optimizers

    name, known = config.name.removeprefix("timm:"), [str(one) for one in list_optimizers()]
    if name not in known:
        raise UsageError(f"timm has no optimiser {name!r}; it has {', '.join(known)}")
    return create_optimizer_v2(
        groups, opt=name, lr=config.lr, momentum=config.momentum, weight_decay=0.0
    )


def parameter_groups(
    config: OptimConfig, *modules: nn.Module, lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters with their weight decay: matrices and kernels, then vectors (biases, norms).

    Args:
        lr_factor: times the run's learning rate (`set_lr`).
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if config.decay_vectors:
        groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    else:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    factor = {} if lr_factor == 1.0 else {"lr_factor": lr_factor}
    return [group | factor for group in groups if group["params"]]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
