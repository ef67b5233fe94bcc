"""Several processes that train one student, as `torchrun` starts them; or one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from storage.errors import UsageError
from trainer.learner import Learner


@dataclass(frozen=True)
class World:
    """This process among those that train together. rank: 0 .. size - 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes, evaluates and reports."""
        return self.rank == 0

    def wrap(self, learner: Learner, device: torch.device) -> nn.Module:
        """The module whose backward averages gradients over all processes."""
        if self.size == 1:
            return learner
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            learner,
            device_ids=devices,
            find_unused_parameters=not learner.method.trains_whole_student,
        )

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all get the same answer."""
        if self.size == 1:
            return flag
        flags: list[Any] = [None] * self.size
        dist.all_gather_object(flags, flag)
        return any(flags)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment describes, left at the end.

    Raises:
        UsageError: the environment names a world but not this process's place in it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {size} but RANK or MASTER_ADDR is not set: start with "
            "`torchrun --nproc-per-node N -m trainer.cli fit ...`, or unset WORLD_SIZE"
        )
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size)
        dist.barrier()  # the first process serves the others until all are done
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several on a machine, each takes its own GPU."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device
