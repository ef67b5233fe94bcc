"""Bytes a view of each way to keep a teacher's heads, and what each moves of its answers.

    python benchmarks/hsakd_bytes.py --teacher teacher/student.safetensors --data FOLDER --views 2

A store of the folder is made with each encoding, in a temporary place, and read back. Bytes are
those of the heads alone, before compression and as they lie on disk; what a store has once
(weights) is apart. `tv` is the mean total variation, 1/2 sum |p - p'|, between the answers at
temperature T and those of the store that keeps float32, for the class head and for the branches:
half the L1 error of a row's gradient. `gradient` is the relative difference of a fresh student's
gradient, its branches' included, to that of one step with the live teacher on the same crops: of
all parameters together (`all`), and of the one with the largest (`worst`). The line `last bit` has
what becomes of the live teacher's own gradient when its crops' pixels move by their last bit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from hsakd_live import LiveHeads, learner_of, loss_of, open_batches
from torch import Tensor

from labelgen import generate, load_teacher, resolve
from labelgen.target_options import TargetOptions
from labelgen.teacher import Teacher
from storage import LabelStore
from storage.info import store_info
from storage.targets.heads import head_logits, head_settings
from storage.views import PaddedCrop
from trainer.models.branches import BranchedNetwork

EXACT = "pooled-fp32"
ENCODINGS: tuple[tuple[str, int | None], ...] = (  # and logits kept
    (EXACT, None), ("pooled-fp16", None), ("pooled-int8", None), ("dense-int8", None),
    ("auto", None), ("top-k", 10), ("top-k", 50), ("top-k", 100),
)  # fmt: skip
TARGET = "heads/all"

Logits = dict[str, npt.NDArray[np.float64]]


def made(
    teacher: Teacher, data: str, out: Path, views: int, encoding: str, top_k: int | None
) -> LabelStore:
    """The store of one encoding."""
    options = TargetOptions(heads="all", head_views=views, head_encoding=encoding, head_top_k=top_k)
    generate(teacher, data, out, crops=views, sampler=PaddedCrop(), targets=options,
             teacher_check=False)  # fmt: skip
    return LabelStore.open(out)


def all_logits(store: LabelStore, temperature: float) -> Logits:
    """[N, V, R, C] of every head, for a softmax at this temperature."""
    record = store.spec.targets[TARGET]
    values = store.read_target(TARGET, slice(None)) | {
        name: store.read_constant(TARGET, name) for name in record.constants
    }
    heads = head_settings(record).heads
    found = {h.name: head_logits(record, values, h.name, temperature) for h in heads}
    return {name: logits.astype(np.float64) for name, logits in found.items()}


def softmax(logits: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities over the last axis."""
    exp = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return exp / exp.sum(axis=-1, keepdims=True)


def variation(found: Logits, exact: Logits, temperature: float) -> dict[str, float]:
    """Mean total variation of every head."""
    return {
        name: float(f"{np.abs(p - softmax(exact[name], temperature)).sum(-1).mean() / 2:.2g}")
        for name, p in ((n, softmax(z, temperature)) for n, z in found.items())
    }


class Nudged(LiveHeads):
    """The live teacher on crops whose pixels are wrong in their last bit."""

    def forward(self, _stored: object) -> dict[str, Tensor]:
        """As LiveHeads."""
        noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(0))
        self.images = self.images * (1 + 2**-24 * noise)
        return super().forward(_stored)


def differences(
    store: Path, network: BranchedNetwork, student: str, rows: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Of a step from the store, and of one with the nudged teacher, to one with the teacher."""
    batches, config, features = open_batches(str(store), None, student, rows, "fp32")
    batch, found = next(batches), []
    for heads in (None, Nudged(network, None), LiveHeads(network, None)):
        learner = learner_of(config, features, heads)
        loss_of(learner, batch).backward()
        grads = [p.grad for p in learner.parameters() if p.grad is not None]
        found.append([grad.double().flatten() for grad in grads])
    return _difference(found[0], found[2]), _difference(found[1], found[2])


def _difference(found: list[Tensor], wanted: list[Tensor]) -> dict[str, float]:
    pairs = [*zip(found, wanted, strict=True), (torch.cat(found), torch.cat(wanted))]
    each = [float((one - other).norm() / other.norm()) for one, other in pairs]
    return {"all": float(f"{each[-1]:.2g}"), "worst": float(f"{max(each[:-1]):.2g}")}


@click.command()
@click.option("--teacher", required=True, type=click.Path(exists=True))
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--views", default=2, show_default=True)
@click.option("--temperature", default=3.0, show_default=True)
@click.option("--student", default="resnet20", show_default=True)
@click.option("--rows", default=32, show_default=True, help="Crops of the step.")
def main(teacher: str, data: str, views: int, temperature: float, student: str, rows: int) -> None:
    """Print a line of JSON for each encoding."""
    network = load_teacher(resolve(f"file:{teacher}"), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        exact: Logits = {}
        for encoding, top_k in ENCODINGS:
            name = encoding if top_k is None else f"{encoding} of {top_k}"
            store = made(network, data, Path(folder) / f"{name}.zarr", views, encoding, top_k)
            logits = all_logits(store, temperature)
            exact = exact or logits
            gradient, nudged = differences(store.path, network.model, student, rows)
            info = store_info(store)["targets"][TARGET]
            kept = {part["name"]: f"{part['shape']} {part['encoding']}" for part in info["parts"]}
            click.echo(json.dumps({
                "encoding": name, "parts": kept, "bytes": info["view_bytes"],
                "on_disk": info["bytes_per_view"], "once": info["shared_bytes"],
                "tv": variation(logits, exact, temperature),
                "gradient": gradient,
            }))  # fmt: skip
        click.echo(json.dumps({"encoding": "last bit", "gradient": nudged}))


if __name__ == "__main__":
    main()
