"""Which of how many processes this one is: from its launcher's environment and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from storage.errors import UsageError

OWN = "TEACHONCE_RANK"  # rank/size/local rank/local size/launcher, of processes that we start
SPAWNED = "labelgen"  # the launcher of those that end with the process that started them
OUT_OF_RANGE = "expected 0 to the number of processes less 1"


@dataclass(frozen=True)
class World:
    """One of several processes that write one store.

    Attributes:
        rank: this process; 0 makes the store and seals it. size: how many there are.
        local_rank, local_size: the same among those of this machine.
        launcher: what started them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = ""

    def __post_init__(self) -> None:
        for name, value, size in (
            ("rank", self.rank, self.size),
            ("local rank", self.local_rank, self.local_size),
        ):
            if not 0 <= value < size:
                raise UsageError(f"{name} {value} of {size} ({self.launcher}): {OUT_OF_RANGE}")

    @property
    def leads(self) -> bool:
        """Whether this process makes the store and seals it."""
        return self.rank == 0

    def environment(self) -> dict[str, str]:
        """Variables by which a process that is started with them knows its place."""
        numbers = (self.rank, self.size, self.local_rank, self.local_size)
        return {OWN: "/".join([*map(str, numbers), self.launcher])}


def world_from_environment(environment: Mapping[str, str]) -> World | None:
    """This process's place as torchrun, srun or `labelgen` itself has set it; None where it is
    alone. RANK goes before SLURM_PROCID, so that torchrun may run under srun.

    Raises:
        UsageError: variables that are no numbers, or out of range.
    """
    if OWN in environment:
        *numbers, launcher = environment[OWN].split("/")
        rank, size, local_rank, local_size = (_number(OWN, each) for each in numbers)
        return World(rank, size, local_rank, local_size, launcher)
    for launcher, read in (("torchrun", _torchrun), ("srun", _srun)):
        found = read(environment, launcher)
        if found is not None:
            return found if found.size > 1 else None
    return None


def _torchrun(environment: Mapping[str, str], launcher: str) -> World | None:
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return None
    local = _number("LOCAL_RANK", environment.get("LOCAL_RANK", "0"))
    here = environment.get("LOCAL_WORLD_SIZE", str(local + 1))
    return World(
        _number("RANK", environment["RANK"]),
        _number("WORLD_SIZE", environment["WORLD_SIZE"]),
        local,
        _number("LOCAL_WORLD_SIZE", here),
        launcher,
    )


def _srun(environment: Mapping[str, str], launcher: str) -> World | None:
    size = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    if size is None or "SLURM_PROCID" not in environment:
        return None
    local = _number("SLURM_LOCALID", environment.get("SLURM_LOCALID", "0"))
    # such as "2(x3),1": of every machine; what is needed is how many share the cores
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    here = max(local + 1, int(tasks.group()) if tasks else 1)
    rank = _number("SLURM_PROCID", environment["SLURM_PROCID"])
    return World(rank, _number("SLURM_NTASKS", size), local, here, launcher)


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"${name} is {text!r}; expected a whole number, as torchrun or srun sets")
    return int(text)


def device_of(world: World, wanted: str) -> str:
    """--device of this process: where any GPU would do, the processes of a machine take turns.

    Args:
        wanted: auto, cpu, cuda or cuda:N.
    """
    if wanted not in ("auto", "cuda") or world.local_size == 1:
        return wanted
    import torch

    devices = torch.cuda.device_count()
    return f"cuda:{world.local_rank % devices}" if devices else wanted


def visible_devices(wanted: str) -> int:
    """Processes that --device asks for on this machine: one for each GPU, else one."""
    if wanted not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def share_of_cores(world: World) -> int:
    """Cores for this process where its machine's are divided evenly, 1 at least.

    A launcher that bound the process to some of the cores has divided them already.
    """
    allowed, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return allowed if allowed < cores else max(1, cores // world.local_size)


def take_share_of_cores(world: World) -> int:
    """Have torch compute on this process's share of the cores, unless OMP_NUM_THREADS says on how
    many; returns the share.
    """
    cores = share_of_cores(world)
    if world.local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(cores)
    return cores
