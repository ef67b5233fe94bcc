"""Bytes a crop by part, and divergence from the dense output, of the label codecs on real images.

    python benchmarks/codec.py --data PHOTOS --teacher tv:mobilenet_v2 --weights FILE

Runs the teacher over `--views` views of `--images` images once (`--outputs FILE` keeps what it
says, C float32 a crop, and takes it from there the next time), then encodes it with every codec and
writes the arrays as a store would: sizes are those of whole files, shard indices and per-image
lists included. Divergences are KL(dense || decoded) over all crops. Boxes and flips have a table of
their own, beside what others would take: four float32 and a flip (FKD's records), as they are and
packed, four uint16 packed, and log2 of how many views of its size an image has.
(docs/codec.md has the tables of one run.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numcodecs.zstd import Zstd

from storage.box_codec import BOX_NUMBERS, VIEW_CODECS
from storage.certificate import LabelSample, bytes_by_part, measure_sample
from storage.chunks import encode_block
from storage.codecs import TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec, default_codec
from storage.format import StoreSpec, default_segment_views
from storage.label_arrays import to_arrays
from storage.layout import array_layouts
from storage.lists import mean_tails
from storage.pixels import PixelContract
from storage.teacher_record import TeacherRecord
from storage.view_arrays import to_view_arrays
from storage.views import RandomResizedCrop

IMAGES_AT_ONCE = 10


@dataclasses.dataclass(frozen=True)
class Outputs:
    """log_probs float32 [N, M, C]; box u2 [N, M, 4]; flip u1 [N, M]; size [N, 2]."""

    log_probs: np.ndarray
    box: np.ndarray
    flip: np.ndarray
    size: np.ndarray


def dense_outputs(
    data: Path, spec: str, weights: str | None, arch: str | None, images: int, views: int
) -> Outputs:
    """What the teacher says, evenly spaced images of the folder, float32."""
    import torch

    from labelgen.forward import Forward
    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve
    from storage.allocator import keep_freed_memory
    from storage.images import scan_folder
    from storage.pixels import cut_view, decode_rgb

    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = load_teacher(resolve(spec, weights=weights, arch=arch), device, "fp32")
    forward, folder = Forward(teacher, 1), scan_folder(data)
    rows = np.unique(np.linspace(0, len(folder) - 1, images).astype(int))
    boxes, flips, logs, image_sizes = [], [], [], []
    for number, row in enumerate(rows):
        encoded = folder.path(int(row)).read_bytes()
        image = decode_rgb(encoded)
        drawn = RandomResizedCrop().draw(
            0, hashlib.sha256(encoded).digest(), image.height, image.width, 0, views
        )
        crops = np.stack([
            cut_view(image, box, bool(flip), teacher.spec.input_size, teacher.spec.interpolation)
            for box, flip in zip(drawn.box, drawn.flip, strict=True)
        ])  # fmt: skip
        parts = [forward.log_probs(forward.normalise(crops[i : i + 64])) for i in
                 range(0, views, 64)]  # fmt: skip
        logs.append(torch.cat(parts).cpu().numpy())
        boxes.append(drawn.box)
        flips.append(drawn.flip)
        image_sizes.append((image.height, image.width))
        print(f"\r{number + 1} of {len(rows)} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return Outputs(np.stack(logs), np.stack(boxes), np.stack(flips), np.array(image_sizes))


def store_spec(
    codec: TopKCodec,
    num_images: int,
    num_views: int,
    block_images: int,
    view_codec: str = BOX_NUMBERS,
) -> StoreSpec:
    """A store of this shape, of a teacher without particulars."""
    record = TeacherRecord(
        name="t", spec="t", library="", version="", arch="", digest="", licence="", input_size=224,
        mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", num_classes=codec.num_classes,
        classes=None, class_order_hash=None, precision="fp32", batch_size=64, codec=codec,
    )  # fmt: skip
    return StoreSpec(
        num_images=num_images, num_views=num_views, block_images=block_images, plane_views=4,
        segment_views=default_segment_views(num_views, 4), sampler=RandomResizedCrop(),
        pixel=PixelContract(), seed=0, dataset={}, teachers={"t": record}, view_codec=view_codec,
    )  # fmt: skip


def encode(codec: TopKCodec, outputs: Outputs) -> tuple[TopKLabels, np.ndarray]:
    """Labels [N, M, ...] and tail mass [N, C]."""
    labels, mass = [], []
    for views in outputs.log_probs:
        one = codec.encode(views)
        rest = np.exp(views.astype(np.float64))
        np.put_along_axis(rest, one.index.astype(np.intp), 0, axis=-1)
        labels.append(one)
        mass.append(rest.sum(axis=0))
    stacked = [np.stack([getattr(one, part) for one in labels]) for part in
               ("index", "code", "tail")]  # fmt: skip
    return TopKLabels(*stacked), np.stack(mass).astype(np.float32)


def sizes(
    codec: TopKCodec, labels: TopKLabels, mass: np.ndarray, outputs: Outputs, block_images: int
) -> dict[str, float]:
    """Bytes a crop by part, as files of a store."""
    num_images, num_views = labels.tail.shape
    spec = store_spec(codec, num_images, num_views, block_images)
    found: dict[str, int] = {}
    for block in range(spec.num_blocks):
        rows = spec.block_rows(block)
        part = slice(rows.start, rows.stop)
        here = TopKLabels(labels.index[part], labels.code[part], labels.tail[part])
        arrays = to_arrays(codec, here, np.ones(len(rows), bool), mass[part])
        arrays = {f"labels/t/{name}": values for name, values in arrays.items()}
        arrays |= view_values(spec, outputs, part)
        found |= file_sizes(spec, rows, arrays)
    return bytes_by_part(found, num_images * num_views)


def view_values(spec: StoreSpec, outputs: Outputs, part: slice) -> dict[str, np.ndarray]:
    """Arrays of boxes and flips of some images."""
    return to_view_arrays(spec, outputs.box[part], outputs.flip[part], outputs.size[part])


def file_sizes(spec: StoreSpec, rows: range, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Bytes of a block's files by path."""
    layouts = array_layouts(spec)
    return {
        name: len(content)
        for path, values in arrays.items()
        for name, content in encode_block(layouts[path], rows, values).items()
    }


def box_sizes(outputs: Outputs, block_images: int) -> dict[str, float]:
    """Bytes a crop of boxes and flips in each way, whole files."""
    num_images, num_views = outputs.flip.shape
    some, found = TopKCodec(num_classes=2, top_k=1), {}
    for view_codec in VIEW_CODECS:
        spec = store_spec(some, num_images, num_views, block_images, view_codec)
        files: dict[str, int] = {}
        for block in range(spec.num_blocks):
            rows = spec.block_rows(block)
            part = slice(rows.start, rows.stop)
            files |= file_sizes(spec, rows, view_values(spec, outputs, part))
        found[view_codec] = sum(files.values())
    shares = outputs.box / np.repeat(outputs.size, 2, axis=0).reshape(-1, 1, 4)[:, :, [0, 2, 1, 3]]
    records = np.concatenate([shares, outputs.flip[..., None]], axis=-1).astype(np.float32)
    plain = np.concatenate([outputs.box, outputs.flip[..., None]], axis=-1).astype(np.uint16)
    found["float32, zstd 9"] = packed_size(records, block_images)
    found["uint16, zstd 9"] = packed_size(plain, block_images)
    crops = {name: size / (num_images * num_views) for name, size in found.items()}
    return crops | {"float32, as they are": 17.0, "log2 of the choices": choices(outputs)}


def packed_size(values: np.ndarray, block_images: int) -> int:
    """Chunks of a block's plane of four views, each by itself, without any index."""
    zstd = Zstd(level=9)
    return sum(
        len(zstd.encode(np.ascontiguousarray(values[row : row + block_images, view : view + 4])))
        for row in range(0, values.shape[0], block_images)
        for view in range(0, values.shape[1], 4)
    )


def choices(outputs: Outputs) -> float:
    """Mean bytes that say which of an image's sizes, places and flips a view is."""
    shorter = outputs.size.min(axis=1).astype(np.int64)
    kinds = (shorter + 1) // 2 * (7 * (shorter + 1) // 12 + 2)
    room = outputs.size[:, None] - outputs.box[..., 2:].astype(np.int64) + 1
    return float((np.log2(kinds)[:, None] + np.log2(2 * room.prod(axis=-1))).mean() / 8)


def divergences(
    codec: TopKCodec, labels: TopKLabels, mass: np.ndarray, log_probs: np.ndarray
) -> dict[str, np.ndarray]:
    """Of every crop, by "<decoding> <temperature>"."""
    found: dict[str, list[float]] = {}
    num_images, num_views = labels.tail.shape
    for first in range(0, num_images, IMAGES_AT_ONCE):
        part = slice(first, min(first + IMAGES_AT_ONCE, num_images))
        here = TopKLabels(labels.index[part], labels.code[part], labels.tail[part])
        n = len(here.tail)
        arrays = to_arrays(codec, here, np.ones(n, bool), mass[part])
        tails = None
        if isinstance(codec, DictionaryCodec) and codec.spread_classes:
            tails = mean_tails(codec, arrays["classes"], arrays["spread"])
        sample = LabelSample(
            np.repeat(np.arange(n), num_views), np.tile(np.arange(num_views), n),
            log_probs[part].reshape(n * num_views, -1),
        )  # fmt: skip
        for name, values in measure_sample(codec, here, tails, sample).items():
            found.setdefault(name, []).extend(values)
    return {name: np.array(values) for name, values in found.items()}


def codecs(num_classes: int, kept: list[int], num_views: int) -> Iterator[tuple[str, TopKCodec]]:
    """Those that are compared."""
    for top_k in kept:
        yield f"top-k {top_k}", TopKCodec(num_classes=num_classes, top_k=top_k)
    for top_k in kept:
        yield f"dictionary {top_k}", default_codec(num_classes, top_k, num_views)


def _row(name: str, values: dict[str, float]) -> str:
    parts = [values.get(part, 0.0) for part in ("ids", "values", "tail")]
    cells = [*parts, sum(parts), values.get("boxes", 0.0)]
    return f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Image folder.")
@click.option("--teacher", default="tv:mobilenet_v2", show_default=True)
@click.option("--weights", help="Weights file of the teacher.")
@click.option("--arch", help="Architecture of a `file:` teacher.")
@click.option("--images", default=100, show_default=True)
@click.option("--views", default=128, show_default=True)
@click.option("--top-k", "kept", default="4,5,6,8,10,20", show_default=True)
@click.option("--blocks", default="8,64,100", show_default=True, help="Images a block.")
@click.option("--outputs", type=click.Path(path_type=Path), help="Keep the dense outputs here.")
@click.option("--json", "as_json", is_flag=True)
def main(
    data: Path | None, teacher: str, weights: str | None, arch: str | None, images: int,
    views: int, kept: str, blocks: str, outputs: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Print bytes a crop and divergences of every codec."""
    if outputs is not None and outputs.exists():
        loaded = np.load(outputs, allow_pickle=False)
        dense = Outputs(*(loaded[field.name] for field in dataclasses.fields(Outputs)))
    else:
        if data is None:
            raise click.UsageError("--data is needed")
        dense = dense_outputs(data, teacher, weights, arch, images, views)
        if outputs is not None:
            np.savez(outputs, **dataclasses.asdict(dense))
    results = []
    chosen, views = [int(k) for k in kept.split(",")], dense.log_probs.shape[1]
    for name, codec in codecs(dense.log_probs.shape[-1], chosen, views):
        labels, mass = encode(codec, dense)
        found = {
            "codec": name,
            "bytes": {
                block: sizes(codec, labels, mass, dense, int(block)) for block in blocks.split(",")
            },
            "kl": {
                key: {"mean": values.mean(), "p99": np.percentile(values, 99), "max": values.max()}
                for key, values in divergences(codec, labels, mass, dense.log_probs).items()
            },
        }
        results.append(found)
        print(name, file=sys.stderr, flush=True)
    boxes = {block: box_sizes(dense, int(block)) for block in blocks.split(",")}
    if as_json:
        print(json.dumps({"labels": results, "boxes": boxes}))
        return
    print("\nboxes and flip, bytes a crop by images a block\n")
    print(f"| kept as | {' | '.join(boxes)} |\n|---|{'---|' * len(boxes)}")
    for name in next(iter(boxes.values())):
        print(f"| {name} | " + " | ".join(f"{found[name]:.2f}" for found in boxes.values()) + " |")
    for block in blocks.split(","):
        print(f"\nbytes a crop, blocks of {block} images, planes of 4 views\n")
        print(
            "| codec | ids | values | tail | labels | boxes and flip |\n|---|---|---|---|---|---|"
        )
        for found in results:
            print(_row(found["codec"], found["bytes"][block]))
    print("\nKL(dense || decoded), mean / p99 / max in nats\n")
    print("| codec | T | exact, even tail | stored, even tail | excess | stored, mean tail |")
    print("|---|---|---|---|---|---|")
    for found in results:
        for temperature in (1, 2, 4):
            cells = []
            for decoding in ("exact", "even", "mean"):
                values = found["kl"].get(f"{decoding} {temperature}")
                cells.append(
                    f"{values['mean']:.4f} / {values['p99']:.3f} / {values['max']:.2f}"
                    if values else "–"
                )  # fmt: skip
            excess = (found["kl"][f"even {temperature}"]["mean"]
                      - found["kl"][f"exact {temperature}"]["mean"])  # fmt: skip
            cells.insert(2, f"{excess:+.5f}")
            print(f"| {found['codec']} | {temperature} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
