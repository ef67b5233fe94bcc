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

import click
import torch
from live_teacher import TIMES, Comparison, compared, label, measured, run_options
from torch import Tensor, nn

from labelgen.target_options import OWN_NAME, TargetOptions
from labelgen.teacher import Teacher
from storage.reading import MANIFEST
from trainer import methods
from trainer.batch import Batch
from trainer.checkpoint import STUDENT_NAME
from trainer.config import TrainConfig
from trainer.methods.base import Method
from trainer.models.feature_tap import tap_feature
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
def run(what: Comparison, rank: int, epochs: int, finetune_epochs: int, finetune_lr: float) -> None:
    """One arm and one seed; the store is made where it isn't there yet."""
    teacher = what.teacher()
    if not (what.store / MANIFEST).exists():
        targets = TargetOptions(features=OWN_NAME, feature_views=epochs, feature_rank=rank)
        label(teacher, what, epochs, targets)
    if what.arm == "hard":
        request = what.request(method="supervised", epochs=epochs + finetune_epochs)
        line = measured(request, None, what.val)
    else:
        live = partial(live_method, methods.create, teacher) if what.arm == "live" else None
        first = measured(what.request(method="kdep", epochs=epochs), live, None)
        tuned = what.request(
            method="supervised", epochs=finetune_epochs, lr=finetune_lr,
            init=str(what.folder / STUDENT_NAME), out=Path(f"{what.folder}-tuned"),
        )  # fmt: skip
        line = measured(tuned, None, what.val)
        line |= {name: line[name] + first[name] for name in TIMES}
    what.report(line, [epochs, finetune_epochs])


@main.command()
@click.option("--out", required=True, type=click.Path(exists=True, path_type=Path))
def table(out: Path) -> None:
    """The arms of finished runs beside one another, as JSON."""
    click.echo(json.dumps(compared(out), indent=2))


if __name__ == "__main__":
    main()
