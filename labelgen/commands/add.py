"""`labelgen add`."""

from __future__ import annotations

from typing import Any

import click

from labelgen.commands.options import (
    batch_options,
    load_teacher_from,
    stop_on_signals,
    teacher_options,
)
from labelgen.target_options import options_from_cli, target_options
from storage.cli_common import device_option, json_option, print_result, workers_option


@click.command()
@click.option("--labels", required=True, type=click.Path(),
              help="Finished store to add to; it is read, and left as it is.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(),
              help="Larger store to write, or to go on with.")  # fmt: skip
@click.option("--data", type=click.Path(), default=None,
              help="The labelled images [default: where they lay when they were labelled].",
              )  # fmt: skip
@click.option("--crops", type=click.IntRange(1), default=None,
              help="Views of every image that the new store has in all.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1), default=None,
              help="Classes kept a label of a second teacher [default: 10].")  # fmt: skip
@teacher_options(required=True)
@target_options
@batch_options
@workers_option
@device_option
@json_option
def add(
    labels: str,
    out: str,
    data: str | None,
    crops: int | None,
    top_k: int | None,
    batch_size: int | None,
    compiled: bool,
    keep_members: bool,
    workers: int | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Add a second teacher, targets or further views to what a store has.

    With a teacher that the store doesn't know, its labels of all views are added; with --features,
    --heads, --tokens or --dense those targets, from the same forward pass; with --crops the views
    after the store's last, labelled by the store's own teacher.
    """
    with stop_on_signals() as stop:
        from labelgen.adding import add as add_to
        from labelgen.target_text import target_lines
        from storage.store import LabelStore

        targets = options_from_cli(others)
        teacher = load_teacher_from(**others)
        result = add_to(
            teacher, labels, out, data=data, targets=targets, crops=crops, top_k=top_k,
            batch_size=batch_size, keep_members=keep_members, compiled=compiled, workers=workers,
            stop=stop,
        )  # fmt: skip
    report = {
        "store": str(result.store),
        "root": result.root,
        "parent_root": result.parent_root,
        "teachers": list(result.teachers),
        "targets": list(result.targets),
        "views": result.views,
        "new_crops": result.new_crops,
        "seconds": round(result.seconds, 3),
    }
    lines = [
        f"store      {result.store}",
        f"added      {', '.join([*result.teachers, *result.targets]) or f'views up to {crops}'}",
        f"crops      {result.new_crops:,} forwarded in {result.seconds:,.1f} s",
        *target_lines(LabelStore.open(result.store), result.targets),
        f"root       {result.root}",
    ]
    print_result(report, as_json, "\n".join(lines))
