"""`transfer report`."""

from __future__ import annotations

from pathlib import Path

import click

from storage.cli_common import json_option, overwrite_option, print_result
from transfer.options import FILE


@click.command()
@click.argument("results", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="Folder to write.")
@overwrite_option
@json_option
def report(results: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool) -> None:
    """One table of all tasks of one student, as JSON, Markdown and HTML.

    RESULTS are the JSON files of classify, segment, detect and probe, or folders that hold them.
    """
    from transfer.report import HTML_NAME, MARKDOWN_NAME, write_report

    values = write_report(results, out, overwrite)
    text = (out / MARKDOWN_NAME).read_text()
    print_result(values, as_json, f"{text}\nwritten to {out / HTML_NAME}")
