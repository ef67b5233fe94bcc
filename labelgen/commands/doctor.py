"""`labelgen doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from labelgen.doctor import PATHS
from storage.cli_common import DEFAULT_STORE, json_option, print_result


@click.command()
@click.option("--labels", type=click.Path(), default=None,
              help=f"Store whose canaries are replayed [default: {DEFAULT_STORE} if it is there]."
              )  # fmt: skip
@click.option("--data", type=click.Path(), default=None,
              help="Folder of its images [default: where they were labelled].")  # fmt: skip
@click.option("--path", "paths", type=click.Choice(PATHS), multiple=True,
              help="Replay through this path only; may be given again [default: all that are "
              "installed].")  # fmt: skip
@click.option("--root", default=None, metavar="HEX",
              help="Merkle root (or its beginning) that the store should have.")  # fmt: skip
@json_option
def doctor(
    labels: str | None, data: str | None, paths: tuple[str, ...],
    root: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Say whether this machine replays the pixels that were labelled, and if not, why.

    Exit code 1 where anything is wrong, with one line a cause.
    """
    if labels is None and Path(DEFAULT_STORE).exists():
        labels = DEFAULT_STORE
    if labels is None and (data or root):
        raise click.UsageError("--data and --root belong to a store: give it with --labels")
    from labelgen.doctor.examine import examine

    store, folder = None, None
    if labels is not None:
        from storage.remote.opening import open_any

        store = open_any(labels)
        folder = Path(data) if data else store.local_data_folder()
    report = examine(store, folder, paths=paths or PATHS, root=root)
    print_result(report.to_json(), as_json, report.text())
    return report.exit_code
