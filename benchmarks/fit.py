"""`trainer fit` against the same optimiser step on a resident synthetic batch.

Both sides run the project's own loop, student and loss. One side takes its batches from the
FFCV replay loader and a label store as a run does; the other takes one random batch of the same
shapes again and again. Rounds alternate; each round of the real side is one epoch from its
start, label plane included. FFCV's compilation happens before the first round.

Beside the wall clock the processor time of this process is compared: other work on the machine
leaves it alone, and the loader's threads count in full. So are labels: the reading of a pass's
plane, as its share of a step, and the decoding of a step's labels, beside a step on the resident
batch.

Without --labels it is fine-tuning: the images' own classes, crops as `transfer classify` draws
them. All crops of a pass are drawn at its start, so --images has to be those of the folder.

    python benchmarks/fit.py --labels store.zarr --rounds 3 --images 96
    python benchmarks/fit.py --data cifar/train --size 48 --views-per-image 1 --images 640
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from storage.allocator import keep_freed_memory
from storage.cli_common import device_option, run_cli, workers_option
from trainer.config import PRECISIONS

if TYPE_CHECKING:
    from trainer.batches import BatchSource
    from trainer.plan import EpochPlan


@click.command()
@click.option("--labels", type=click.Path(path_type=Path), help="Label store.")
@click.option("--data", help="Image folder or beton [default: the store's hint].")
@click.option("--student", default="r18", show_default=True)
@click.option("--size", type=int, help="Side of the crops [default: the teacher's].")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--batch-size", default=64, show_default=True, help="Crops a step.")
@click.option("--views-per-image", default=4, show_default=True)
@click.option("--images", default=96, show_default=True, help="Images of the short epoch.")
@click.option("--rounds", default=3, show_default=True)
@device_option
@workers_option
def main(labels: Path | None, data: str | None, student: str, size: int | None, precision: str,
         batch_size: int, views_per_image: int, images: int, rounds: int, device: str,
         workers: int | None) -> None:  # fmt: skip
    """Print steps a second of both sides and their ratio."""
    from trainer import methods, models, optim
    from trainer.batch import Batch, TopKTarget
    from trainer.batches import BatchSource
    from trainer.inputs import (
        create_loader,
        find_images,
        open_images,
        open_labels,
    )
    from trainer.learner import Learner
    from trainer.loop import train_steps
    from trainer.models.device import resolve_device
    from trainer.plan import images_per_step, plan_epoch
    from trainer.request import FitRequest, configure

    keep_freed_memory()  # as `trainer fit` does; both sides gain
    where, threads = resolve_device(device), workers or torch.get_num_threads()
    store = open_labels(labels) if labels else None
    folder = find_images(data, store)
    beton = open_images(folder, (labels or folder).with_suffix(".beton"), threads)
    request = FitRequest(labels=labels, student=student, size=size, batch_size=batch_size,
                         precision=precision, views_per_image=views_per_image)  # fmt: skip
    config, joined = configure(request, where, store, beton)
    torch.manual_seed(0)
    network = models.create(config.student.arch, config.student.num_classes)
    network = network.to(where, memory_format=torch.channels_last)
    low = torch.bfloat16 if precision == "bf16" else None
    learner = Learner(network, methods.create(config, network), low)
    optimizer = optim.create(config.optim, learner)
    step_images = images_per_step(batch_size, views_per_image, images)
    source = BatchSource(joined, config.student, config.labels, where)
    loader = create_loader("ffcv", beton, size=config.student.input_size, views=views_per_image,
                           interpolation=joined.interpolation, padding=joined.padding,
                           augment=joined.augment,
                           batch_images=step_images, workers=threads)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    size, classes = config.student.input_size, config.student.num_classes
    pixels = torch.randn(batch_size, size, size, 3, generator=generator).permute(0, 3, 1, 2)
    resident = Batch(pixels.to(where), torch.zeros(batch_size, dtype=torch.int64, device=where),
                     None)  # fmt: skip
    if store is not None:
        index = torch.stack([torch.randperm(classes, generator=generator)[:10]
                             for _ in range(batch_size)])  # fmt: skip
        labelled = TopKTarget(index.to(where), torch.full(index.shape, 0.09, device=where),
                              torch.full((batch_size,), 0.1, device=where))  # fmt: skip
        resident = replace(resident, labels=labelled)

    def steps_per_second(batches) -> tuple[float, float]:
        seen = [0]

        def count(_step, loss, _crops) -> None:
            seen[0] += 1
            float(loss)  # both sides wait for the device alike

        started, busy = time.perf_counter(), time.process_time()
        train_steps(learner, optimizer, batches, lr_of_step=lambda _step: 1e-4, first_step=0,
                    on_step=count)  # fmt: skip
        wall, own = time.perf_counter() - started, time.process_time() - busy
        return seen[0] / wall, seen[0] / own

    def replayed(epoch: int, count: int):
        plan = plan_epoch(0, epoch, num_images=len(joined.rows), stored_views=joined.stored_views,
                          views_per_image=views_per_image)  # fmt: skip
        whole = len(plan.order) // step_images
        return source.epoch(loader, epoch, plan, step_images, whole - count)

    steps = images // step_images
    steps_per_second(replayed(0, 1))  # compiles
    steps_per_second([resident])
    ours, baseline = [], []
    for round_ in range(rounds):
        baseline.append(steps_per_second([resident] * steps))
        ours.append(steps_per_second(replayed(round_, steps)))
        click.echo(
            f"round {round_}: trained {ours[-1][0] * batch_size:7.2f} crops/s, resident batch "
            f"{baseline[-1][0] * batch_size:7.2f} crops/s, ratio "
            f"{ours[-1][0] / baseline[-1][0]:.3f}"
        )
    ratios, busy = (
        [a[clock] / b[clock] for a, b in zip(ours, baseline, strict=True)] for clock in (0, 1)
    )
    click.echo(f"{config.student.arch} {size} px, {batch_size} crops a step, {threads} threads, "
               f"{where}: median ratio {statistics.median(ratios):.3f} "
               f"(min {min(ratios):.3f}, max {max(ratios):.3f}), by processor time "
               f"{statistics.median(busy):.3f} (min {min(busy):.3f}, max {max(busy):.3f})"
               )  # fmt: skip
    if store is not None:
        plan = plan_epoch(0, 0, num_images=len(joined.rows), stored_views=joined.stored_views,
                          views_per_image=views_per_image)  # fmt: skip
        step = 1 / statistics.median(rate for _, rate in baseline)
        click.echo(label_cost(source, plan, step_images, step))


def label_cost(source: BatchSource, plan: EpochPlan, step_images: int, step: float) -> str:
    """What labels cost a step of `step` seconds of processor time."""

    def seconds(work: Callable[[], object], times: int) -> float:
        work()
        before = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - before) / times

    plane, rows = source.read(0, plan).labels, source.data.rows[plan.order[:step_images]]
    assert plane is not None
    read = seconds(lambda: source.read(0, plan), 5) / (len(plan.order) // step_images)
    decode = seconds(lambda: source.decode(plane, rows), 500)
    return (
        f"labels of {source.student.num_classes} classes: read in {1e3 * read:.2f} ms a step and "
        f"decoded in {1e3 * decode:.2f} ms, together {100 * (read + decode) / step:.3f} % of a "
        f"step's {1e3 * step:.0f} ms (processor time)"
    )


if __name__ == "__main__":
    run_cli(main, "fit")
