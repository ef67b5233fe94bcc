"""`labelgen stats`."""

from __future__ import annotations

from pathlib import Path

import click

from labelgen.commands.looking import chosen_teacher, refuse_existing
from storage.cli_common import DEFAULT_STORE, json_option, overwrite_option, print_result


@click.command()
@click.option("--labels", type=click.Path(), default=DEFAULT_STORE, show_default=True,
              help="Label store: a folder or an address.")  # fmt: skip
@click.option("--teacher", default=None, metavar="NAME",
              help="Whose labels [default: the store's first teacher].")  # fmt: skip
@click.option("--crops", type=click.IntRange(1), default=None,
              help="Look at the first views of each image only [default: all].")  # fmt: skip
@click.option("--html", type=click.Path(dir_okay=False), default=None,
              help="Also write a page with charts that needs nothing else.")  # fmt: skip
@click.option("--listed", type=click.IntRange(1, 1000), default=20, show_default=True,
              help="Images and pairs of classes in each list.")  # fmt: skip
@overwrite_option
@json_option
def stats(
    labels: str,
    teacher: str | None,
    crops: int | None,
    html: str | None,
    listed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Say what a store's labels are like: entropy, agreement, hard and mislabelled images."""
    page = Path(html) if html else None
    refuse_existing(page, overwrite, "--html")
    from labelgen.stats import collect
    from labelgen.stats_page import stats_page
    from labelgen.stats_report import report, report_text
    from storage.atomic import write_atomic
    from storage.progress import Progress
    from storage.remote.opening import open_any

    store = open_any(labels)
    name = chosen_teacher(store, teacher)
    views = min(crops or store.spec.num_views, store.spec.num_views)
    with Progress(store.spec.num_images * views, "labels", "looking") as progress:
        collected = collect(store, name, views, progress.advance)
    found = report(collected, listed)
    text = report_text(found)
    if page:
        write_atomic(page, stats_page(collected, found).encode())
        text += f"\n{page}: the same with charts"
    print_result(found, as_json, text)
