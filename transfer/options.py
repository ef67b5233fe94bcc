"""Options that the tasks share; nothing heavy is imported, so that --help is instant."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from storage.cli_common import (
    device_option,
    json_option,
    overwrite_option,
    seed_option,
    with_options,
    workers_option,
)
from trainer.config import PRECISIONS, default_precision

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What every task is asked for; None: the task's own choice.

    Attributes:
        out: folder of the runs and the result; None: beside the student, named after the task.
        compare: see `transfer.starts.open_starts`. seeds: number of runs of each start, the
            first of which has `seed`.
    """

    out: Path | None = None
    compare: tuple[str, ...] = ()
    seeds: int = 3
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    device: str = "auto"
    precision: str | None = None
    workers: int = 2
    seed: int = 0
    overwrite: bool = False

    @property
    def all_seeds(self) -> range:
        """The seed of every run."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def readers(self) -> int:
        """Processes that read images; with one worker none: the one that learns would only wait
        for it."""
        return self.workers if self.workers > 1 else 0

    def folder(self, student: Path, task: str) -> Path:
        """Where a task writes."""
        return self.out or student.parent / task

    def precision_on(self, cuda: bool) -> str:
        """Of the forward pass on a GPU, or else on a CPU."""
        return self.precision or default_precision(cuda)

    def to_json(self) -> dict[str, Any]:
        """How the runs of a result were made, beside their settings."""
        return {"seeds": list(self.all_seeds), "device": self.device, "workers": self.workers}


def task_options(command: F) -> F:
    """The options of `TaskOptions`, and --json."""
    options = (
        click.option("--out", type=FILE, help="Folder of runs and results [default: beside "
                                              "STUDENT].",),
        click.option("--compare", multiple=True, metavar="START",
                     help="`scratch`: the same network untrained; or other weights of it, as FILE "
                     "or NAME=FILE. May be given several times."),
        click.option("--seeds", type=click.IntRange(1), default=3, show_default=True,
                     help="Runs of each start, from --seed on."),
        click.option("--epochs", type=click.IntRange(1), help="[default: as published]"),
        click.option("--batch-size", type=click.IntRange(1), help="[default: as published]"),
        click.option("--lr", type=click.FloatRange(0, min_open=True),
                     help="Learning rate [default: as published]."),
        click.option("--precision", type=click.Choice(PRECISIONS),
                     help="[default: bf16 on cuda, else fp32]"),
        device_option,
        workers_option,
        seed_option,
        overwrite_option,
        json_option,
    )  # fmt: skip
    return with_options(options)(command)


def take_options(options: dict[str, Any]) -> TaskOptions:
    """Take what `task_options` added out of a command's options."""
    names = ("out", "compare", "seeds", "epochs", "batch_size", "lr", "precision", "device",
             "workers", "seed", "overwrite")  # fmt: skip
    taken = {name: options.pop(name) for name in names}
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes of this machine
    taken["workers"] = taken["workers"] or max(1, (os.cpu_count() or 1) // here)
    return TaskOptions(**taken)


def data_options(command: F) -> F:
    """--data and --val of labelled images, see `transfer.images.open_labelled`."""
    command = click.option(
        "--val",
        help="Images to judge on, likewise; Tiny-ImageNet's val too [default: --data's other "
        "split].",
    )(command)
    return click.option(
        "--data",
        required=True,
        help="Training images: class folders, or a data set by name, such as cifar100:ROOT, "
        "dtd:ROOT or hf:FOLDER.",
    )(command)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, kind: Callable[[str], float]) -> None:
        self.kind = kind

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """`1,5,10` -> (1, 5, 10)."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas", param, ctx)
