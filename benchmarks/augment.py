"""What stored augmentations cost a loader: compiled operations beside the exact cut, in one run.

    python benchmarks/augment.py [--size 224] [--rounds 40]

One thread, boxes of 300 x 300 pixels cut from one random picture; every line is the median over
rounds that are interleaved, so the ratios hold on a machine that is shared.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from storage.augment import Augment, Operation
from storage.colour_draws import ColourJitter, Lighting
from storage.erasing import Erasing
from storage.randaugment import RandAugment
from trainer.replay.colour import augment_view, compile_program
from trainer.replay.resample import SUPPORT, canvas_bytes, cut

SIDE = 300
SETTINGS: dict[str, tuple[Operation, ...]] = {
    "KDEP: jitter .1 .1 .1 0 and lighting": (
        ColourJitter(brightness=0.1, contrast=0.1, saturation=0.1),
        Lighting(),
    ),
    "jitter .4 .4 .4 .1": (ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),),
    "RandAugment 2 9": (RandAugment(),),
    "erasing .25": (Erasing(probability=0.25),),
}


def median_of(work: dict[str, Callable[[int], None]], rounds: int) -> dict[str, float]:
    """Seconds of one call of each, by name; all are called once before."""
    for call in work.values():
        call(0)
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name, call in work.items():
            start = time.perf_counter()
            call(number)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Print milliseconds a view and the ratio to the cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    digest = hashlib.sha256(b"benchmark").digest()
    canvas = np.random.default_rng(0).integers(0, 256, canvas_bytes(SIDE, SIDE)).astype(np.uint8)
    pixels = np.empty((options.size, options.size, 3), np.uint8)
    views = 32  # a call is this many, so that draws of all kinds are in it

    def cut_all(_: int) -> None:
        for _ in range(views):
            cut(canvas, SIDE, 0, 0, SIDE, SIDE, False, SUPPORT["bilinear"], pixels)

    def compiled(augment: Augment) -> Callable[[int], None]:
        program = compile_program(augment)
        draws = augment.draw(0, digest, 0, views * options.rounds)

        def call(number: int) -> None:
            for draw in draws[number * views : (number + 1) * views]:
                augment_view(pixels, draw, program)

        return call

    def plain(augment: Augment) -> Callable[[int], None]:
        draws = augment.draw(0, digest, 0, views * options.rounds)

        def call(number: int) -> None:
            for draw in draws[number * views : (number + 1) * views]:
                augment.apply(pixels, draw)

        return call

    augments = {name: Augment(operations) for name, operations in SETTINGS.items()}
    work = {"exact cut, 300 x 300": cut_all}
    work |= {name: compiled(augment) for name, augment in augments.items()}
    work |= {f"{name}, numpy": plain(augment) for name, augment in augments.items()}
    found = median_of(work, options.rounds)
    base = found["exact cut, 300 x 300"]
    for name, seconds in found.items():
        print(f"{name:45} {1e3 * seconds / views:7.3f} ms a view   {seconds / base:5.2f} x the cut")


if __name__ == "__main__":
    main()
