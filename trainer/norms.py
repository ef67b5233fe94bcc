"""Batch norms of networks that several processes learn."""

from __future__ import annotations

from typing import TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from storage.errors import UsageError
from trainer.distributed import World
from trainer.step_config import BATCH, SYNC

Network = TypeVar("Network", bound=nn.Module)


def check_norm(norm: str, world: World, device: torch.device, option: str = "--norm ") -> None:
    """See that processes can have such batch norms.

    Args:
        option: how the command line asks for one, in front of its name.
    Raises:
        UsageError: torch's synchronised batch norm takes tensors of GPUs alone.
    """
    if norm == SYNC and world.size > 1 and device.type != "cuda":
        raise UsageError(
            f"{option}{SYNC} over {world.size} processes needs GPUs, and these have "
            f"{device.type}: give {option}{BATCH}, with statistics of each process's own images, "
            "or start one process"
        )


def with_norm(model: Network, norm: str, world: World) -> Network:
    """A network whose batch norms take statistics of all processes' images, where that is asked
    for; one process has them all already.

    Parameters and their names stay what they are. Converted by timm, whose own norms hold the
    activation, which torch's conversion drops.
    """
    if norm != SYNC or world.size == 1:
        return model
    converted: Network = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted
