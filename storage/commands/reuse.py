"""labelstore match, subset, merge, ferkd, diff, origin: stores joined, cut, adapted, compared."""

from __future__ import annotations

from typing import Any

import click

from storage.cli_common import json_option, print_result, workers_option
from storage.errors import UsageError

STORE = click.Path()
ALL = "all"


def view_range(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, int | None] | None:
    """A:B, views A to B - 1; either end may be left out."""
    if value is None:
        return None
    first, colon, last = value.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, last)):
        raise click.BadParameter(f"{value!r}; expected A:B, such as 0:100")
    return int(first or 0), int(last) if last else None


def target_paths(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> list[str] | str | None:
    """Paths between commas; `none` is an empty list, `all` is itself."""
    if value is None or value == ALL:
        return value
    return [] if value == "none" else [path for path in value.split(",") if path]


def out_option(command: Any) -> Any:
    """--out: the new store."""
    return click.option("--out", required=True, type=click.Path(),
                        help="The new store; nothing may be there yet.")(command)  # fmt: skip


def examples_option(command: Any) -> Any:
    """--examples: how many names to show."""
    return click.option("--examples", type=click.IntRange(0), default=5, show_default=True,
                        help="Examples shown of each kind.")(command)  # fmt: skip


@click.command()
@click.argument("store", type=STORE)
@click.argument("data", type=click.Path())
@click.option("--by-key", is_flag=True, help="Pair what is left by file name (never trained on).")
@click.option(
    "--was",
    type=click.Path(exists=True, file_okay=False),
    help="Folder that was labelled, to compare pixels [default: the store's hint].",
)
@workers_option
@examples_option
@json_option
def match(
    store: str, data: str, by_key: bool, was: str | None, workers: int | None, examples: int,
    as_json: bool,
) -> int:  # fmt: skip
    """Which images of DATA has STORE labels for? By content, not by name.

    Leaves with 0 if the folder holds exactly the images that were labelled, under the same class
    names, and with 1 otherwise; training uses the exact ones either way.
    """
    import os

    from storage.commands.reuse_text import match_text
    from storage.match import match as match_store
    from storage.remote import open_any

    report = match_store(
        open_any(store), data, by_key=by_key, was=was,
        workers=workers or os.cpu_count() or 1, progress=_progress("compared", "files", every=1000),
    )  # fmt: skip
    found = report.to_json(examples)
    print_result(found, as_json, match_text(store, data, found))
    return report.exit_code


@click.command()
@click.argument("store", type=STORE)
@out_option
@click.option(
    "--views", metavar="A:B", callback=view_range, help="Views A to B - 1 of every image."
)
@click.option("--top-k", type=click.IntRange(1), help="Classes kept of every label.")
@click.option(
    "--images",
    type=click.File("rb"),
    help="File of images, one a line: keys, or sha256:<hex digest>; - for stdin.",
)
@click.option("--classes", multiple=True, metavar="NAME",
              help="Images of this folder class; may be given again.")  # fmt: skip
@click.option("--labels", multiple=True, metavar="TEACHER",
              help="Labels of this teacher; may be given again [default: all].")  # fmt: skip
@click.option("--targets", metavar="PATH,...|none|all", callback=target_paths,
              help="Targets kept, such as features/pooled [default: all that fit].")  # fmt: skip
@json_option
def subset(
    store: str, out: str, views: tuple[int, int | None] | None, top_k: int | None, images: Any,
    classes: tuple[str, ...], labels: tuple[str, ...], targets: list[str] | str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a part of STORE to a new store, proven against STORE's Merkle root."""
    from storage.remote.opening import as_store
    from storage.select import Selection
    from storage.select import subset as cut

    opened = as_store(store)
    if views is not None and views[1] is None:
        views = views[0], opened.spec.num_views
    if targets == ALL:
        targets = sorted(opened.spec.targets)
    lines = None
    if images is not None:
        text = images.read().decode("utf-8", "surrogateescape")
        lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    selection = Selection(
        views=views,  # type: ignore[arg-type]  # its end was filled in above
        top_k=top_k, images=lines, classes=classes or None, labels=labels or None,
        targets=targets,
    )  # fmt: skip
    cut(opened, out, selection, _progress("wrote", "blocks"))
    _print_made(out, as_json)


@click.command()
@click.argument("stores", nargs=-1, required=True, type=STORE)
@out_option
@click.option("--allow-licence-mix", is_flag=True,
              help="Put labels of different licences into one store.")  # fmt: skip
@json_option
def merge(stores: tuple[str, ...], out: str, allow_licence_mix: bool, as_json: bool) -> None:
    """Put STORES together in a new store.

    They may be parts of one labelling run (blocks labelled in different places), other images under
    the same settings, the views that follow, or other teachers on the same views: which of these
    is found by looking. Stores that don't go together are refused, naming every difference.
    """
    from storage.merge import merge_stores

    if len(stores) < 2:
        raise UsageError("give at least two stores to merge")
    merge_stores(stores, out, allow_licence_mix, _progress("wrote", "blocks"))
    _print_made(out, as_json)


SHARE = click.FloatRange(0, 1)


@click.command()
@click.argument("store", type=STORE)
@out_option
@click.option("--low", type=SHARE, help="Labels less sure than this are left out [default: 0].")
@click.option(
    "--middle",
    type=SHARE,
    help="Labels less sure than this become their image's class [default: --low].",
)
@click.option("--top", type=SHARE, help="Labels surer than this are left out [default: 1].")
@click.option(
    "--epsilon", type=SHARE, help="Mass that such a class gives to all others [default: 0.1]."
)
@click.option("--labels", metavar="TEACHER", help="Labels of this teacher [default: the only one].")
@json_option
def ferkd(
    store: str, out: str, low: float | None, middle: float | None, top: float | None,
    epsilon: float | None, labels: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Adapt the labels of STORE by how sure they are (FerKD), as a new store.

    How sure a label is, is its largest probability. Trained on with --method fkd, the new store is
    FerKD; views, images, targets and other teachers' labels are STORE's, proven against its root.
    """
    from storage.ferkd import ferkd as adapt
    from storage.thresholds import Thresholds

    given = {"low": low, "middle": low if middle is None else middle, "top": top,
             "epsilon": epsilon}  # fmt: skip
    thresholds = Thresholds(**{name: value for name, value in given.items() if value is not None})
    adapt(store, out, thresholds, labels, _progress("wrote", "blocks"))
    _print_made(out, as_json)


@click.command()
@click.argument("a", type=STORE)
@click.argument("b", type=STORE)
@examples_option
@json_option
def diff(a: str, b: str, examples: int, as_json: bool) -> int:
    """Compare stores A and B: settings, images, views and labels. 0 equal, 1 different."""
    from storage.commands.reuse_text import diff_text
    from storage.compare import diff as compare
    from storage.remote import open_any

    report = compare(open_any(a), open_any(b), _progress("compared", "blocks"))
    found = report.to_json(examples)
    print_result(found, as_json, diff_text(a, b, found))
    return 0 if report.equal else 1


@click.command()
@click.argument("store", type=STORE)
@click.option("--root", metavar="HEX", help="Merkle root that files must be proven to be under.")
@json_option
def origin(store: str, root: str | None, as_json: bool) -> int:
    """Show what STORE was made from, and check its proofs against the roots of those stores.

    With --root: 0 if files of the store are proven to be files of the store with that root.
    """
    from storage.commands.reuse_text import origin_text
    from storage.origin import check_origin, origin_json
    from storage.remote import open_any

    opened = open_any(store)
    report = check_origin(opened, root)
    found = origin_json(opened, report)
    print_result(found, as_json, origin_text(store, found))
    return 1 if report.problems else 0


COMMANDS = [match, subset, merge, ferkd, diff, origin]


def _print_made(out: str, as_json: bool) -> None:
    from storage.commands.reuse_text import made_text
    from storage.origin import check_origin, origin_json
    from storage.store import LabelStore

    store = LabelStore.open(out)
    found = origin_json(store, check_origin(store))
    print_result(found, as_json, made_text(out, found))


def _progress(verb: str, unit: str, every: int = 1) -> Any:
    import sys

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and (done % every == 0 or done == total):
            click.echo(f"\r{verb} {done} of {total} {unit}", err=True, nl=done == total)

    return show
