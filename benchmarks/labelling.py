"""Crops/s of the labelling engine over crops/s of the teacher's bare forward pass.

    python benchmarks/labelling.py --data PHOTOS --teacher tv:mobilenet_v2 --weights FILE

Both run in this process with the same network, batch size, threads, channels_last layout and
allocator settings. The bare forward runs the network alone on one normalised batch that lies in
memory. The engine reads files, decodes, cuts, labels and writes a store. They take
turns every few batches, so that other work on the machine slows both; the crop workers have their
ring full at the end of a turn as at its start. The ratio is the median over the turns.
(Not called labelgen.py: a script's own folder comes first in the search for modules.)
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from labelgen.engine import RunReport, label_missing_blocks
from labelgen.forward import Forward, matmul_precision
from labelgen.run import DEFAULT_BATCH_SIZE, build_spec
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.allocator import keep_freed_memory
from storage.images import scan_folder
from storage.store import LabelStore
from storage.views import RandomResizedCrop


class Turns:
    """Called after every batch of the engine: lets the bare forward have its turn."""

    def __init__(self, teacher: Teacher, batch_size: int, length: int) -> None:
        self._teacher, self._length, self._size = teacher, length, batch_size
        side = teacher.spec.input_size
        shape = (batch_size, side, side, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self._forward = Forward(teacher, top_k=1)
        self._batch = self._forward.normalise(pixels)
        self.engine: list[float] = []
        self.bare: list[float] = []
        self._batches = self._crops = 0
        self.run_bare(2)  # warm-up
        self._start = time.perf_counter()

    def run_bare(self, batches: int) -> float:
        """Crops/s of the network alone on the resident batch."""
        start = time.perf_counter()
        precision = matmul_precision(self._teacher.precision)
        with torch.inference_mode(), precision, self._forward.autocast():
            for _ in range(batches):
                output = self._teacher.model(self._batch)
            output.cpu()
        return batches * self._size / (time.perf_counter() - start)

    def __call__(self, crops: int, report: RunReport) -> None:
        """One batch of the engine is done."""
        self._batches += 1
        self._crops += crops
        if self._batches % self._length:
            return
        if self._batches > self._length:  # the first turn holds the start of the workers
            self.engine.append(self._crops / (time.perf_counter() - self._start))
            self.bare.append(self.run_bare(self._length))
        self._crops, self._start = 0, time.perf_counter()


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--teacher", "name", default="tv:mobilenet_v2", show_default=True)
@click.option("--weights", type=click.Path(exists=True), default=None)
@click.option("--crops", default=32, show_default=True, help="Views an image.")
@click.option("--batch-size", default=None, type=int)
@click.option("--workers", default=None, type=int)
@click.option("--turn", default=4, show_default=True, help="Batches a turn.")
@click.option("--precision", default="fp32", show_default=True)
def main(
    data: str,
    name: str,
    weights: str | None,
    crops: int,
    batch_size: int | None,
    workers: int | None,
    turn: int,
    precision: str,
) -> None:
    """Print the two rates and their ratio as JSON."""
    teacher = load_teacher(resolve(name, weights=weights), precision=precision)
    batch_size = batch_size or DEFAULT_BATCH_SIZE[teacher.device.type]
    if teacher.device.type == "cpu":
        keep_freed_memory()  # for both: the engine gets no credit for it
    folder = scan_folder(data)
    spec = build_spec(
        folder, teacher, crops=crops, top_k=None, seed=0, sampler=RandomResizedCrop(),
        batch_size=batch_size, block_images=None,
    )  # fmt: skip
    turns = Turns(teacher, batch_size, turn)
    with tempfile.TemporaryDirectory() as out:
        store = LabelStore.create(Path(out) / "store.zarr", spec)
        label_missing_blocks(
            store, teacher, folder, workers=workers or os.cpu_count() or 1, on_batch=turns
        )
    if not turns.engine:
        raise click.UsageError(f"too few crops for two turns of {turn} batches of {batch_size}")
    ratios = [e / b for e, b in zip(turns.engine, turns.bare, strict=True)]
    report = {
        "teacher": teacher.spec.canonical,
        "device": str(teacher.device),
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "views_per_image": crops,
        "turns": len(ratios),
        "bare_forward_crops_per_s": round(statistics.median(turns.bare), 2),
        "engine_crops_per_s": round(statistics.median(turns.engine), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
