"""The `labelgen` command line: its commands are in labelgen/commands, one module each."""

from __future__ import annotations

import click

from labelgen.commands.add import add
from labelgen.commands.doctor import doctor
from labelgen.commands.plan import plan
from labelgen.commands.preview import preview
from labelgen.commands.run import run
from labelgen.commands.stats import stats
from labelgen.commands.teachers import teachers
from labelgen.commands.verify import verify
from storage.cli_common import run_cli


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Label images once with a teacher, for any number of students."""


for command in (run, add, teachers, preview, stats, plan, doctor, verify):
    cli.add_command(command)


def main() -> None:
    """Entry point of `labelgen`."""
    run_cli(cli, "labelgen")


if __name__ == "__main__":
    main()
