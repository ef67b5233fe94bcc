"""`labelgen verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labelgen.commands.looking import chosen_teacher
from labelgen.commands.options import load_teacher_from, teacher_options
from storage.cli_common import (
    DEFAULT_STORE,
    device_option,
    json_option,
    print_result,
    resolve_data,
    seed_option,
)
from storage.errors import UsageError

if TYPE_CHECKING:
    from storage.store import LabelStore


@click.command()
@click.option("--labels", type=click.Path(), default=DEFAULT_STORE, show_default=True,
              help="Label store: a folder or an address.")  # fmt: skip
@teacher_options(required=False)
@click.option("--data", type=click.Path(), default=None,
              help="Its images [default: where they were labelled, $TEACHONCE_DATA or ./data].",
              )  # fmt: skip
@click.option("--share", type=float, nargs=2, default=(0.001, 0.01), show_default=True,
              help="Share of wrong crops that is all right, and the one that is too many.",
              )  # fmt: skip
@click.option("--risk", type=float, nargs=2, default=(0.01, 0.01), show_default=True,
              help="Risk of a false alarm, and of missing too many wrong crops.")  # fmt: skip
@click.option("--most", type=click.IntRange(1), default=5000, show_default=True,
              help="Crops to look at before giving up undecided.")  # fmt: skip
@seed_option
@device_option
@json_option
def verify(
    labels: str,
    data: str | None,
    share: tuple[float, float],
    risk: tuple[float, float],
    most: int,
    seed: int,
    as_json: bool,
    **teacher: Any,
) -> int:
    """Run the teacher again on crops drawn at random and compare it with what the store says.

    Without --teacher the store's own (its first) is loaded by the name it was given. The exit code
    is 0 where the labels are the teacher's, 1 where they are not, 3 where it isn't clear.
    """
    from labelgen.sequential import ShareTest
    from labelgen.verify_labels import verify_labels
    from storage.progress import Progress
    from storage.remote.opening import open_any

    test = ShareTest(h0=share[0], h1=share[1], alpha=risk[0], beta=risk[1])
    store = open_any(labels)
    if teacher["teacher_name"] is None:
        teacher["teacher_name"] = _published(store)
    folder = Path(data) if data else store.local_data_folder() or resolve_data(None)
    loaded = load_teacher_from(**teacher)
    with Progress(min(test.fewest, most), "crops", "verifying") as progress:
        report = verify_labels(
            store, loaded, folder, test=test, most=most, seed=seed, on_crops=progress.advance
        )
    print_result(report.to_json(), as_json, report.text())
    return report.exit_code


def _published(store: LabelStore) -> str:
    """The name by which the store's first teacher can be had again.

    Raises:
        UsageError: it came from a file.
    """
    spec = store.spec.teachers[chosen_teacher(store, None)].spec
    if "@file:" in spec or spec.startswith("ensemble:"):
        raise UsageError(
            f"{store.path} was labelled by {spec}, which can't be loaded by that name: give the "
            "teacher with --teacher, as it was given to `labelgen run`"
        )
    return spec
