"""A stored step beside a live one, in turn and in one process; shared by the *_live benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from trainer.batch import Batch

Times = tuple[float, float]  # by the clock and by the processor, seconds
Step = Callable[[Batch], None]
LOW = {"fp32": None, "bf16": torch.bfloat16}


def timed(work: Callable[[], object]) -> Times:
    """What it takes."""
    begun = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def convolution_backward_flops(
    gradient: Sequence[int], images: Sequence[int], weight: Sequence[int], _bias: object,
    _stride: object, _padding: object, _dilation: object, transposed: bool, _output_padding: object,
    _groups: int, wanted: Sequence[bool], **_shapes: object,
) -> int:  # fmt: skip
    """As much as the forward pass, for images and weights each; torch's own count leaves groups
    out, which is many times too much for depthwise convolutions."""
    forward = conv_flop_count(list(images), list(weight), list(gradient), transposed=transposed)
    return forward * (int(wanted[0]) + int(wanted[1]))


def macs(step: Step, batch: Batch) -> float:
    """Multiply-adds of one step for one crop."""
    counts = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        step(batch)
    return counter.get_total_flops() / 2 / len(batch.target)


def pair(steps: dict[str, Step], batches: Iterator[Batch], backwards: bool) -> dict[str, Times]:
    """Times of both steps on the next batch, and of reading it."""
    read: list[Batch] = []
    reading = timed(lambda: read.append(next(batches)))
    order = reversed(steps) if backwards else steps
    return {name: timed(partial(steps[name], read[0])) for name in order} | {"reading": reading}


def report(
    rows: list[dict[str, Times]], counted: dict[str, float], batch_size: int
) -> dict[str, Any]:
    """Medians of all pairs of a "store" and a "live" step."""
    found: dict[str, Any] = {"pairs": len(rows), "batch_size": batch_size}
    for place, clock in enumerate(("seconds", "processor_seconds")):
        for name in ("store", "live", "reading"):
            found[f"{clock} {name}"] = round(statistics.median(r[name][place] for r in rows), 4)
        ratios = [
            (r["store"][place] + r["reading"][place]) / (r["live"][place] + r["reading"][place])
            for r in rows
        ]
        found[f"{clock} store / live"] = round(statistics.median(ratios), 3)
        found[f"{clock} store / live, range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    for name, value in counted.items():
        found[f"GMAC a crop, {name}"] = round(value / 1e9, 3)
    found["MAC store / live"] = round(counted["store"] / counted["live"], 3)
    return found
