"""A student of a store beside the same student of a live teacher and of hard labels alone.

    python benchmarks/live_teacher.py run --out runs --arm store --seed 0 \
        --train FOLDER --val FOLDER --weights teacher.safetensors \
        --arch resnet56 --mean 0.5071 0.4865 0.4409 --std 0.2673 0.2564 0.2762
    python benchmarks/live_teacher.py table --out runs

Every arm has the same network, optimiser, schedule, batch, seeds and number of epochs:

    hard   the images' own classes
    live   the teacher's forward pass on every batch, soft cross-entropy with all its classes
    store  the teacher's stored top-k answers

The store holds as many views as there are epochs, each is used once, and all arms of a seed replay
the same crops in the same order: what differs is what the student is asked for, and what that
costs. The teacher's classes must be the folder's, in sorted order. Time is that of training
alone, by the clock and by the processor; labelling is given apart, and the number of students
after which the store has paid for itself. Nothing is evaluated before the end of a run, so that no
epoch is chosen by the validation images. The table compares whatever runs it finds in --out.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from labelgen.run import generate
from labelgen.target_options import TargetOptions
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.images import scan_folder
from storage.reading import MANIFEST
from storage.views import RandomResizedCrop
from trainer import methods
from trainer.batch import Batch
from trainer.checkpoint import STUDENT_NAME, load_student
from trainer.evaluate import evaluate
from trainer.methods.base import Method
from trainer.request import FitRequest
from trainer.run import fit

ARMS = ("hard", "live", "store")
TIMES = ("seconds", "processor_seconds")
STORE_NAME = "store.zarr"


class LiveTeacher(Method):
    """Soft cross-entropy with a teacher that looks at every batch itself; this benchmark only."""

    def __init__(self, teacher: nn.Module, autocast: torch.dtype | None) -> None:
        super().__init__()
        self._teacher = (teacher,)  # in a tuple: no part of the run's state
        self._autocast = autocast

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"soft_ce": mean cross-entropy with the teacher's dense answer}."""
        low = self._autocast
        with torch.no_grad(), torch.autocast("cpu", dtype=low, enabled=low is not None):
            wanted = self._teacher[0](batch.images).float().softmax(dim=-1)
        log_q = student(batch.images).float().log_softmax(dim=-1)
        return {"soft_ce": -(wanted * log_q).sum(dim=-1).mean()}


@click.group()
def main() -> None:
    """Hard labels, a live teacher and its store, compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What both benchmarks of a live teacher are asked for."""

    out: Path
    arm: str
    seed: int
    train: str
    val: Path
    weights: str
    arch: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    student: str
    scale: tuple[float, float]
    batch_size: int
    lr: float
    weight_decay: float
    precision: str

    @property
    def store(self) -> Path:
        """The store of all arms and seeds."""
        return self.out / STORE_NAME

    @property
    def folder(self) -> Path:
        """Of this arm's run with this seed."""
        return self.out / f"{self.arm}{self.seed}"

    def teacher(self) -> Teacher:
        """The teacher, loaded."""
        spec = resolve(
            f"file:{self.weights}", arch=self.arch, size=self.size, mean=self.mean, std=self.std
        )
        return load_teacher(spec, "cpu")

    def request(self, **options: Any) -> FitRequest:
        """A run with the settings that all arms share."""
        common: dict[str, Any] = {
            "out": self.folder, "labels": self.store, "data": self.train, "student": self.student,
            "size": self.size, "batch_size": self.batch_size, "views_per_image": 1, "lr": self.lr,
            "weight_decay": self.weight_decay, "seed": self.seed, "device": "cpu",
            "precision": self.precision,
        }  # fmt: skip
        return FitRequest(**common | options)

    def report(self, measures: dict[str, Any], epochs: Any) -> None:
        """Write the line of this arm and seed, and print it."""
        line = json.dumps(measures | {"arm": self.arm, "seed": self.seed, "epochs": epochs})
        self.folder.with_suffix(".json").write_text(line)
        click.echo(line)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command of a Comparison, and of further options by name."""
    names = [field.name for field in fields(Comparison)]

    @functools.wraps(command)
    def compare(**values: Any) -> None:
        shared = {name: values.pop(name) for name in names}
        command(Comparison(**shared), **values)

    wrapped: Callable[..., None] = compare
    options = (
        click.option("--out", required=True, type=click.Path(path_type=Path)),
        click.option("--arm", required=True, type=click.Choice(ARMS)),
        click.option("--seed", type=int, required=True),
        click.option("--train", required=True, type=click.Path(exists=True)),
        click.option("--val", required=True, type=click.Path(exists=True, path_type=Path)),
        click.option("--weights", required=True, type=click.Path(exists=True)),
        click.option("--arch", required=True),
        click.option("--mean", type=float, nargs=3, required=True),
        click.option("--std", type=float, nargs=3, required=True),
        click.option("--size", type=int, default=32, show_default=True),
        click.option("--student", default="resnet20", show_default=True),
        click.option("--scale", type=float, nargs=2, default=(0.25, 1.0), show_default=True),
        click.option("--batch-size", type=int, default=128, show_default=True),
        click.option("--lr", type=float, default=0.1, show_default=True),
        click.option("--weight-decay", type=float, default=5e-4, show_default=True),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16"]),
            default="fp32",
            show_default=True,
            help="Of the student and of the live teacher.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@main.command()
@run_options
@click.option("--epochs", type=int, default=30, show_default=True)
@click.option("--loader", default="ffcv", show_default=True)
def run(what: Comparison, epochs: int, loader: str) -> None:
    """One arm and one seed; the store is made where it isn't there yet."""
    teacher = what.teacher()
    if not (what.store / MANIFEST).exists():
        label(teacher, what, epochs)
    method = "fkd" if what.arm == "store" else "supervised"
    live = partial(live_method, teacher, what.precision) if what.arm == "live" else None
    request = what.request(epochs=epochs, method=method, loader=loader)
    what.report(measured(request, live, what.val), epochs)


def live_method(teacher: Teacher, precision: str, *_arguments: Any, **_options: Any) -> Method:
    """What trainer.methods.create is replaced by."""
    return LiveTeacher(teacher.model, torch.bfloat16 if precision == "bf16" else None)


def measured(
    request: FitRequest, create: Callable[..., Method] | None, val: Path | None
) -> dict[str, Any]:
    """Train, and score the student.

    Args:
        create: makes the method in place of trainer.methods.create. val: None: not scored.
    """
    started, own = time.process_time(), methods.create
    methods.create = create or own
    try:
        result = fit(request)
    finally:
        methods.create = own
    line = {"seconds": result.seconds, "processor_seconds": time.process_time() - started}
    if val is None:
        return line
    model, config = load_student(result.out / STUDENT_NAME)
    score = evaluate(model, scan_folder(val), config, device=torch.device("cpu"))
    return line | {"top1": 100 * score.top1, "loss": score.loss}


def label(
    teacher: Teacher, what: Comparison, crops: int, targets: TargetOptions | None = None
) -> None:
    """Make the store and note what that took, beside it."""
    started = time.perf_counter(), time.process_time()
    sampler = RandomResizedCrop(scale=what.scale)
    generate(teacher, what.train, what.store, crops=crops, sampler=sampler, targets=targets)
    line = {
        "arm": "labelling",
        "seconds": time.perf_counter() - started[0],
        "processor_seconds": time.process_time() - started[1],
    }
    (what.out / "labelling.json").write_text(json.dumps(line))


@main.command()
@click.option("--out", required=True, type=click.Path(exists=True, path_type=Path))
def table(out: Path) -> None:
    """The arms of finished runs beside one another, as JSON."""
    click.echo(json.dumps(compared(out), indent=2))


def compared(out: Path) -> dict[str, Any]:
    """Scores and times of a folder's runs by arm, and when its store has paid for itself."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    lines = [line for line in found if "arm" in line]
    labelling = next(line for line in lines if line["arm"] == "labelling")
    report: dict[str, Any] = {"labelling": labelling}
    for arm in ARMS:
        runs = [line for line in lines if line["arm"] == arm]
        report[arm] = {
            "epochs": runs[0]["epochs"],
            "top1": spread([run["top1"] for run in runs]),
            **{name: round(statistics.median(run[name] for run in runs), 1) for name in TIMES},
        }
    for name in TIMES:
        saved = report["live"][name] - report["store"][name]  # by each student
        report[f"{name} of store / live"] = round(report["store"][name] / report["live"][name], 3)
        report[f"students until paid, by {name}"] = (
            round(labelling[name] / saved, 2) if saved > 0 else None
        )
    return report


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample deviation and all values, rounded."""
    return {
        "mean": round(statistics.mean(values), 2),
        "deviation": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "all": [round(value, 2) for value in values],
    }


if __name__ == "__main__":
    main()
