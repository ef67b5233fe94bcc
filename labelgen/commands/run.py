"""`labelgen run`."""

from __future__ import annotations

from typing import Any

import click

from labelgen.augment_options import augment_options, take_augment
from labelgen.commands.engine_options import (
    CommandWithWords,
    engine_from_options,
    engine_options,
)
from labelgen.commands.options import (
    batch_options,
    label_options,
    load_teacher_from,
    stop_on_signals,
    teacher_options,
)
from labelgen.target_options import options_from_cli, target_options
from storage.cli_common import (
    device_option,
    json_option,
    overwrite_option,
    print_result,
    resolve_data,
    seed_option,
    take_sampler,
    view_options,
    workers_option,
)


@click.command(cls=CommandWithWords)
@teacher_options(required=True)
@label_options("Label store to write, or to go on with.")
@view_options
@augment_options
@target_options
@batch_options
@click.option("--block-images", type=click.IntRange(1), default=None,
              help="Images written at once; a killed run loses one such block.")  # fmt: skip
@click.option("--teacher-check/--no-teacher-check", default=True, show_default=True,
              help="Refuse a teacher that is near chance on the folder's own classes.")  # fmt: skip
@click.option("--retry-missing", is_flag=True,
              help="Open a finished store for images that were missing and have come back.",
              )  # fmt: skip
@engine_options
@seed_option
@workers_option
@device_option
@overwrite_option
@json_option
def run(
    data: str | None,
    out: str,
    crops: int,
    top_k: int | None,
    batch_size: int | None,
    compiled: bool,
    keep_members: bool,
    retry_missing: bool,
    block_images: int | None,
    teacher_check: bool,
    seed: int,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
    processes: int | None,
    engine: str,
    slurm: tuple[str, ...],
    no_wait: bool,
    patience: float,
    **others: Any,
) -> None:
    """Label every image of a folder; run it again to go on after an interruption."""
    folder = resolve_data(data)
    sampler, augment = take_sampler(others), take_augment(others)
    with stop_on_signals() as stop:
        crew = engine_from_options(
            processes, engine, slurm, no_wait, patience, device=others["device"],
            overwrite=overwrite,
        )  # fmt: skip
        if crew.kind == "slurm":
            click.echo(crew.submit(out, overwrite, as_json, stop), nl=False)
            return
        from labelgen.run import generate
        from labelgen.target_text import target_lines
        from storage.store import LabelStore

        targets = options_from_cli(others)
        others["device"], cores = crew.place(others["device"])
        teacher = load_teacher_from(**others)
        settings: dict[str, Any] = {
            "crops": crops, "top_k": top_k, "seed": seed,
            "sampler": sampler, "augment": augment,
            "targets": targets, "keep_members": keep_members, "compiled": compiled,
            "batch_size": batch_size, "block_images": block_images,
        }  # fmt: skip
        workers = workers or cores
        if not crew.world.leads:
            crew.join(teacher, folder, out, workers, stop, settings)
            return
        result = generate(
            teacher, folder, out, workers=workers, overwrite=overwrite, stop=stop,
            retry_missing=retry_missing, teacher_check=teacher_check,
            label=crew.label(teacher, others, folder, out, workers, settings), **settings,
        )  # fmt: skip
    agreement = result.measured.get("top1_agreement")
    lines = [
        f"store      {result.store}",
        f"teacher    {teacher.spec.canonical}",
        f"images     {result.images:,} ({len(result.masked)} masked, "
        f"{result.duplicates} duplicates)",
        f"crops      {result.crops:,} ({result.new_crops:,} new, "
        f"{result.crops_per_second:,.1f} crops/s)",
        f"check      {result.teacher_check.text()}",
        f"agreement  {_percent(agreement)}",
        *target_lines(LabelStore.open(result.store)),
        f"root       {result.root}",
    ]
    report = {
        "store": str(result.store),
        "teacher": teacher.spec.canonical,
        "images": result.images,
        "masked": result.masked,
        "duplicates": result.duplicates,
        "crops": result.crops,
        "new_crops": result.new_crops,
        "seconds": round(result.seconds, 3),
        "crops_per_second": round(result.crops_per_second, 3),
        "resumed_blocks": result.resumed,
        "teacher_check": result.teacher_check.to_json(),
        "measured": dict(result.measured),
        "root": result.root,
    }
    print_result(report, as_json, "\n".join(lines))


def _percent(agreement: float | None) -> str:
    if agreement is None:
        return "not measured: the folder's classes are not the teacher's by name"
    return f"{100 * agreement:.1f} % of crops have the image's own class first"
