"""`labelgen preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labelgen.augment_options import augment_options, take_augment
from labelgen.commands.looking import chosen_teacher, refuse_existing
from labelgen.commands.options import load_teacher_from, teacher_options
from storage.cli_common import (
    device_option,
    json_option,
    overwrite_option,
    print_result,
    resolve_data,
    seed_option,
    take_sampler,
    view_options,
)


@click.command()
@click.option("--labels", type=click.Path(), default=None,
              help="Show what this store holds; no teacher is run.")  # fmt: skip
@teacher_options(required=False)
@click.option("--data", type=click.Path(), default=None,
              help="Image folder [default: the store's, $TEACHONCE_DATA or ./data].")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False), default="preview.png", show_default=True,
              help="PNG to write.")  # fmt: skip
@click.option("--html", type=click.Path(dir_okay=False), default=None,
              help="Also write the sheet as a page that needs nothing else.")  # fmt: skip
@click.option("--key", "keys", multiple=True, metavar="KEY",
              help="Show this image (such as tench/1.jpg); may be given again.")  # fmt: skip
@click.option("--images", type=click.IntRange(1, 100), default=6, show_default=True,
              help="Images shown, one a row, drawn by the seed.")  # fmt: skip
@click.option("--crops", type=click.IntRange(1, 20), default=5, show_default=True,
              help="Views shown of each: the first that `run` would label.")  # fmt: skip
@view_options
@augment_options
@seed_option
@device_option
@overwrite_option
@json_option
def preview(
    labels: str | None,
    data: str | None,
    out: str,
    html: str | None,
    keys: tuple[str, ...],
    images: int,
    crops: int,
    seed: int,
    overwrite: bool,
    as_json: bool,
    **teacher_options: Any,
) -> None:
    """Draw a contact sheet: crops with a teacher's labels, live or from a store."""
    path, page = Path(out), Path(html) if html else None
    sampler, augment = take_sampler(teacher_options), take_augment(teacher_options)
    refuse_existing(path, overwrite, "--out")
    refuse_existing(page, overwrite, "--html")
    if labels is None and teacher_options["teacher_name"] is None:
        raise click.UsageError("give a store with --labels, or a teacher with --teacher")
    from labelgen.preview.page import preview_page
    from labelgen.preview.rows import live_rows, stored_rows
    from labelgen.preview.sheet import draw_sheet, encoded
    from storage.atomic import write_atomic

    choice: dict[str, Any] = {
        "num_images": len(keys) or images, "seed": seed, "keys": list(dict.fromkeys(keys)),
    }  # fmt: skip
    if labels is not None:
        from storage.remote.opening import open_any

        store = open_any(labels)
        folder = resolve_data(data) if data else store.local_data_folder() or resolve_data(data)
        name = chosen_teacher(store, teacher_options["teacher_name"])
        shown = stored_rows(store, folder, name, num_views=min(crops, store.spec.num_views),
                            **choice)  # fmt: skip
    else:
        from storage.images import scan_folder

        shown = live_rows(
            load_teacher_from(**teacher_options), scan_folder(resolve_data(data)),
            sampler, augment=augment, num_views=crops, **choice,
        )  # fmt: skip
    written = [path, *([page] if page else [])]
    write_atomic(path, encoded(draw_sheet(shown), "PNG"))
    if page:
        write_atomic(page, preview_page(shown).encode())
    found = {
        "out": str(path),
        "html": str(page) if page else None,
        "images": [image.key for image in shown.images],
        "crops": len(shown.images[0].views),
        "passed_over": dict(shown.passed_over),
        "notes": list(shown.notes),
    }
    lines = [f"{', '.join(map(str, written))}: {len(shown.images)} images, {found['crops']} crops "
             "each", *shown.notes,
             *(f"not shown: {key}: {why}" for key, why in shown.passed_over)]  # fmt: skip
    print_result(found, as_json, "\n".join(lines))
