"""A step of ScaleKD from stored tokens beside the same step with the teacher at hand.

    python benchmarks/scalekd_live.py macs
    python benchmarks/scalekd_live.py steps --teacher timm:swin_small_patch4_window7_224 \
        --student tv:resnet50 --batch-size 4

`macs` counts the products of a whole optimisation step, forward and backward, of published pairs
(of fake tensors: nothing is computed), a crop, beside those of the teacher's forward pass that
a live step has on top. `steps` runs both, in turn, on noise with seeded weights, since neither the
pixels nor the weights change what a step costs: the stored step decodes int8 tokens of full rank,
the live one runs the teacher without gradients in the student's precision. Reading images is in
neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
import torch
from paired_steps import LOW, macs, pair, report
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from labelgen.extract.tokens import geometry, known_place, token_reader
from storage.targets.tokens import MEAN, REMAINDER, split_tokens, token_record
from storage.targets.vectors import encode_vectors
from trainer import models
from trainer.batch import Batch, TopKTarget
from trainer.learner import Learner, total
from trainer.method_config import ScalekdConfig
from trainer.methods.scalekd import ScaleKD
from trainer.models.stage_taps import tap_stages
from trainer.models.tails import Tail, TailSettings
from trainer.targets import decode_part

CLASSES, TOP_K = 1000, 10
SWIN_S, SWIN_L = (f"timm:swin_{size}_patch4_window7_224" for size in ("small", "large"))
# pairs of the method's published table: teacher, student, heads of both stages
PAIRS = {
    "Swin-L, ResNet-50": (SWIN_L, "tv:resnet50", 16, 24),
    "Swin-L, MobileNetV1": (SWIN_L, "timm:mobilenetv1_100", 16, 24),
    "Swin-L, ViT-S/16": (SWIN_L, "timm:vit_small_patch16_224", 8, 8),
    "Swin-L, ViT-B/16": (SWIN_L, "timm:vit_base_patch16_224", 8, 8),
    "Swin-S, ResNet-50": (SWIN_S, "tv:resnet50", 3, 6),
}


class LiveTokens:
    """A teacher in eval mode that is asked for logits and tokens.

    Attributes:
        tail: its last stage, the teacher's own modules.
    """

    def __init__(self, name: str, images: Tensor) -> None:
        model = models.create(name, CLASSES).eval().requires_grad_(False)
        place = known_place(model)
        if place is None or not place.tail:
            raise click.UsageError(f"no tail is known of {name}")
        self._model = model
        self._seen: dict[str, Tensor] = {}
        self._watch(model.get_submodule(place.tail[0]), model.get_submodule(place.module))
        with torch.no_grad():
            model(images)
        grid, width = geometry(place, self._seen["last"].shape)
        input_grid, input_width = geometry(place, self._seen["entry"].shape)
        self._read = token_reader(place.layout, grid)
        settings = TailSettings(
            arch=name, modules=place.tail, layout=place.layout, prefix=place.prefix,
            input_grid=input_grid, input_width=input_width, grid=grid, width=width, teacher="-",
        )  # fmt: skip
        self.tail = Tail(settings, [model.get_submodule(path) for path in place.tail])

    def _watch(self, first: nn.Module, last: nn.Module) -> None:
        """Hooks that keep values; projected tokens that go through the tail are kept over."""

        def enter(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._seen["entry"] = args[0].detach()

        def leave(_module: nn.Module, _args: object, output: Tensor) -> None:
            self._seen["last"] = output.detach()

        first.register_forward_pre_hook(enter)
        last.register_forward_hook(leave)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and tokens [B, T, D]."""
        logits = self._model(images)
        return logits.float(), self._read(self._seen["last"])


@dataclass(frozen=True)
class Pair:
    """A teacher at hand, and a student that learns from its tokens, stored or live."""

    live: LiveTokens
    student: nn.Module
    method: ScaleKD
    optimizer: torch.optim.Optimizer
    images: Tensor
    low: torch.dtype | None  # autocast of student and teacher

    def stored_step(self, batch: Batch) -> None:
        """Forward, backward and optimiser, of the batch's own targets."""
        learner = Learner(self.student, self.method, self.low).train()
        total(learner(batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def live_step(self, batch: Batch) -> None:
        """The same of targets that the teacher gives now."""
        self.stored_step(replace(batch, **self.look(batch.images)))

    def look(self, images: Tensor) -> dict[str, Any]:
        """The teacher's labels and tokens, as the parts of a batch."""
        low = self.low
        with torch.autocast("cpu", dtype=low, enabled=low is not None):
            logits, tokens = self.live(images)
        probs, index = logits.softmax(-1).topk(TOP_K)
        mean = tokens.mean(1)
        return {
            "labels": TopKTarget(index, probs, 1 - probs.sum(-1)),
            "targets": {MEAN: mean, REMAINDER: tokens - mean.unsqueeze(1)},
        }


def pair_of(
    teacher: str, student: str, heads: tuple[int, int], size: int, batch: int, *,
    precision: str = "fp32",
) -> Pair:  # fmt: skip
    """Seeded weights and pixels."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size, size)
    images = images.contiguous(memory_format=torch.channels_last)
    live, low = LiveTokens(teacher, images), LOW[precision]
    network = models.create(student, CLASSES).to(memory_format=torch.channels_last)
    config = ScalekdConfig(s3_heads=heads[0], s4_heads=heads[1])
    taps = tap_stages(network, size, student)
    method = ScaleKD(config, taps, live.tail, autocast_dtype=low)
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=1e-3)
    return Pair(live, network, method, optimizer, images, low)


def batch_of(pair: Pair) -> Batch:
    """The pair's crops with the teacher's answer as it is."""
    target = torch.zeros(len(pair.images), dtype=torch.int64)
    return Batch(pair.images, target, **pair.look(pair.images))


def stored_batches(pair: Pair) -> Iterator[Batch]:
    """The same batch for ever, its tokens decoded each time from int8 of full rank."""
    batch, into = batch_of(pair), pair.live.tail.settings
    assert batch.targets is not None
    tokens = batch.targets[MEAN].unsqueeze(1) + batch.targets[REMAINDER]
    record = token_record(
        name="t", teacher="t", views=1, layer="-", grid=into.grid, width=into.width
    )
    parts = split_tokens(tokens.float().numpy())
    encoded = {
        part: {
            name: torch.from_numpy(values)
            for name, values in encode_vectors(part, parts[part.name]).items()
        }
        for part in record.parts
    }
    while True:
        targets = {part.name: decode_part(part, arrays) for part, arrays in encoded.items()}
        yield replace(batch, targets=targets)


@click.group()
def main() -> None:
    """A stored step beside a live one."""


@main.command("macs")
@click.option("--batch-size", default=2, show_default=True)
def count(batch_size: int) -> None:
    """Products of a step for one crop, in GMAC."""
    click.echo("pair                  student  projectors, tail   stored    live  stored / live")
    for name, (teacher, student, *heads) in PAIRS.items():
        found = pair_of(teacher, student, (heads[0], heads[1]), 224, batch_size)
        with FakeTensorMode(allow_non_fake_inputs=True):
            batch = batch_of(found)
            alone = macs(lambda batch, own=found: own.student(batch.images).sum().backward(), batch)
            stored, live = macs(found.stored_step, batch), macs(found.live_step, batch)
        numbers = f"{alone / 1e9:8.2f} {(stored - alone) / 1e9:17.2f}"
        numbers += f" {stored / 1e9:8.2f} {live / 1e9:7.2f} {stored / live:14.3f}"
        click.echo(f"{name:20} {numbers}")


@main.command()
@click.option("--teacher", required=True)
@click.option("--student", required=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--s3-heads", default=8, show_default=True)
@click.option("--s4-heads", default=8, show_default=True)
@click.option("--pairs", default=8, show_default=True)
@click.option("--precision", type=click.Choice(list(LOW)), default="fp32", show_default=True)
@click.option("--threads", default=1, show_default=True)
def steps(
    teacher: str, student: str, size: int, batch_size: int, s3_heads: int, s4_heads: int,
    pairs: int, precision: str, threads: int,
) -> None:  # fmt: skip
    """Both steps' times, their ratio and their multiply-adds, as JSON."""
    torch.set_num_threads(threads)
    found = pair_of(teacher, student, (s3_heads, s4_heads), size, batch_size, precision=precision)
    batches = stored_batches(found)
    both = {"store": found.stored_step, "live": found.live_step}
    counted = {name: macs(step, next(batches)) for name, step in both.items()}
    rows = [pair(both, batches, number % 2 == 1) for number in range(pairs)]
    click.echo(json.dumps(report(rows, counted, batch_size), indent=2))


if __name__ == "__main__":
    main()
