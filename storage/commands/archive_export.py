"""labelstore export: stores in the formats of other projects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from storage.cli_common import (
    json_option,
    overwrite_option,
    print_result,
    show_blocks,
    with_options,
)

F = TypeVar("F", bound=Callable[..., Any])


@click.group("export")
def export_group() -> None:
    """Write a store in another project's format."""


@export_group.command("fkd")
@click.argument("store", type=click.Path())
@click.option("--out", type=click.Path(), required=True, help="Folder to write into.")
@click.option("--label-type", default="marginal_smoothing_k5", show_default=True,
              type=click.Choice(["marginal_smoothing_k5", "marginal_smoothing_k10",
                                 "marginal_renorm_k5", "hard", "smoothing", "full"]),
              help="FKD's name of the type.")  # fmt: skip
@click.option("--dataset", default="imagenet", show_default=True, help="Name of the top folder.")
@click.option("--split", default="train", show_default=True, help="Name of the folder below it.")
@click.option("--teacher", default=None, help="Whose labels, if the store has several.")
@overwrite_option
@json_option
def export_fkd(
    store: str, out: str, label_type: str, dataset: str, split: str, teacher: str | None,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """FKD label files, which its own loader reads."""
    from storage.archives.fkd_export import export_fkd as export
    from storage.remote import open_any

    report = export(
        open_any(store), Path(out), label_type=label_type, dataset=dataset, split=split,
        teacher=teacher, overwrite=overwrite, progress=show_blocks,
    )  # fmt: skip
    _print_export(report, as_json)


def _tables_options(command: F) -> F:
    options = (
        click.argument("store", type=click.Path()),
        click.option("--out", type=click.Path(), required=True, help="Folder to write into."),
        click.option("--shard-images", type=click.IntRange(1), default=1000, show_default=True,
                     help="Images in one file."),
        click.option("--teacher", default=None, help="Whose labels, if the store has several."),
        overwrite_option,
        json_option,
    )  # fmt: skip
    return with_options(options)(command)


@export_group.command("webdataset")
@_tables_options
def export_webdataset(store: str, out: str, as_json: bool, **options: Any) -> None:
    """Tar shards with <number>.json and <number>.npz an image."""
    from storage.archives.tables_export import export_webdataset as export
    from storage.remote import open_any

    found = export(open_any(store), Path(out), progress=show_blocks, **options)
    _print_export(found, as_json)


@export_group.command("parquet")
@_tables_options
def export_parquet(store: str, out: str, as_json: bool, **options: Any) -> None:
    """Parquet tables, a row an image (needs pyarrow)."""
    from storage.archives.tables_export import export_parquet as export
    from storage.remote import open_any

    found = export(open_any(store), Path(out), progress=show_blocks, **options)
    _print_export(found, as_json)


def _print_export(report: Any, as_json: bool) -> None:
    from dataclasses import asdict

    text = f"{report.out}: {report.files} files, {report.bytes:,} bytes"
    if report.skipped:
        text += f"; {len(report.skipped)} images without labels left out"
    print_result(asdict(report), as_json, text)


COMMANDS = [export_group]
