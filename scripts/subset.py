"""A seeded subset of an image folder: so many images a class, as links, with the list of them.

    python scripts/subset.py --data imagenet/train --per-class 128 --seed 0 --out imagenet-10pct

KDEP pretrains on 128 images of each ImageNet class (10 %), FKD's and HSAKD's few-shot tables on
shares of a training set. Published subsets were drawn without a seed; this one is a function of
(seed, keys): images of a class are ordered by SHA-256 of "seed/key", the first ones taken. The
list, subset.txt in the new folder, has one key a line; its own SHA-256 is printed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click

from storage.errors import UsageError
from storage.images import ImageFolder, scan_folder


def choose(folder: ImageFolder, per_class: int | None, share: float | None, seed: int) -> list[str]:
    """Keys of the subset, in the folder's order.

    Raises:
        UsageError: a folder without classes, or a class with fewer images than asked for.
    """
    if not folder.classes:
        raise UsageError(f"{folder.root} has no class folders: expected root/class/image files")
    members: dict[int, list[str]] = {}
    for key, target in zip(folder.keys, folder.targets, strict=True):
        members.setdefault(target, []).append(key)
    chosen: set[str] = set()
    for target, keys in members.items():
        count = per_class if per_class is not None else round((share or 0) * len(keys))
        if not 1 <= count <= len(keys):
            raise UsageError(
                f"class {folder.classes[target]} has {len(keys)} images, {count} are asked for: "
                "give a smaller --per-class or another --share"
            )
        chosen.update(sorted(keys, key=lambda key: _rank(seed, key))[:count])
    return [key for key in folder.keys if key in chosen]


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()


def write(folder: ImageFolder, keys: list[str], out: Path, copy: bool) -> str:
    """Make the folder; hex SHA-256 of its list.

    Raises:
        UsageError: `out` is there already and not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: give another --out")
    for key in keys:
        place = out / key
        place.parent.mkdir(parents=True, exist_ok=True)
        source = folder.root.absolute() / key
        if copy:
            place.write_bytes(source.read_bytes())
        else:
            os.symlink(source, place)  # noqa: PTH211 - as many as a million
    text = "".join(f"{key}\n" for key in keys).encode("utf-8", "surrogateescape")
    (out / "subset.txt").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--per-class", type=click.IntRange(1), help="Images of each class.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), help="Share of each class.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--copy", is_flag=True, help="Copy files in place of linking them.")
def main(
    data: str, per_class: int | None, share: float | None, seed: int, out: Path, copy: bool
) -> None:
    """Make a subset of an image folder and say what it is."""
    if (per_class is None) == (share is None):
        raise click.UsageError("give one of --per-class and --share")
    try:
        folder = scan_folder(data)
        keys = choose(folder, per_class, share, seed)
        digest = write(folder, keys, out, copy)
    except UsageError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(keys)} of {len(folder)} images in {out}; subset.txt has SHA-256 {digest}")


if __name__ == "__main__":
    main()
