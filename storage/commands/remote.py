"""labelstore push, pull: stores to and from web servers, buckets and the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from storage.cli_common import json_option, overwrite_option, print_result, with_options
from storage.commands.reuse import view_range

F = TypeVar("F", bound=Callable[..., Any])


def cache_options(command: F) -> F:
    """--cache, --cache-size: where fetched files of remote stores are kept."""
    options = (
        click.option(
            "--cache",
            type=click.Path(file_okay=False),
            help="Folder for fetched files [default: $TEACHONCE_CACHE, else the user's cache].",
        ),
        click.option(
            "--cache-size",
            default="50GB",
            show_default=True,
            help="Bytes to keep there; the least recently used files go first.",
        ),
    )
    return with_options(options)(command)


@click.command()
@click.argument("store", type=click.Path())
@click.argument("url")
@overwrite_option
@json_option
def push(store: str, url: str, overwrite: bool, as_json: bool) -> None:
    """Publish a sealed STORE at URL: s3://, gs://, hf://datasets/ORG/NAME/..., or a folder.

    Every file is checked as it is sent, the manifest goes last, and the same command again goes on
    where it stopped.
    """
    from dataclasses import asdict

    from storage.manifest import read_manifest
    from storage.progress import Progress
    from storage.remote.opening import local_folder
    from storage.remote.push import push as push_store
    from storage.store import LabelStore

    opened = LabelStore.open(local_folder(store, "pushed from"))
    total = sum(read_manifest(opened.path).sizes().values()) if opened.is_sealed else 0
    with Progress(total, "bytes", "pushing") as progress:
        report = push_store(store, url, overwrite=overwrite, advance=progress.advance)
    print_result(
        asdict(report),
        as_json,
        f"{url}: {report.sent} files sent ({report.sent_bytes:,} bytes), {report.kept} were there\n"
        f"root {report.root}",
    )


@click.command()
@click.argument("url")
@click.option("--out", required=True, type=click.Path(), help="The new store.")
@click.option("--views", callback=view_range, metavar="A:B", help="Only views A to B - 1.")
@click.option("--k", "top_k", type=click.IntRange(1), help="Only the first K classes of a label.")
@click.option("--root", help="The Merkle root that the store must have.")
@cache_options
@json_option
def pull(
    url: str, out: str, views: tuple[int, int | None] | None, top_k: int | None,
    root: str | None, cache: str | None, cache_size: str, as_json: bool,
) -> None:  # fmt: skip
    """Copy the store at URL, or a part of it, to a folder; the same command again goes on.

    Every file is compared with the store's manifest, which is written last.
    """
    from dataclasses import asdict

    from storage.errors import UsageError
    from storage.progress import Progress
    from storage.remote.opening import open_any
    from storage.remote.pull import pull as pull_store
    from storage.remote.store import RemoteStore

    store = open_any(url, cache=cache, cache_size=cache_size, root=root, whole=True)
    if not isinstance(store, RemoteStore):
        raise UsageError(f"{url} is a folder: copy it, or cut it with `labelstore subset`")
    span = None if views is None else (views[0], views[1] or store.spec.num_views)
    names = store.files_of_views(*(span or (0, store.spec.num_views)))
    total = sum(store.manifest.objects[name][0] for name in names)
    with Progress(total, "bytes", "pulling") as progress:
        report = pull_store(store, out, views=span, top_k=top_k, advance=progress.advance)
    print_result(
        asdict(report),
        as_json,
        f"{out}: {report.objects} files, {report.bytes:,} bytes ({report.fetched:,} fetched), "
        f"root {report.root}"
        + ("" if report.root == report.source_root else f"\npart of {report.source_root}"),
    )


COMMANDS = [push, pull]
