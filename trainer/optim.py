"""Optimisers by name, with weight decay where it belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from storage.errors import UsageError
from trainer.step_config import OptimConfig

# of transformers, as timm and torchvision call them: what their recipes don't let decay
EMBEDDINGS = frozenset((
    "cls_token", "class_token", "dist_token", "pos_embed", "pos_embedding",
    "relative_position_bias_table",
))  # fmt: skip


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
    """Parameters with their weight decay: matrices and kernels, then what doesn't decay.

    Without `decay_vectors` that is vectors (biases, norms) and embeddings of positions and classes.

    Args:
        lr_factor: times the run's learning rate (`set_lr`).
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decays = config.decay_vectors or _decays(name, parameter)
                (decay if decays else rest).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    factor = {} if lr_factor == 1.0 else {"lr_factor": lr_factor}
    return [group | factor for group in groups if group["params"]]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] not in EMBEDDINGS


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
