"""Several processes that train one student, as `torchrun` starts them; or one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from storage.errors import StoreMismatch, TeachonceError, UsageError

T = TypeVar("T")
# The first process packs and evaluates while the others wait: longer than NCCL's ten minutes.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class World:
    """This process among those that train together. rank: 0 .. size - 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes, evaluates and reports."""
        return self.rank == 0

    def wrap(self, learner: nn.Module, device: torch.device, **options: Any) -> nn.Module:
        """The module whose backward averages gradients over all processes.

        Args:
            options: DistributedDataParallel's own, such as which parameters get no gradient.
        """
        if self.size == 1:
            return learner
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(learner, device_ids=devices, **options)

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

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes while the others wait; all get it, or its error.

        Raises:
            TeachonceError: what `make` raised, in every process.
        """
        made: tuple[Any, TeachonceError | None] = (None, None)
        if self.is_first:
            try:
                made = make(), None
            except TeachonceError as error:
                made = None, error
        value, failure = self.gather(made)[0]
        if failure is not None:
            raise failure
        result: T = value
        return result

    def sum(self, value: Tensor) -> Tensor:
        """A tensor added up over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def draw_apart(self, seed: int) -> None:
        """Let each process draw its own chances in training, after networks were drawn alike."""
        torch.manual_seed(seed + self.rank)

    def chances(self) -> list[Tensor]:
        """Torch's random state of every process, for a checkpoint."""
        return self.gather(torch.get_rng_state())

    def resume_chances(self, saved: Sequence[Tensor], path: Path) -> None:
        """Inverse of `chances`.

        Raises:
            StoreMismatch: the checkpoint at `path` is of another number of processes.
        """
        if len(saved) != self.size:
            raise StoreMismatch(
                f"{path} is of a run with {len(saved)} processes, this one has {self.size}: start "
                "as many, or start over with --overwrite"
            )
        torch.set_rng_state(saved[self.rank])


def processes_started() -> int:
    """How many processes the environment says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined_world(device: torch.device, command: str = "trainer.cli fit") -> Iterator[World]:
    """The world that torchrun's environment describes, left at the end.

    Args:
        command: what torchrun starts, for the message.
    Raises:
        UsageError: the environment names a world but not this process's place in it.
    """
    size = processes_started()
    if size == 1:
        yield World()
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {size} but RANK or MASTER_ADDR is not set: start with "
            f"`torchrun --nproc-per-node N -m {command} ...`, or unset WORLD_SIZE"
        )
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
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
