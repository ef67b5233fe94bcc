"""KDEP from a store beside KDEP with a live teacher and training from scratch.

    python benchmarks/live_features.py run --out runs --arm store --seed 0 \
        --train FOLDER --val FOLDER --weights teacher.safetensors \
        --arch resnet56 --mean 0.507 0.4865 0.4409 --std 0.2673 0.2564 0.2761
    python benchmarks/live_features.py table --out runs

Every arm has the same student, batch, seeds, crops and epochs in all:

    hard   the images' own classes, pretraining and fine-tuning epochs together
    live   KDEP on features of the teacher's forward pass on every batch, then fine-tuning
    store  KDEP on stored features, then the same fine-tuning

The live teacher's features go through the store's own basis, so that both are asked for the same
vectors; the live ones are not rounded. Times are those of all epochs of an arm.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from live_teacher import STORE_NAME, TIMES, compared, label, measured, run_options
from torch import Tensor, nn

from labelgen.target_options import OWN_NAME, TargetOptions
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.reading import MANIFEST
from trainer import methods
from trainer.batch import Batch
from trainer.checkpoint import STUDENT_NAME
from trainer.config import TrainConfig
from trainer.methods.base import Method
from trainer.models.feature_tap import tap_feature
from trainer.request import FitRequest
from trainer.targets import StoredTarget


class LiveFeatures(Method):
    """KDEP whose features come from the teacher itself; this benchmark only.

    Args:
        kdep: the method as it is made for the store.
    """

    trains_whole_student = False

    def __init__(
        self, kdep: Method, teacher: Teacher, features: StoredTarget, low: torch.dtype | None
    ) -> None:
        super().__init__()
        self.kdep = kdep
        self._tap = (tap_feature(teacher.model, teacher.spec.input_size, "teacher"),)
        self._teacher = (teacher.model,)  # in a tuple: no part of the run's state
        self._mean = torch.from_numpy(features.constant("mean"))
        self._basis = torch.from_numpy(features.constant("basis"))
        self._low = low

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """KDEP's terms on live features."""
        low = self._low
        with (
            torch.no_grad(),
            torch.autocast("cpu", dtype=low, enabled=low is not None),
            self._tap[0].listening() as found,
        ):
            self._teacher[0](batch.images)
        live = (found.feature.float() - self._mean) @ self._basis
        return self.kdep.terms(student, replace(batch, features=live))


def live_method(
    own: Callable[..., Method], teacher: Teacher, config: TrainConfig, student: nn.Module,
    features: StoredTarget,
) -> Method:  # fmt: skip
    """What trainer.methods.create (`own`) is replaced by."""
    low = torch.bfloat16 if config.precision == "bf16" else None
    return LiveFeatures(own(config, student, features), teacher, features, low)


@click.group()
def main() -> None:
    """Scratch, KDEP with a live teacher and KDEP from a store, compared."""


@main.command()
@run_options
@click.option("--rank", type=int, default=64, show_default=True)
@click.option("--epochs", type=int, default=5, show_default=True, help="Of pretraining.")
@click.option("--finetune-epochs", type=int, default=3, show_default=True)
@click.option("--finetune-lr", type=float, default=0.1, show_default=True)
def run(
    out: Path,
    arm: str,
    seed: int,
    train_folder: str,
    val: Path,
    weights: str,
    arch: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    size: int,
    student: str,
    rank: int,
    scale: tuple[float, float],
    epochs: int,
    finetune_epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    finetune_lr: float,
    precision: str,
) -> None:
    """One arm and one seed; the store is made where it isn't there yet."""
    spec = resolve(f"file:{weights}", arch=arch, size=size, mean=mean, std=std)
    teacher, store = load_teacher(spec, "cpu"), out / STORE_NAME
    if not (store / MANIFEST).exists():
        targets = TargetOptions(features=OWN_NAME, feature_views=epochs, feature_rank=rank)
        label(teacher, train_folder, store, epochs, scale, targets)
    folder = out / f"{arm}{seed}"
    common: dict[str, Any] = {
        "data": train_folder, "student": student, "size": size, "batch_size": batch_size,
        "views_per_image": 1, "weight_decay": weight_decay, "seed": seed, "device": "cpu",
        "precision": precision, "labels": store,
    }  # fmt: skip
    if arm == "hard":
        total = epochs + finetune_epochs
        request = FitRequest(**common, method="supervised", epochs=total, lr=lr, out=folder)
        line = measured(request, None, val)
    else:
        live = partial(live_method, methods.create, teacher) if arm == "live" else None
        request = FitRequest(**common, method="kdep", epochs=epochs, lr=lr, out=folder)
        first = measured(request, live, None)
        tuned = FitRequest(
            **common, method="supervised", epochs=finetune_epochs, lr=finetune_lr,
            init=str(folder / STUDENT_NAME), out=out / f"{arm}{seed}-tuned",
        )  # fmt: skip
        line = measured(tuned, None, val)
        line |= {name: line[name] + first[name] for name in TIMES}
    line |= {"arm": arm, "seed": seed, "epochs": [epochs, finetune_epochs]}
    (out / f"{arm}{seed}.json").write_text(json.dumps(line))
    click.echo(json.dumps(line))


@main.command()
@click.option("--out", required=True, type=click.Path(exists=True, path_type=Path))
def table(out: Path) -> None:
    """The arms of finished runs beside one another, as JSON."""
    click.echo(json.dumps(compared(out), indent=2))


if __name__ == "__main__":
    main()
