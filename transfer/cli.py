"""The `transfer` command: put a student to work elsewhere."""

from __future__ import annotations

import click

from storage.cli_common import run_cli
from transfer.commands.classify import classify
from transfer.commands.detect import detect
from transfer.commands.export import export
from transfer.commands.probe import probe
from transfer.commands.report import report
from transfer.commands.segment import segment


@click.group()
def cli() -> None:
    """Take a distilled student to other tasks and other libraries."""


cli.add_command(classify)
cli.add_command(probe)
cli.add_command(segment)
cli.add_command(detect)
cli.add_command(export)
cli.add_command(report)


def main() -> None:
    """Entry point."""
    run_cli(cli, "transfer")


if __name__ == "__main__":
    main()
