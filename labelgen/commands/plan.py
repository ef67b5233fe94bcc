"""`labelgen plan`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from labelgen.augment_options import augment_options, take_augment
from labelgen.commands.options import label_options, load_teacher_from, teacher_options
from labelgen.target_options import options_from_cli, target_options
from storage.cli_common import (
    device_option,
    json_option,
    print_result,
    resolve_data,
    seed_option,
    take_sampler,
    view_options,
    workers_option,
)


@click.command()
@teacher_options(required=True)
@label_options("Where the label store would be written; nothing is written there.")
@target_options
@view_options
@augment_options
@click.option("--batch-size", type=click.IntRange(1), default=None,
              help="Crops a forward pass [default: what `run` would take].")  # fmt: skip
@click.option("--block-images", type=click.IntRange(1), default=None,
              help="Images written at once.")  # fmt: skip
@click.option("--probe-crops", type=click.IntRange(1), default=512, show_default=True,
              help="Crops labelled to find out, at least; 12 batches are the least.")  # fmt: skip
@seed_option
@workers_option
@device_option
@json_option
def plan(
    data: str | None,
    out: str,
    crops: int,
    top_k: int | None,
    batch_size: int | None,
    block_images: int | None,
    probe_crops: int,
    seed: int,
    workers: int | None,
    as_json: bool,
    **teacher_options: Any,
) -> int:
    """Say what a run will need: bytes, files, device hours; exit 1 if the disk is too small."""
    from labelgen.basis import CropSample
    from labelgen.planning import plan_run, plan_text, rough
    from labelgen.run_targets import plan_for_run
    from labelgen.settings import build_spec, choose_batch_size, stored_batch_size
    from storage.images import scan_folder

    folder, store = scan_folder(resolve_data(data)), Path(out)
    workers = workers or os.cpu_count() or 1
    targets = options_from_cli(teacher_options)
    sampler, augment = take_sampler(teacher_options), take_augment(teacher_options)
    teacher = load_teacher_from(**teacher_options)
    if batch_size is None:
        batch_size = stored_batch_size(store, teacher.spec.name) or choose_batch_size(teacher)
    sample = CropSample(
        folder=folder,
        sampler=sampler,
        augment=augment,
        seed=seed,
        num_views=crops,
        batch_size=batch_size,
        workers=workers,
    )
    plans = [] if targets is None else plan_for_run(teacher, store, targets, rough(sample), crops)
    spec = build_spec(
        folder, teacher, crops=crops, top_k=top_k, seed=seed,
        sampler=sampler, augment=augment, batch_size=batch_size, block_images=block_images,
        targets=plans,
    )  # fmt: skip
    found = plan_run(
        teacher, folder, spec, store, workers=workers, probe_crops=probe_crops, targets=plans
    )
    report = {"device": str(teacher.device), "teacher": teacher.spec.canonical, **found.to_json()}
    print_result(report, as_json, plan_text(found, str(teacher.device)))
    return 0 if found.fits else 1
