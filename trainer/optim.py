"""Optimisers by name, with weight decay where it belongs."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import OptimConfig


def create(config: OptimConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """Optimiser over all parameters of the student and the method's modules.

    SGD decays every weight, as FKD and ReLabel do; AdamW spares biases and norms (vectors), as
    timm does for the published ViT settings.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
