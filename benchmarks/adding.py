"""What `labelgen add` costs over the forward pass of what is added.

    python benchmarks/adding.py --data PHOTOS --teacher tv:mobilenet_v2 --weights FILE

A store of the photos is labelled by a tiny network first. Then, on its views, first the teacher's
labels are added, and then a feature target of the same teacher to what came out. Each time the
whole of it (files read, crops cut by the stored boxes, forward, codes, store) takes turns with the
bare network on one normalised batch that lies in memory, as in benchmarks/labelling.py. The ratio
is the median over the turns of crops/s over crops/s of the bare network.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from labelling import Turns
from safetensors.torch import save_file

from labelgen.adding import addition_job
from labelgen.basis import CropSample
from labelgen.engine import run_job
from labelgen.run import generate
from labelgen.run_targets import write_shared
from labelgen.settings import teacher_records
from labelgen.stored import StoredBlocks, images_of
from labelgen.target_options import TargetOptions
from labelgen.target_specs import plan_targets
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.adding import begin_addition
from storage.allocator import keep_freed_memory
from storage.parents import Parent
from storage.sealing import seal
from trainer.models import create


def tiny_teacher(folder: Path) -> Teacher:
    """A ResNet-8 with random weights: its labels cost next to nothing."""
    torch.manual_seed(0)
    description = {"arch": "resnet8", "num_classes": 10, "input_size": 32,
                   "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}  # fmt: skip
    path = folder / "tiny.safetensors"
    save_file(create("resnet8", 10).state_dict(), path, {"teachonce": json.dumps(description)})
    return load_teacher(resolve(f"file:{path}"), device="cpu")


def add_in_turns(
    parent_path: Path, out: Path, teacher: Teacher, data: str, options: TargetOptions | None,
    batch_size: int, workers: int, turn: int,
) -> dict[str, Any]:  # fmt: skip
    """Add the teacher's labels, or a target where the store has those; rates of its turns."""
    parent = Parent.open(parent_path)
    folder = images_of(parent, data, workers)
    records, plans = {}, []
    if options is None:
        records = teacher_records(
            teacher, crops=parent.spec.num_views, top_k=None, batch_size=batch_size
        )
    else:
        spec = parent.spec
        sample = CropSample(
            folder=folder, sampler=spec.sampler, seed=spec.seed, num_views=spec.num_views,
            images=8, batch_size=batch_size, workers=workers,
            stored=StoredBlocks(parent, spec.num_views).views,
        )  # fmt: skip
        plans = plan_targets(teacher, options, sample, spec.num_views)
    store = begin_addition(
        parent.store, out, teachers=records, targets={p.record.path: p.record for p in plans}
    )
    write_shared(store, plans)
    job = addition_job(parent, store, folder, records, plans, teacher, batch_size, False)
    turns = Turns(teacher, batch_size, turn)
    run_job(job, teacher, workers=workers, on_batch=turns)
    seal(store)
    if not turns.engine:
        raise click.UsageError(f"too few crops for two turns of {turn} batches of {batch_size}")
    ratios = [e / b for e, b in zip(turns.engine, turns.bare, strict=True)]
    return {
        "turns": len(ratios),
        "bare_forward_crops_per_s": round(statistics.median(turns.bare), 2),
        "added_crops_per_s": round(statistics.median(turns.engine), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--teacher", "name", default="tv:mobilenet_v2", show_default=True)
@click.option("--weights", type=click.Path(exists=True), default=None)
@click.option("--crops", default=32, show_default=True, help="Views an image.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--workers", default=None, type=int)
@click.option("--turn", default=2, show_default=True, help="Batches a turn.")
@click.option("--precision", default="fp32", show_default=True)
def main(
    data: str,
    name: str,
    weights: str | None,
    crops: int,
    batch_size: int,
    workers: int | None,
    turn: int,
    precision: str,
) -> None:
    """Print the rates of adding labels and of adding features, each over the bare network's."""
    teacher = load_teacher(resolve(name, weights=weights), precision=precision)
    workers = workers or os.cpu_count() or 1
    if teacher.device.type == "cpu":
        keep_freed_memory()  # for both: the engine gets no credit for it
    features = TargetOptions(features="", feature_views=crops, feature_rank=256)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        generate(tiny_teacher(out), data, out / "first", crops=crops, teacher_check=False)
        given = (teacher, data)
        sizes = (batch_size, workers, turn)
        report = {
            "teacher": teacher.spec.canonical,
            "device": str(teacher.device),
            "precision": precision,
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "views_per_image": crops,
            "labels": add_in_turns(out / "first", out / "second", *given, None, *sizes),
            "features": add_in_turns(out / "second", out / "third", *given, features, *sizes),
        }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
