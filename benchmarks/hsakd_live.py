"""One step of HSAKD from a store beside one with the live teacher, on the same crops.

    python benchmarks/hsakd_live.py --labels hsakd.zarr --teacher teacher/student.safetensors \
        --student resnet20 --precision bf16

Both steps are whole: forward, loss, backward, optimiser. They take turns on every batch, each with
a student of its own, so that whatever else the machine does meets both. Reading a batch, stored
heads included, is done once and counted for both. Printed are medians of the pairs' ratios, by the
clock and by the processor, and multiply-adds as torch counts them (convolutions and matrices,
forward and backward, the stem's and frozen parts' as they are).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch
from paired_steps import LOW, macs, pair, report
from torch import Tensor

from trainer import methods, models, optim
from trainer.batch import Batch
from trainer.batches import BatchSource
from trainer.checkpoint import load_student
from trainer.config import TrainConfig
from trainer.inputs import create_loader, find_images, open_images, open_labels
from trainer.learner import Learner, total
from trainer.methods.hsakd import Hsakd
from trainer.models.branches import BranchedNetwork, turned_rows
from trainer.plan import plan_epoch
from trainer.request import FitRequest, configure
from trainer.targets import StoredTarget


class LiveHeads(torch.nn.Module):
    """The teacher in the place of the stored heads; to be told each batch's crops."""

    def __init__(self, teacher: BranchedNetwork, low: torch.dtype | None) -> None:
        super().__init__()
        self._teacher, self._low = (teacher.eval(),), low  # in a tuple: never in train mode
        self.images = torch.empty(0)

    @torch.no_grad()
    def forward(self, _stored: object) -> dict[str, Tensor]:
        """Logits of every head, [4 B, C] or [4 B, 4 C]."""
        rows, teacher = turned_rows(self.images), self._teacher[0]
        with torch.autocast(rows.device.type, dtype=self._low, enabled=self._low is not None):
            layers = teacher.head_layers()
            found = {name: layers[name](h) for name, h in teacher.forward_heads(rows).items()}
        return {name: logits.float() for name, logits in found.items()}


def learner_of(config: TrainConfig, features: StoredTarget, live: LiveHeads | None) -> Learner:
    """A fresh student that learns from the stored heads, or from a teacher's."""
    torch.manual_seed(config.seed)
    student = models.create(config.student.arch, config.student.num_classes)
    student = student.to(memory_format=torch.channels_last)
    method = methods.create(config, student, features)
    assert isinstance(method, Hsakd)
    if live is not None:
        method.stored = live
    return Learner(student, method, LOW[config.precision]).train()


def loss_of(learner: Learner, batch: Batch) -> Tensor:
    """The loss; a live teacher looks at the batch first."""
    if isinstance(learner.method.stored, LiveHeads):
        learner.method.stored.images = batch.images
    return total(learner(batch))


def step_of(config: TrainConfig, learner: Learner) -> Callable[[Batch], None]:
    """One optimiser step."""
    optimizer = optim.create(config.optim, learner.student, learner.method)

    def step(batch: Batch) -> None:
        loss_of(learner, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@click.command()
@click.option("--labels", required=True, help="A store with heads.")
@click.option("--teacher", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", help="Images [default: where the store was made from].")
@click.option("--student", default="resnet20", show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--pairs", default=12, show_default=True)
@click.option("--precision", type=click.Choice(list(LOW)), default="fp32", show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    labels: str, teacher: Path, data: str | None, student: str, batch_size: int, pairs: int,
    precision: str, threads: int,
) -> None:  # fmt: skip
    """Print both steps' times, their ratio and their multiply-adds as JSON."""
    torch.set_num_threads(threads)
    network, _ = load_student(teacher)
    if not isinstance(network, BranchedNetwork):
        raise click.ClickException(f"{teacher} has no branches: give one of hsakd-teacher")
    network = network.to(memory_format=torch.channels_last)
    batches, config, features = open_batches(labels, data, student, batch_size, precision)
    steps = {
        name: step_of(config, learner_of(config, features, live))
        for name, live in (("store", None), ("live", LiveHeads(network, LOW[precision])))
    }
    batch = next(batches)
    counted = {name: macs(step, batch) for name, step in steps.items()}
    rows = [pair(steps, batches, number % 2 == 1) for number in range(pairs)]
    click.echo(json.dumps(report(rows, counted, batch_size), indent=2))


def open_batches(
    labels: str, data: str | None, student: str, batch_size: int, precision: str
) -> tuple[Iterator[Batch], TrainConfig, StoredTarget]:
    """Batches of the store's first view, as `trainer fit --method hsakd` reads them."""
    store = open_labels(labels)
    request = FitRequest(
        labels=labels, data=data, out=Path(labels).parent / "unused", student=student,
        method="hsakd", recipe="hsakd-cifar", epochs=1, batch_size=batch_size,
        precision=precision, device="cpu", loader="torch", workers=0,
    )  # fmt: skip
    beton = open_images(find_images(data, store), Path(labels).with_suffix(".beton"), 1)
    config, found = configure(request, torch.device("cpu"), store, beton)
    source = BatchSource(found, config.student, config.labels, torch.device("cpu"))
    loader = create_loader(
        "torch", beton, size=config.student.input_size, views=1, workers=0,
        interpolation=found.interpolation, padding=found.padding, batch_images=batch_size,
        augment=found.augment,
    )  # fmt: skip
    plan = plan_epoch(config.seed, 0, num_images=len(found.rows), stored_views=found.stored_views,
                      views_per_image=1)  # fmt: skip
    assert found.features is not None
    return source.epoch(loader, 0, plan, batch_size), config, found.features


if __name__ == "__main__":
    main()
