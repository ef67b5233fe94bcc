"""A student of a store beside the same student of a live teacher and of hard labels alone.

    python benchmarks/live_teacher.py --train FOLDER --val FOLDER --weights teacher.safetensors \
        --arch resnet56 --mean 0.5071 0.4865 0.4409 --std 0.2673 0.2564 0.2762 --size 32

Every arm has the same network, optimiser, schedule, batch, seeds and number of epochs:

    hard   the images' own classes
    live   the teacher's forward pass on every batch, soft cross-entropy with all its classes
    store  the teacher's stored top-k answers

A store holds as many views as there are epochs, each is used once, and all arms replay the same
crops in the same order: what differs is what the student is asked for, and what that costs. The
teacher's classes must be the folder's, in sorted order. Wall time is that of training alone;
labelling is given apart, and the number of students after which the store has paid for itself.
The arms of a seed run one after another.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from labelgen.run import generate
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.views import RandomResizedCrop
from trainer import methods
from trainer.batch import Batch
from trainer.methods.base import Method
from trainer.request import FitRequest
from trainer.run import FitResult, fit


class LiveTeacher(Method):
    """Soft cross-entropy with a teacher that looks at every batch itself; this benchmark only."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self._teacher = (teacher,)  # in a tuple: no part of the run's state

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"soft_ce": mean cross-entropy with the teacher's dense answer}."""
        with torch.no_grad():
            wanted = self._teacher[0](batch.images).float().softmax(dim=-1)
        log_q = student(batch.images).float().log_softmax(dim=-1)
        return {"soft_ce": -(wanted * log_q).sum(dim=-1).mean()}


def train(arm: str, request: FitRequest, teacher: Teacher) -> FitResult:
    """One run of an arm."""
    if arm != "live":
        return fit(request)
    create = methods.create
    methods.create = lambda *_arguments, **_options: LiveTeacher(teacher.model)
    try:
        return fit(request)
    finally:
        methods.create = create


@click.command()
@click.option("--train", "train_folder", required=True, type=click.Path(exists=True))
@click.option("--val", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True))
@click.option("--arch", required=True)
@click.option("--mean", type=float, nargs=3, required=True)
@click.option("--std", type=float, nargs=3, required=True)
@click.option("--size", type=int, default=32, show_default=True)
@click.option("--student", default="resnet20", show_default=True)
@click.option("--scale", type=float, nargs=2, default=(0.25, 1.0), show_default=True)
@click.option("--epochs", type=int, default=30, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--lr", type=float, default=0.1, show_default=True)
@click.option("--weight-decay", type=float, default=5e-4, show_default=True)
@click.option("--seeds", type=int, default=3, show_default=True)
@click.option("--loader", default="ffcv", show_default=True)
def main(
    train_folder: str,
    val: Path,
    weights: str,
    arch: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    size: int,
    student: str,
    scale: tuple[float, float],
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seeds: int,
    loader: str,
) -> None:
    """Print every run and the table of arms as JSON."""
    spec = resolve(f"file:{weights}", arch=arch, size=size, mean=mean, std=std)
    teacher, sampler = load_teacher(spec, "cpu"), RandomResizedCrop(scale=scale)
    found: dict[str, list[FitResult]] = {"hard": [], "live": [], "store": []}
    labelling: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        for seed in range(seeds):
            store = Path(place) / f"store{seed}.zarr"
            started = time.perf_counter()
            generate(teacher, train_folder, store, crops=epochs, seed=seed, sampler=sampler)
            labelling.append(time.perf_counter() - started)
            for arm, runs in found.items():
                common: dict[str, Any] = {
                    "data": train_folder, "val": val, "student": student, "size": size,
                    "epochs": epochs, "batch_size": batch_size, "views_per_image": 1, "lr": lr,
                    "weight_decay": weight_decay, "seed": seed, "device": "cpu", "loader": loader,
                    "labels": store, "method": "fkd" if arm == "store" else "supervised",
                    "out": Path(place) / f"{arm}{seed}",
                }  # fmt: skip
                runs.append(train(arm, FitRequest(**common), teacher))
                print(f"seed {seed}: {arm} {_line(runs[-1])}", file=sys.stderr)
    seconds = {arm: statistics.median(run.seconds for run in runs) for arm, runs in found.items()}
    saved = seconds["live"] - seconds["store"]  # by each student
    paid = round(statistics.median(labelling) / saved, 2) if saved > 0 else None
    report = {
        "student": student, "epochs": epochs, "seeds": seeds, "scale": scale,
        "top1": {arm: _spread([100 * _top1(run) for run in runs]) for arm, runs in found.items()},
        "training_seconds": {arm: round(value, 1) for arm, value in seconds.items()},
        "labelling_seconds": round(statistics.median(labelling), 1),
        "store_over_live_seconds": round(seconds["store"] / seconds["live"], 3),
        "students_until_paid": paid,
    }  # fmt: skip
    click.echo(json.dumps(report, indent=2))


def _top1(run: FitResult) -> float:
    assert run.evaluation is not None
    return run.evaluation.top1


def _line(run: FitResult) -> str:
    return f"top-1 {100 * _top1(run):.2f} % in {run.seconds:.0f} s"


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.mean(values), 2),
        "deviation": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "all": [round(value, 2) for value in values],
    }


if __name__ == "__main__":
    main()
