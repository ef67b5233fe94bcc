"""`transfer detect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from storage.cli_common import print_result, reports
from transfer.detect.presets import DETECTORS, HEADS, NORMS, PRESETS
from transfer.options import FILE, Numbers, take_options, task_options


@click.command()
@click.argument("student", type=FILE)
@click.option("--data", multiple=True, required=True,
              help="Training photos: a COCO annotation file, or a VOC folder (FOLDER:LIST for "
              "another list than train). May be given several times.")  # fmt: skip
@click.option("--val", multiple=True,
              help="Validation photos, likewise [default: the list val of --data].")  # fmt: skip
@click.option("--images", type=FILE, help="Folder of a COCO file's photos.")
@click.option("--val-images", type=FILE, help="Of --val's [default: --images].")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="short", show_default=True,
              help="Published settings; all other options go over them.")  # fmt: skip
@click.option("--detector", type=click.Choice(DETECTORS),
              default="faster-rcnn", show_default=True)  # fmt: skip
@click.option("--head", type=click.Choice(HEADS),
              help="c4: the student's last stage is the head (ResNets) [default: the preset's].",
              )  # fmt: skip
@click.option("--norm", type=click.Choice(NORMS),
              help="Batch norms of the student over each process's own photos, sync: over those of "
              "all processes (with one both are the same), or as they came [default: the "
              "preset's].")  # fmt: skip
@click.option("--freeze-stages", type=click.IntRange(0, 3), default=0, show_default=True,
              help="The stem and this many stages don't learn.")  # fmt: skip
@click.option("--width", type=int, default=256, show_default=True, help="Channels of the pyramid.")
@click.option("--anchor", type=int, default=32, show_default=True,
              help="Side of the smallest anchors, in pixels.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(1), help="Length, instead of --epochs.")
@click.option("--milestones", type=Numbers(float),
              help="Where the rate falls to a tenth: epochs, or iterations with --iterations.",
              )  # fmt: skip
@click.option("--warmup-epochs", type=click.FloatRange(0), help="Epochs until the full rate.")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=1e-4, show_default=True)
@click.option("--clip-norm", type=click.FloatRange(0, min_open=True))
@click.option("--short-sides", type=Numbers(int),
              help="Shorter sides of training photos to draw from, such as 640,672,704.",
              )  # fmt: skip
@click.option("--test-side", type=int, help="Of validation photos [default: the largest].")
@click.option("--longest", type=int, default=1333, show_default=True, help="Of any longer side.")
@click.option("--flip", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--skip-ignored/--learn-ignored", default=None,
              help="Whether boxes that evaluation ignores are left out of training "
              "[default: crowds are, difficult ones aren't].")  # fmt: skip
@click.option("--overlays", type=click.IntRange(1), default=8, show_default=True,
              help="Validation photos drawn with what was found.")  # fmt: skip
@click.option("--evaluate-every", type=click.IntRange(1), help="Epochs [default: at the end].")
@task_options
def detect(student: Path, **options: Any) -> None:
    """Fine-tune a detector on a student, from one or several starts: average precision.

    The same command again goes on. On several GPUs: torchrun --nproc-per-node N -m transfer.cli
    detect ...
    """
    from transfer.detect.run import DetectRequest, run_detect
    from transfer.detect.settings import DetectOptions
    from transfer.results import describe

    task, as_json = take_options(options), options.pop("as_json")
    sources = {name: options.pop(name) for name in ("data", "val", "images", "val_images")}
    values = run_detect(
        DetectRequest(student=student, **sources, task=task, options=DetectOptions(**options))
    )
    if reports():
        print_result(values, as_json, describe(values))
