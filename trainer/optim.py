"""Optimisers by name, with weight decay where it belongs."""

from __future__ import annotations

import torch
from torch import nn

from storage.errors import UsageError
from trainer.step_config import OptimConfig


def create(config: OptimConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """Optimiser over all parameters of the student and the method's modules that learn.

    Raises:
        UsageError: a timm optimiser that timm doesn't have.
    """
    groups = parameter_groups(config, *modules)
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
        )
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    import timm.optim

    name = config.name.removeprefix("timm:")
    if name not in timm.optim.list_optimizers():
        raise UsageError(
            f"timm has no optimiser {name!r}; it has {', '.join(timm.optim.list_optimizers())}"
        )
    return timm.optim.create_optimizer_v2(
        groups, opt=name, lr=config.lr, momentum=config.momentum, weight_decay=0.0
    )


def parameter_groups(config: OptimConfig, *modules: nn.Module) -> list[dict]:
    """Parameters with their weight decay: matrices and kernels, then vectors (biases, norms)."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if config.decay_vectors:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
