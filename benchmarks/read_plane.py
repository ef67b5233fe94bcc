"""Crop-labels/s of reading an epoch's plane, beside FKD's files and a flat memory map.

    python benchmarks/read_plane.py [--images 131072] [--json]

All three give class ids and probabilities of `--top-k` classes, boxes and flips of 4 views of every
image, from labels with the entropy of real ones. FKD-like files are read with `torch.load`, one an
image, as its loader does. Also: opening a sealed store of 10,000 files, the memory a plane takes,
and sealing and checking beside SHA-256's own speed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from storage.block import BlockData
from storage.box_codec import BOX_NUMBERS
from storage.codecs import TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec, default_codec
from storage.format import StoreSpec, TeacherRecord, default_block_images
from storage.images import ImageStatus, class_order_hash
from storage.manifest import read_manifest, seal
from storage.pixels import PixelContract
from storage.store import LabelStore
from storage.threads import decoders, for_each
from storage.verify import verify
from storage.views import RandomResizedCrop

CLASSES, VIEWS, PLANE = 1000, 8, 4
TEACHER = "made-up"
DICTIONARY, PLAIN = "top-k-dictionary", "top-k"


def make_spec(
    images: int, top_k: int, block: int, views: int = VIEWS, kind: str = DICTIONARY
) -> StoreSpec:
    """Settings of a store with one made-up teacher and labels of a kind of codec."""
    codec = TopKCodec(num_classes=CLASSES, top_k=top_k)
    if kind == DICTIONARY:
        codec = default_codec(CLASSES, top_k, views)
    teacher = TeacherRecord(
        name=TEACHER, spec="file:made-up", library="none", version="0", arch="none",
        digest="00" * 32, licence="none", input_size=224, mean=(0.5,) * 3, std=(0.25,) * 3,
        interpolation="bilinear", num_classes=CLASSES, classes=None, class_order_hash=None,
        precision="fp32", batch_size=1, codec=codec,
    )  # fmt: skip
    sampler = RandomResizedCrop()
    return StoreSpec(
        num_images=images, num_views=views, block_images=block, plane_views=min(PLANE, views),
        segment_views=views, view_codec=BOX_NUMBERS, sampler=sampler, pixel=PixelContract(padding=sampler.padding), seed=0,
        dataset={"classes": ("one",), "class_order_hash": class_order_hash(("one",)),
                 "keys_hash": "00" * 32, "num_images": images},
        teachers={TEACHER: teacher}, key_bytes=32,
    )  # fmt: skip


def make_block(spec: StoreSpec, block: int) -> BlockData:
    """Labels from 74 classes an image (as in real ones), code gaps of about two bits."""
    rows, views = spec.block_rows(block), spec.num_views
    codec = spec.teachers[TEACHER].codec
    n, k = len(rows), codec.top_k
    rng = np.random.default_rng([1, block])
    liked = rng.permuted(np.tile(np.arange(CLASSES), (n, 1)), axis=1)[:, :74]
    weight = rng.gumbel(size=(n, views, 74)) - 0.12 * np.arange(74)
    order = np.argsort(-weight, axis=-1)[..., :k]
    index = np.take_along_axis(liked[:, None].repeat(views, 1), order, -1).astype(np.uint16)
    code = np.minimum(rng.geometric(0.4, (n, views, k)).cumsum(-1), 254).astype(np.uint8)
    tail_mass = {}
    if isinstance(codec, DictionaryCodec):
        code -= code[..., :1]  # relative to the first class
        mass = np.zeros((n, CLASSES), np.float32)
        np.put_along_axis(mass, liked, rng.gamma(0.3, size=liked.shape).astype(np.float32), axis=1)
        tail_mass[TEACHER] = mass
    tail = codec.tail_codes(np.clip(rng.normal(0.15, 0.1, (n, views)), 0.001, 0.9))
    corner = rng.integers(0, 150, (n, views, 2))
    side = rng.integers(60, 200, (n, views, 2))
    return BlockData(
        digest=rng.integers(0, 256, (n, 32), dtype=np.uint8),
        key=[f"one/{row:08d}.jpg" for row in rows],
        size=np.full((n, 2), 400, np.uint16),
        target=np.zeros(n, np.int32),
        status=np.full(n, ImageStatus.OK, np.uint8),
        box=np.concatenate([corner, side], -1).astype(np.uint16),
        flip=rng.integers(0, 2, (n, views), dtype=np.uint8),
        labels={TEACHER: TopKLabels(index, code, tail)},
        tail_mass=tail_mass,
    )


def write_store(path: Path, spec: StoreSpec) -> LabelStore:
    """A complete store, not sealed."""
    store = LabelStore.create(path, spec)
    for block in range(store.blocks):
        store.write_block(block, make_block(spec, block), "none")
    return store


def decode(codec: TopKCodec, index: Any, code: Any, tail: Any) -> Any:
    """Probabilities float32 [N, V, k], rows shared out over the cores."""
    probs = np.empty(code.shape, np.float32)
    size = 8192

    def work(first: int) -> None:
        rows = slice(first, first + size)
        probs[rows] = codec.decode(TopKLabels(index[rows], code[rows], tail[rows]))[0]

    for_each(range(0, len(code), size), work, decoders())
    return probs


def best(work: Callable[[], Any], times: int) -> tuple[float, float]:
    """Seconds, by the clock and of processor time, of the quickest of several calls after one that
    doesn't count: other work on the machine can only slow a call."""
    work()
    clock, processor = [], []
    for _ in range(times):
        start, busy = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return min(clock), min(processor)


def read_store(path: Path, times: int) -> tuple[float, float]:
    """Labels/s of reading and decoding planes, by the clock and by one core's processor time."""
    store = LabelStore.open(path)
    codec = store.spec.teachers[TEACHER].codec
    planes = iter([0, PLANE] * times)

    def work() -> None:
        plane = store.read_plane(next(planes), PLANE, TEACHER)
        assert np.isfinite(decode(codec, plane.index, plane.code, plane.tail)[0]).all()

    labels = store.spec.num_images * PLANE
    seconds, cpu = best(work, times)
    return labels / seconds, labels / cpu


def read_memory_map(path: Path, folder: Path, times: int) -> float:
    """Labels/s of the same from flat files that are mapped: no compression, no checks."""
    store = LabelStore.open(path)
    plane = store.read_plane(0, VIEWS, TEACHER)
    names = ("box", "flip", "index", "code", "tail")
    for name in names:
        np.save(
            folder / f"{name}.npy", np.ascontiguousarray(np.swapaxes(getattr(plane, name), 0, 1))
        )
    del plane
    mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    codec = store.spec.teachers[TEACHER].codec

    def work() -> None:
        part = {name: np.array(values[:PLANE]) for name, values in mapped.items()}
        decode(codec, part["index"].swapaxes(0, 1), part["code"].swapaxes(0, 1),
               part["tail"].swapaxes(0, 1))  # fmt: skip

    return store.spec.num_images * PLANE / best(work, times)[0]


def read_fkd(path: Path, folder: Path, files: int) -> float:
    """Labels/s of per-image files in FKD's layout, each with all views; 4 of them are used."""
    import torch

    store = LabelStore.open(path)
    views = store.read_plane(0, VIEWS, TEACHER)
    codec = store.spec.teachers[TEACHER].codec
    rows = min(files, store.spec.num_images)
    probs = codec.decode(TopKLabels(views.index[:rows], views.code[:rows], views.tail[:rows]))[0]
    for row in range(rows):
        values, ids = torch.from_numpy(probs[row]), torch.from_numpy(views.index[row].astype("i8"))
        record = [
            torch.from_numpy(views.box[row].astype(np.float32)),
            torch.from_numpy(views.flip[row] != 0),
            [torch.stack([values.half().float(), ids.float()])],
        ]
        torch.save(record, folder / f"{row}.tar")

    def work() -> None:
        for row in range(rows):
            box, flip, output = torch.load(folder / f"{row}.tar", weights_only=True)
            values, ids = output[0][:, :PLANE]
            assert len(box[:PLANE]) == len(flip[:PLANE]) == len(values) == len(ids.long())

    return rows * PLANE / best(work, 2)[0]


def peak_memory(path: Path) -> dict[str, float]:
    """Bytes that a process needs to read planes one after the other, and what a plane holds."""
    code = (
        "import sys\n"
        "from storage.store import LabelStore\n"
        "store = LabelStore.open(sys.argv[1])\n"
        "store.read_status()\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line[:6] == 'VmHWM:') * 1024\n"
        "before = peak()\n"
        f"for first in (0, {PLANE}) * 3:\n"
        "    plane = None\n"
        f"    plane = store.read_plane(first, {PLANE}, '{TEACHER}')\n"
        "size = sum(getattr(plane, n).nbytes for n in ('box', 'flip', 'index', 'code', 'tail'))\n"
        "print(peak() - before, size)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    ).stdout.split()
    return {"grown_bytes": int(out[0]), "plane_bytes": int(out[1]),
            "planes": round(int(out[0]) / int(out[1]), 2)}  # fmt: skip


def hash_speeds(folder: Path, top_k: int) -> dict[str, float]:
    """Bytes/s of SHA-256 alone (one thread), of sealing, of sealing again (which compares every
    file with the manifest) and of a full check (which also decodes all), on a warm store."""
    store = write_store(folder, make_spec(4096, top_k, 256, views=256))
    size = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    block = os.urandom(1 << 20)

    def alone() -> None:
        digest = hashlib.sha256()
        for _ in range(max(1, size >> 20)):
            digest.update(block)

    def timed(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return size / (time.perf_counter() - start)

    speeds = {"store": float(size), "sha256": timed(alone), "seal": timed(lambda: seal(store))}
    speeds["seal_again"] = timed(lambda: seal(store))
    speeds["verify_full"] = timed(lambda: verify(store.path, full=True))
    return speeds


def open_many(folder: Path) -> dict[str, float]:
    """Seconds to open a sealed store of about 10,000 files, without and with a look at each."""
    spec = make_spec(8000, 3, 8, views=2)
    seal(write_store(folder, spec))
    code = (
        "import sys, time\n"
        "import numpy\n"
        "from storage.store import LabelStore\n"
        "start = time.perf_counter()\n"
        "store = LabelStore.open(sys.argv[1])\n"
        "from storage.manifest import read_manifest\n"
        "read_manifest(store.path)\n"
        "opened = time.perf_counter() - start\n"
        "from storage.verify import verify\n"
        "assert not verify(store.path).problems\n"
        "print(opened, time.perf_counter() - start)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True
    ).stdout.split()
    return {"files": len(read_manifest(folder).objects), "open_s": round(float(out[0]), 3),
            "open_and_fast_verify_s": round(float(out[1]), 3)}  # fmt: skip


@click.command()
@click.option("--images", default=131072, show_default=True)
@click.option("--top-k", default=10, show_default=True)
@click.option("--fkd-files", default=1000, show_default=True)
@click.option("--times", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(images: int, top_k: int, fkd_files: int, times: int, as_json: bool) -> None:
    """Measure reading planes of label stores."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        spec = make_spec(images, top_k, default_block_images(images, VIEWS))
        store = write_store(root / "store.zarr", spec)
        seal(store)
        size = sum(read_manifest(store.path).sizes().values())
        for name in ("map", "fkd"):
            (root / name).mkdir()
        by_clock, by_processor = read_store(store.path, times)
        result: dict[str, Any] = {
            "cores": decoders(),
            "images": images,
            "labels_a_plane": images * PLANE,
            "bytes_a_label_on_disk": round(size / (images * VIEWS), 2),
            "store_labels_per_s": round(by_clock),
            "store_labels_per_core_s": round(by_processor),
            "memory_map_labels_per_s": round(read_memory_map(store.path, root / "map", times)),
            "fkd_labels_per_s": round(read_fkd(store.path, root / "fkd", fkd_files)),
            "memory": peak_memory(store.path),
            "mb_per_s": {
                name: round(speed / 1e6)
                for name, speed in hash_speeds(root / "views.zarr", top_k).items()
            },
            "opening": open_many(root / "many.zarr"),
        }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:26} {value}")


if __name__ == "__main__":
    main()
