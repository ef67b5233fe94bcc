"""Bytes a view of each way to keep a teacher's tokens.

    python benchmarks/token_bytes.py --teacher vit/student.safetensors --data PHOTOS --views 4

A store of the photos is made with each rank and encoding, in a temporary place. Bytes are those of
mean and remainder, before compression and as they lie on disk; what a store has once (the teacher's
last stage, a basis) is apart.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from labelgen import generate, load_teacher, resolve
from labelgen.target_options import TOKEN_ENCODINGS, TargetOptions
from storage import LabelStore
from storage.info import store_info

TARGET = "tokens/all"


@click.command()
@click.option("--teacher", required=True, type=click.Path(exists=True))
@click.option("--arch", help="Of weights that don't say it.")
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--views", default=4, show_default=True)
@click.option("--ranks", default="", help="Beside full rank, such as 64,128.")
@click.option("--tail/--no-tail", default=True)
def main(
    teacher: str, arch: str | None, data: str, views: int, ranks: str, tail: bool
) -> None:  # fmt: skip
    """Print a line of JSON for each rank and encoding."""
    network = load_teacher(resolve(f"file:{teacher}", arch=arch), "cpu")
    wanted = [int(rank) for rank in ranks.split(",") if rank] + [0]
    with tempfile.TemporaryDirectory() as folder:
        for rank, encoding in ((r, e) for r in wanted for e in TOKEN_ENCODINGS):
            options = TargetOptions(tokens="all", token_views=views, token_rank=rank,
                                    token_encoding=encoding, tail=tail)  # fmt: skip
            out = Path(folder) / f"{rank}-{encoding}.zarr"
            generate(network, data, out, crops=views, targets=options, workers=1,
                     teacher_check=False)  # fmt: skip
            info = store_info(LabelStore.open(out))["targets"][TARGET]
            click.echo(json.dumps({
                "rank": rank or "full", "encoding": encoding, "bytes": info["view_bytes"],
                "on_disk": info["bytes_per_view"], "once": info["shared_bytes"],
            }))  # fmt: skip


if __name__ == "__main__":
    main()
