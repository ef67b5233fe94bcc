"""What a lower precision of the teacher's forward pass saves, and what it moves.

    python benchmarks/precision.py --teacher tv:mobilenet_v2 --weights FILE --data PHOTOS

The same crops are labelled in float32 and in each other precision, one after another. Labels are
compared as they are decoded: KL(float32 || other) in nats over the classes that the float32 label
keeps and its tail, and the share of crops whose first class differs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
from last_bits import sample_folder

from labelgen import generate, load_teacher, resolve
from storage.codecs import TopKLabels
from storage.store import LabelStore


@click.command()
@click.option("--teacher", "name", required=True)
@click.option("--weights", type=click.Path(exists=True), default=None)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--device", default="auto")
@click.option("--images", default=40)
@click.option("--crops", default=16)
@click.option("--precisions", default="bf16", help="Beside fp32, by commas.")
def main(
    name: str, weights: str | None, data: Path, device: str, images: int, crops: int,
    precisions: str,
) -> None:  # fmt: skip
    """Print rates and divergences."""
    stores, rates = {}, {}
    with tempfile.TemporaryDirectory() as place:
        photos = sample_folder(data, images, Path(place) / "images")
        for precision in ("fp32", *precisions.split(",")):
            teacher = load_teacher(resolve(name, weights=weights), device, precision)
            out = Path(place) / f"{precision}.zarr"
            result = generate(teacher, photos, out, crops=crops, batch_size=64,
                              teacher_check=False)  # fmt: skip
            stores[precision] = dense(LabelStore.open(out), teacher.spec.name)
            rates[precision] = result.crops_per_second
    exact = stores.pop("fp32")
    for precision, found in stores.items():
        logs = np.log(np.maximum(exact, 1e-30)) - np.log(np.maximum(found, 1e-30))
        divergence = (exact * logs).sum(axis=-1)
        moved = np.mean(exact.argmax(axis=-1) != found.argmax(axis=-1))
        click.echo(
            f"{precision}: {rates[precision] / rates['fp32']:.2f} times the crops/s of fp32, "
            f"KL mean {divergence.mean():.5f}, p99 {np.percentile(divergence, 99):.5f}, "
            f"first class differs in {100 * moved:.2f} % of {divergence.size} crops"
        )


def dense(store: LabelStore, teacher: str) -> np.ndarray:
    """Decoded labels with an even tail, float64 [N, M, C]."""
    plane = store.read_plane(0, store.spec.num_views, teacher)
    codec = store.spec.teachers[teacher].codec
    probs, tail = codec.decode(TopKLabels(plane.index, plane.code, plane.tail))
    rest = np.asarray(tail, np.float64) / (codec.num_classes - codec.top_k)
    found = np.repeat(rest[..., None], codec.num_classes, axis=-1)
    np.put_along_axis(found, plane.index.astype(np.intp), np.asarray(probs, np.float64), axis=-1)
    return found


if __name__ == "__main__":
    main()
