"""labelstore card, sign, verify-signature: what a published store says about itself, and who."""

from __future__ import annotations

from pathlib import Path

import click

from storage.cli_common import json_option, print_result
from storage.errors import UsageError


@click.command()
@click.argument("store", type=click.Path())
@click.option("--out", type=click.Path(), default=None, help="Folder for the two files.")
@click.option("--write", is_flag=True, help="Put them into the store itself, as the Hub shows it.")
@click.option("--name", default=None, help="Title [default: the folder's name].")
@click.option("--licence", default=None, help="Licence of the labels, such as CC-BY-4.0.")
@click.option(
    "--teacher-licence",
    default=None,
    help="Licence of the teacher's weights, where the store doesn't have it.",
)
@click.option("--images-licence", default=None, help="Licence of the images.")
@click.option("--images-from", default=None, help="Where the images can be had.")
@click.option("--url", default=None, help="Where the store will be found.")
@json_option
def card(
    store: str, out: str | None, write: bool, name: str | None, licence: str | None,
    teacher_licence: str | None, images_licence: str | None, images_from: str | None,
    url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write README.md (with the Hub's front matter) and croissant.json of a sealed STORE."""
    from storage.atomic import write_atomic
    from storage.card.croissant import croissant
    from storage.card.facts import card_facts
    from storage.card.licences import state_licences
    from storage.card.readme import readme
    from storage.remote.opening import local_folder, open_any

    if write == (out is not None):
        raise UsageError("give either --out FOLDER or --write (into the store itself)")
    folder = local_folder(store, "written to") if out is None else Path(out)
    opened = open_any(store)
    recorded = {n: record.licence for n, record in opened.spec.teachers.items()}
    licences = state_licences(recorded, licence, teacher_licence, images_licence)
    facts = card_facts(opened, licences, name=name, images_from=images_from, url=url)
    files = {"README.md": readme(facts), "croissant.json": croissant(facts)}
    for file, text in files.items():
        write_atomic(folder / file, text.encode())
    result = {
        "folder": str(folder),
        "files": sorted(files),
        "root": facts.manifest.root,
        "command": facts.command,
        "unstated_licences": licences.unstated(),
    }
    lines = [f"{folder}: README.md and croissant.json of root {facts.manifest.root}"]
    if licences.unstated():
        lines.append(f"no licence stated for: {', '.join(licences.unstated())} (see --help)")
    print_result(result, as_json, "\n".join(lines))


@click.command()
@click.argument("store", type=click.Path())
@click.option(
    "--key",
    type=click.Path(dir_okay=False),
    required=True,
    help="PEM file with an Ed25519 private key.",
)
@click.option("--create-key", is_flag=True, help="Make the key first (and KEY.pub).")
@json_option
def sign(store: str, key: str, create_key: bool, as_json: bool) -> None:
    """Sign the manifest of a sealed STORE with a key of yours."""
    from storage.card.signing import create_key as make_key
    from storage.card.signing import sign_store
    from storage.remote.opening import local_folder

    folder = local_folder(store, "signed")
    if create_key:
        make_key(Path(key))
    elif not Path(key).is_file():
        raise UsageError(f"no key at {key}: give a PEM file, or make one with --create-key")
    signed = sign_store(folder, Path(key))
    result = {"store": store, "root": signed.root, "key": signed.key}
    print_result(result, as_json, f"{store}: root {signed.root} signed by key {signed.key}")


@click.command("verify-signature")
@click.argument("store", type=click.Path())
@click.option(
    "--key",
    type=click.Path(dir_okay=False),
    required=True,
    help="PEM file with the publisher's public key, from where you trust it.",
)
@json_option
def verify_signature(store: str, key: str, as_json: bool) -> None:
    """Check who signed STORE's manifest; `verify --full` then checks the files."""
    from storage.card.signing import check_signature
    from storage.remote.opening import published_folder

    signed = check_signature(published_folder(store), Path(key))
    result = {"store": store, "root": signed.root, "key": signed.key}
    print_result(result, as_json, f"{store}: ok, root {signed.root} signed by key {signed.key}")


COMMANDS = [card, sign, verify_signature]
