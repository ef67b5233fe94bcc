"""`transfer segment`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from storage.cli_common import print_result, reports
from trainer.step_config import NORMS
from transfer.options import FILE, Numbers, take_options, task_options
from transfer.segment.settings import DECODERS, TESTS

F = TypeVar("F", bound=Callable[..., Any])
PUBLISHED = "[default: as published]"


def _switch(name: str, text: str) -> Callable[[F], F]:
    return click.option(f"--{name}/--no-{name}", default=None, help=f"{text} {PUBLISHED}")


@click.command()
@click.argument("student", type=FILE)
@click.option("--data", required=True,
              help="Folder with images/{train,val}, masks/{train,val} and classes.json; or "
              "voc:ROOT, cityscapes:ROOT, ade20k:ROOT.")  # fmt: skip
@task_options
@click.option("--decoder", type=click.Choice(sorted(DECODERS)), help="[default: pspnet]")
@click.option("--output-stride", type=click.Choice(["8", "16", "32"]),
              help="Of the encoder's last map [default: 8; 32 for MobileNets].")  # fmt: skip
@click.option("--aux-weight", type=click.FloatRange(0),
              help=f"Of a second head's loss; 0: no second head {PUBLISHED}.")  # fmt: skip
@click.option("--norm", type=click.Choice(NORMS),
              help="Batch norms over each process's own images, or sync: over those of all "
              f"processes. With one process both are the same {PUBLISHED}.")  # fmt: skip
@click.option("--head-factor", type=click.FloatRange(0, min_open=True),
              help="Times --lr, for all but the encoder [default: 10].")  # fmt: skip
@click.option("--momentum", type=float, help="[default: 0.9]")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: 1e-4]")
@click.option("--power", type=click.FloatRange(0, min_open=True),
              help="Of the share of steps left, which the rate follows [default: 0.9].",
              )  # fmt: skip
@click.option("--warmup-epochs", type=click.FloatRange(0), help="[default: 0]")
@click.option("--clip-norm", type=click.FloatRange(0, min_open=True),
              help="Largest norm of all gradients [default: no clipping].")  # fmt: skip
@click.option("--crop", type=int, help="Side of training crops and test windows [default: 512].")
@click.option("--scale", type=float, nargs=2,
              help=f"Smallest and largest factor of an image's sides {PUBLISHED}.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]),
              help="adamw, as for ViTs, sets --lr, --weight-decay, --power and --head-factor, too "
              "[default: sgd].")  # fmt: skip
@click.option("--rotate", type=click.FloatRange(0, 180), help="Largest angle [default: 10].")
@_switch("blur", "Blur half of the crops")
@_switch("photometric", "Change the colours of crops")
@_switch("flip", "Mirror half of the crops")
@click.option("--evaluate-every", type=click.IntRange(0),
              help=f"Epochs; 0: after the last alone {PUBLISHED}.")  # fmt: skip
@click.option("--test", type=click.Choice(TESTS),
              help="Whole images, or overlapping windows of --crop [default: window].",
              )  # fmt: skip
@click.option("--window-stride", type=float, help="Share of --crop [default: 2/3].")
@click.option("--test-side", type=int,
              help="Longer side that images are resized to for the test; published: 2048 for "
              "cityscapes, 512 for voc and ade20k.")  # fmt: skip
@click.option("--test-scales", type=Numbers(float),
              help="Factors of that size whose predictions are averaged, as 0.75,1,1.25 "
              "[default: 1].")  # fmt: skip
@_switch("test-flip", "Average with the mirrored image's prediction")
@click.option("--overlays", type=click.IntRange(0), default=8, show_default=True,
              help="Validation images of every run to draw.")  # fmt: skip
def segment(
    student: Path,
    data: str,
    output_stride: str | None,
    overlays: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune a student as the encoder of a segmentation network, beside other starts.

    STUDENT is a student.safetensors of `trainer fit`. The same command again goes on. On several
    GPUs: torchrun --nproc-per-node N -m transfer.cli segment ...
    """
    from transfer.results import describe
    from transfer.segment.run import RESULTS_NAME, TASK, SegmentRequest, run_segment

    task = take_options(options)
    options["output_stride"] = None if output_stride is None else int(output_stride)
    values = run_segment(
        SegmentRequest(student=student, data=data, task=task, changes=options, overlays=overlays)
    )
    path = task.folder(student, TASK) / RESULTS_NAME
    if reports():
        print_result(values, as_json, f"{describe(values)}\nwritten to {path}")
