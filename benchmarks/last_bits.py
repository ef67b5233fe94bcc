"""How many stored numbers another batch size, or another number of threads, moves.

The same crops are labelled several times on one device; each store's classes, value codes and tail
codes are compared with those of the first. Example:

    python benchmarks/last_bits.py --teacher r50 --data images --images 100 --crops 8
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from labelgen import generate, load_teacher, resolve
from labelgen.teacher import Teacher
from storage.images import scan_folder
from storage.store import LabelStore
from storage.tables import Plane


def sample_folder(data: Path, images: int, out: Path) -> Path:
    """Links to some images of each class, in turns."""
    folder = scan_folder(data)
    by_class: dict[int, list[str]] = {}
    for key, target in zip(folder.keys, folder.targets, strict=True):
        by_class.setdefault(int(target), []).append(key)
    turns = itertools.zip_longest(*by_class.values())
    keys = [key for turn in turns for key in turn if key is not None][:images]
    for key in keys:
        (out / key).parent.mkdir(parents=True, exist_ok=True)
        (out / key).symlink_to((folder.root / key).absolute())
    return out


def labels(teacher: Teacher, data: Path, out: Path, crops: int, batch: int) -> Plane:
    """All labels of a fresh store."""
    generate(teacher, data, out, crops=crops, batch_size=batch, teacher_check=False)
    return LabelStore.open(out).read_plane(0, crops, teacher.spec.name)


@click.command()
@click.option("--teacher", "name", required=True)
@click.option("--weights", type=click.Path(exists=True), default=None)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--device", default="auto")
@click.option("--precision", default="fp32")
@click.option("--images", default=40)
@click.option("--crops", default=4)
@click.option("--batches", default="64,16,128")
@click.option("--threads", default="1,2", help="On a CPU; the first batch size with each of them.")
def main(
    name: str, weights: str | None, data: Path, device: str, precision: str, images: int,
    crops: int, batches: str, threads: str,
) -> None:  # fmt: skip
    """Print the share of numbers that differ from the first batch size's."""
    teacher = load_teacher(resolve(name, weights=weights), device=device, precision=precision)
    sizes, counts = ([int(each) for each in text.split(",")] for text in (batches, threads))
    if teacher.device.type != "cpu":
        counts = counts[:1]
    with tempfile.TemporaryDirectory() as place:
        photos = sample_folder(data, images, Path(place) / "images")
        known: Plane | None = None
        for number, (size, count) in enumerate(
            [(size, counts[0]) for size in sizes] + [(sizes[0], count) for count in counts[1:]]
        ):
            torch.set_num_threads(count)
            plane = labels(teacher, photos, Path(place) / str(number), crops, size)
            known = known or plane
            moved = {
                "classes": np.mean(plane.index != known.index),
                "codes": np.mean(plane.code != known.code),
                "tails": np.mean(plane.tail != known.tail),
            }
            shares = "  ".join(f"{what} {100 * share:.4f} %" for what, share in moved.items())
            click.echo(f"batch {size:4}  threads {count}  {plane.code.size} codes: {shares}")


if __name__ == "__main__":
    main()
