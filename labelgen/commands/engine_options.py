"""Options of `labelgen run` that say in how many processes, and where, blocks are labelled."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.cli_common import with_options
from storage.errors import UsageError

if TYPE_CHECKING:
    from labelgen.engine import RunReport
    from labelgen.parallel.world import World
    from labelgen.teacher import Teacher

F = TypeVar("F", bound=Callable[..., Any])
WORDS = "labelgen.words"
ENGINES = ("local", "slurm", "ray")
# Of the submitting command alone: a job must not submit again.
_SUBMITTING = {"--engine": 1, "--slurm": 1, "--no-wait": 0, "--overwrite": 0}

_OPTIONS = (
    click.option("--processes", type=click.IntRange(1), default=None,
                 help="Processes that label, each with the teacher on its own device "
                      "[default: one for each GPU, 1 on a CPU]."),
    click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True,
                 help="What starts them: this command, Slurm jobs or Ray actors."),
    click.option("--slurm", multiple=True, metavar="KEY=VALUE",
                 help="With --engine slurm: of every job, as in partition=gpu (repeatable)."),
    click.option("--no-wait", is_flag=True,
                 help="With --engine slurm: leave once the jobs are submitted."),
    click.option("--patience", type=click.FloatRange(0), default=1800.0, show_default=True,
                 help="Seconds that further processes wait for the first one to make the store, "
                      "and to seal it."),
)  # fmt: skip


class CommandWithWords(click.Command):
    """A command that keeps its words, to be run with the same ones elsewhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, which consumes `args`."""
        ctx.meta[WORDS] = [str(self.name), *args]
        return super().parse_args(ctx, args)


def engine_options(command: F) -> F:
    """--processes, --engine and theirs; the values go to `Engine`."""
    return with_options(_OPTIONS)(command)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What `engine_options` ask for, where this process is.

    Attributes:
        kind: of ENGINES. world: this process's place; processes: how many label.
        words: of this command. slurm, no_wait, patience: the options of these names.
    """

    kind: str
    world: World
    processes: int
    words: Sequence[str]
    slurm: Sequence[str]
    no_wait: bool
    patience: float

    def place(self, device: str) -> tuple[str, int]:
        """This process's device, and its cores, on which torch is made to compute."""
        from labelgen.parallel.world import device_of, take_share_of_cores

        return device_of(self.world, device), take_share_of_cores(self.world)

    def label(
        self, teacher: Teacher, options: Mapping[str, Any], data: Path, out: str, workers: int,
        settings: Mapping[str, Any],
    ) -> Callable[..., RunReport] | None:  # fmt: skip
        """What labelgen.run.generate is given as `label`; None where one process does it all.

        Args:
            options: that describe the teacher. settings: of labelgen.run.begin_store.
        """
        if self.kind == "ray":
            from labelgen.parallel.ray_engine import Request, ray_labelling

            device = {"device": teacher.device.type}  # which of them is Ray's choice
            request = Request(
                folder=str(Path.cwd()), teacher={**options, **device}, data=str(data), out=out,
                workers=max(1, workers // self.processes), settings=settings,
            )  # fmt: skip
            return ray_labelling(request, self.processes)
        if self.world.size == 1:
            return None
        from labelgen.parallel.leading import leader
        from labelgen.parallel.local import Helpers
        from labelgen.parallel.world import SPAWNED

        if self.world.launcher != SPAWNED:
            return leader(self.world)
        return leader(self.world, lambda stop: Helpers(self.words, self.world, stop))

    def join(
        self, teacher: Teacher, data: Path, out: str, workers: int, stop: threading.Event,
        settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Take part in a run that another process leads; see labelgen.parallel.joining."""
        from labelgen.parallel.joining import join
        from labelgen.parallel.local import stop_with_parent
        from labelgen.parallel.world import SPAWNED

        if self.world.launcher == SPAWNED:
            stop_with_parent(stop)
        join(
            teacher, data, out, self.world, patience=self.patience, workers=workers, stop=stop,
            **settings,
        )  # fmt: skip

    def submit(self, out: str, overwrite: bool, as_json: bool, stop: threading.Event) -> str:
        """Submit the run to Slurm; what its first process printed, or the jobs with --no-wait.

        Raises:
            UsageError, TeachonceError: see labelgen.parallel.slurm.
        """
        from labelgen.parallel.slurm import parse_parameters, submit
        from labelgen.settings import remove_store

        parameters = parse_parameters(self.slurm)
        if overwrite:
            remove_store(Path(out))  # before any process looks whether it is there
        logs = Path(f"{out.rstrip('/')}.jobs").absolute()
        jobs = submit(_without(self.words, _SUBMITTING), self.processes, logs, parameters)
        if self.no_wait and as_json:
            return json.dumps({"jobs": jobs.ids, "logs": str(logs)}, indent=2) + "\n"
        if self.no_wait:
            return f"jobs       {' '.join(jobs.ids)}\nlogs       {logs}\n"
        return jobs.wait(stop)


def engine_from_options(
    processes: int | None,
    engine: str,
    slurm: Sequence[str],
    no_wait: bool,
    patience: float,
    *,
    device: str,
    overwrite: bool,
) -> Engine:
    """The engine that the options and the launcher's environment describe.

    Raises:
        UsageError: options that contradict each other or the launcher.
    """
    from labelgen.parallel.world import SPAWNED, World, visible_devices, world_from_environment

    if engine != "slurm" and (slurm or no_wait):
        raise UsageError("--slurm and --no-wait are for --engine slurm")
    words: list[str] = click.get_current_context().meta[WORDS]
    world = world_from_environment(os.environ) if engine == "local" else None
    if world is None:
        count = processes or (1 if engine == "slurm" else visible_devices(device))
        # of Slurm jobs and Ray actors, none is this process
        size = count if engine == "local" else 1
        world = World(0, size, 0, size, SPAWNED if size > 1 else "")
    else:
        count = world.size
        if world.launcher not in (SPAWNED, "slurm") and processes not in (None, world.size):
            raise UsageError(
                f"--processes {processes} under {world.launcher}, which started {world.size}: "
                "leave it out"
            )
        if world.launcher != SPAWNED and overwrite:
            raise UsageError(
                f"--overwrite under {world.launcher}: the other processes could find the old "
                "store; delete it first"
            )
    return Engine(
        kind=engine, world=world, processes=count, words=words, slurm=slurm, no_wait=no_wait,
        patience=patience,
    )  # fmt: skip


def _without(words: Sequence[str], options: dict[str, int]) -> list[str]:
    """Words without some options and the values that follow them."""
    kept, skip = [], 0
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif name in options:
            skip = 0 if equals else options[name]
        else:
            kept.append(word)
    return kept
