"""`transfer classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from storage.cli_common import print_result
from trainer.step_config import SCHEDULES
from transfer.options import FILE, Numbers, data_options, take_options, task_options

# Of transfer.classify_settings, kept here so that --help imports nothing.
METRICS = ("top1", "class_mean")
VIEWS = ("random-resized-crop", "padded-crop")
PIXELS = ("student", "published")


@click.command()
@click.argument("student", type=FILE)
@data_options
@task_options
@click.option("--size", type=click.IntRange(8, 4096),
              help="Side of the crops [default: the student's].")  # fmt: skip
@click.option("--metric", type=click.Choice(METRICS),
              help="Headline: top-1, or the mean over classes [default: as published].",
              )  # fmt: skip
@click.option("--freeze", is_flag=True,
              help="Learn the head alone; the rest stays as it is.")  # fmt: skip
@click.option("--sweep", type=Numbers(float), default=(), metavar="LR,LR",
              help="Choose each start's learning rate on a held-out fifth of the training images.",
              )  # fmt: skip
@click.option("--sweep-epochs", type=click.IntRange(1),
              help="Of the runs that choose [default: --epochs].")  # fmt: skip
@click.option("--schedule", type=click.Choice(SCHEDULES), default="step", show_default=True)
@click.option("--step-epochs", type=click.FloatRange(0, min_open=True),
              help="Of step: epochs between falls [default: a third].")  # fmt: skip
@click.option("--gamma", type=float, default=0.1, show_default=True,
              help="Of step: factor of a fall.")  # fmt: skip
@click.option("--warmup-epochs", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: as published]")
@click.option("--momentum", type=float, default=0.9, show_default=True)
@click.option("--nesterov", is_flag=True)
@click.option("--views", type=click.Choice(VIEWS),
              help="How crops are drawn [default: padded-crop up to 32 pixels].")  # fmt: skip
@click.option("--scale", type=float, nargs=2, default=(0.08, 1.0), show_default=True,
              help="Share of the image that a random-resized-crop shows.")  # fmt: skip
@click.option("--padding", type=click.IntRange(0, 64), default=4, show_default=True,
              help="Of padded-crop, pixels.")  # fmt: skip
@click.option("--pixels", type=click.Choice(PIXELS), default="student", show_default=True,
              help="Whose mean and deviation.")  # fmt: skip
@click.option("--evaluate-every", type=click.IntRange(1),
              help="Epochs [default: a 30th of all].")  # fmt: skip
@click.option("--loader", type=click.Choice(["ffcv", "torch"]), default="ffcv", show_default=True)
def classify(student: Path, data: str, val: str | None, as_json: bool, **options: Any) -> None:
    """Fine-tune a student on another data set, beside other starts; several seeds.

    STUDENT is a student.safetensors of `trainer fit`. The same command again goes on.
    """
    from transfer.classify import RESULTS_NAME, TASK, ClassifyRequest, run_classify
    from transfer.classify_settings import ClassifyOptions
    from transfer.results import describe

    task = take_options(options)
    values = run_classify(
        ClassifyRequest(
            student=student, data=data, val=val, task=task, options=ClassifyOptions(**options)
        )
    )
    path = task.folder(student, TASK) / RESULTS_NAME
    print_result(values, as_json, f"{describe(values)}\nwritten to {path}")
