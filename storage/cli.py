"""labelstore: look at, check and close label stores."""

from __future__ import annotations

import click

from storage.cli_common import json_option, print_result, run_cli
from storage.commands import archive_export, archive_import, card, remote, reuse


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Label stores: what a teacher saw and said, on disk.

    Exit codes: 0 done, 1 problems found or failed, 2 misused, 3 store not finished.
    """


for _part in (reuse, remote, archive_import, archive_export, card):
    for _command in _part.COMMANDS:
        cli.add_command(_command)


@cli.command()
@click.argument("store")
@json_option
def info(store: str, as_json: bool) -> None:
    """Show what STORE (a folder or an address) holds, its size by part and its state."""
    from storage.info import info_text, store_info
    from storage.remote import open_any

    found = store_info(open_any(store))
    print_result(found, as_json, info_text(found))


@cli.command()
@click.argument("store", type=click.Path())
@json_option
def seal(store: str, as_json: bool) -> None:
    """Close a complete STORE: hash every file and write its manifest."""
    from storage.remote.opening import local_folder
    from storage.sealing import seal as seal_store
    from storage.store import LabelStore

    manifest = seal_store(LabelStore.open(local_folder(store, "sealed")))
    size = sum(manifest.sizes().values())
    result = {
        "path": store,
        "root": manifest.root,
        "objects": len(manifest.objects),
        "bytes": size,
    }
    print_result(
        result,
        as_json,
        f"{store}: sealed, {len(manifest.objects)} files, {size:,} bytes\nroot {manifest.root}",
    )


@cli.command()
@click.argument("store", type=click.Path())
@click.option("--hashes", is_flag=True, help="Compare every file with its SHA-256.")
@click.option("--full", is_flag=True, help="Hashes, and decode every chunk: value ranges, sums.")
@json_option
def verify(store: str, hashes: bool, full: bool, as_json: bool) -> int:
    """Check that STORE (a folder or an address) is whole and unchanged; name every file that isn't.

    Of an address every file is asked for anew, whatever is cached: its size, with --hashes or
    --full its bytes.
    """
    import sys

    from storage.remote.verifying import verify_any

    def progress(done: int, blocks: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\rchecked {done} of {blocks} blocks", err=True, nl=done == blocks)

    report = verify_any(store, full, progress, hashes, quiet=False)
    lines = [f"{p.path}: {p.kind}: {p.detail}" for p in report.problems]
    depth = "presence and sizes; --hashes compares every byte, --full decodes it too"
    if full or hashes:
        depth = "every byte and value" if full else "every byte; --full decodes the values too"
    if report.problems:
        lines.append(f"{store}: {len(report.problems)} problems ({depth})")
    elif report.missing_blocks:
        lines.append(
            f"{store}: incomplete, {len(report.missing_blocks)} of {report.blocks} blocks missing: "
            "run the same `labelgen run` again to finish it"
        )
    elif report.missing_constants:
        lines.append(
            f"{store}: incomplete, what {', '.join(report.missing_constants)} shares is missing: "
            "run the same `labelgen` command again to finish it"
        )
    else:
        state = f"sealed, root {report.root}" if report.sealed else "complete, not sealed"
        lines.append(
            f"{store}: ok, {report.objects} files, {report.bytes:,} bytes, {state} ({depth})"
        )
    print_result(report.to_json(), as_json, "\n".join(lines))
    return report.exit_code


def main() -> None:
    """Entry point of `labelstore`."""
    run_cli(cli, "labelstore")
