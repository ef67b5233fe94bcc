"""`trainer fit` against the same optimiser step on a resident synthetic batch.

Both sides run the project's own loop, student and loss. One side takes its batches from the
FFCV replay loader and a label store as a run does; the other takes one random batch of the same
shapes again and again. Rounds alternate; each round of the real side is one epoch from its
start, label plane included. FFCV's compilation happens before the first round.

    python benchmarks/fit.py --labels store.zarr --rounds 3 --images 96
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import torch

from storage.allocator import keep_freed_memory
from storage.cli_common import device_option, run_cli, workers_option


@click.command()
@click.option("--labels", type=click.Path(path_type=Path), required=True)
@click.option("--data", help="Image folder or beton [default: the store's hint].")
@click.option("--student", default="r18", show_default=True)
@click.option("--batch-size", default=64, show_default=True, help="Crops a step.")
@click.option("--views-per-image", default=4, show_default=True)
@click.option("--images", default=96, show_default=True, help="Images of the short epoch.")
@click.option("--rounds", default=3, show_default=True)
@device_option
@workers_option
def main(labels: Path, data: str | None, student: str, batch_size: int, views_per_image: int,
         images: int, rounds: int, device: str, workers: int | None) -> None:  # fmt: skip
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
    store = open_labels(labels)
    beton = open_images(find_images(data, store), labels.with_suffix(".beton"), threads)
    request = FitRequest(labels=labels, student=student, batch_size=batch_size,
                         views_per_image=views_per_image)  # fmt: skip
    config, joined = configure(request, where, store, beton)
    torch.manual_seed(0)
    network = models.create(config.student.arch, config.student.num_classes)
    network = network.to(where, memory_format=torch.channels_last)
    learner = Learner(network, methods.create(config))
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
    index = torch.stack([torch.randperm(classes, generator=generator)[:10]
                         for _ in range(batch_size)])  # fmt: skip
    resident = Batch(
        pixels.to(where),
        torch.zeros(batch_size, dtype=torch.int64, device=where),
        TopKTarget(index.to(where), torch.full(index.shape, 0.09, device=where),
                   torch.full((batch_size,), 0.1, device=where)),
    )  # fmt: skip

    def steps_per_second(batches) -> float:
        seen = [0]

        def count(_step, loss, _crops) -> None:
            seen[0] += 1
            float(loss)  # both sides wait for the device alike

        started = time.perf_counter()
        train_steps(learner, optimizer, batches, lr_of_step=lambda _step: 1e-4, first_step=0,
                    on_step=count)  # fmt: skip
        return seen[0] / (time.perf_counter() - started)

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
            f"round {round_}: store {ours[-1] * batch_size:7.2f} crops/s, resident batch "
            f"{baseline[-1] * batch_size:7.2f} crops/s, ratio {ours[-1] / baseline[-1]:.3f}"
        )
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    click.echo(f"{config.student.arch} {size} px, {batch_size} crops a step, {threads} threads, "
               f"{where}: median ratio {statistics.median(ratios):.3f} "
               f"(min {min(ratios):.3f}, max {max(ratios):.3f})")  # fmt: skip


if __name__ == "__main__":
    run_cli(main, "fit")
