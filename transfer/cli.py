"""The `transfer` command: put a student to work elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from storage.cli_common import json_option, overwrite_option, print_result, run_cli


@click.group()
def cli() -> None:
    """Take a distilled student to other libraries."""


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Choice(["torchvision", "timm"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@overwrite_option
@json_option
def export(checkpoint: Path, target: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a student.safetensors in another library's layout and compare the logits."""
    from transfer.export import export as run_export

    report = run_export(checkpoint, target, out, overwrite)
    result = {
        "folder": str(report.folder),
        "target": report.target,
        "max_difference": report.max_difference,
    }
    text = f"{out}: loads in {target}; largest logit difference {report.max_difference:.1e}"
    print_result(result, as_json, text)


def main() -> None:
    """Entry point."""
    run_cli(cli, "transfer")
