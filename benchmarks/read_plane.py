"""Crop-labels/s of reading an epoch's plane, beside FKD's files and a flat memory map.

    python benchmarks/read_plane.py [--images 131072] [--json]

All three give class ids and probabilities of `--top-k` classes, boxes and flips of 4 views of every
image, from labels with the entropy of real ones; stores are read in both codecs. FKD-like files are
read with `torch.load`, one an image, as its loader does. Labels/s are by the clock and by processor
time, which other work on the machine disturbs less. Also: opening a sealed store of 10,000 files,
and the memory a plane takes.
"""

from __future__ import annotations

import json
import shutil
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
from storage.format import StoreSpec
from storage.images import ImageStatus, class_order_hash
from storage.manifest import read_manifest
from storage.pixels import PixelContract
from storage.sealing import seal
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord
from storage.threads import decoders, for_each
from storage.views import RandomResizedCrop

CLASSES, VIEWS, PLANE = 1000, 8, 4
BLOCK = 4096  # images, as a labelling run of ImageNet's size chooses
TEACHER = "made-up"
DICTIONARY, PLAIN = "top-k-dictionary", "top-k"


def make_spec(
    images: int, top_k: int, block: int, views: int = VIEWS, kind: str = PLAIN
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
        segment_views=views, view_codec=BOX_NUMBERS, sampler=sampler,
        pixel=PixelContract(padding=sampler.padding), seed=0,
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
    height = rng.integers(60, 180, (n, views))
    width = (height * np.exp(rng.uniform(-1, 1, (n, views)) * np.log(4 / 3))).astype(np.int64)
    return BlockData(
        digest=rng.integers(0, 256, (n, 32), dtype=np.uint8),
        key=[f"one/{row:08d}.jpg" for row in rows],
        size=np.full((n, 2), 400, np.uint16),
        target=np.zeros(n, np.int32),
        status=np.full(n, ImageStatus.OK, np.uint8),
        box=np.stack([*np.moveaxis(corner, -1, 0), height, width], -1).astype(np.uint16),
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


def write_repeated(path: Path, spec: StoreSpec) -> LabelStore:
    """A complete store, not sealed, whose blocks all hold the same: packing takes longer than all
    that is measured."""
    store = LabelStore.create(path, spec)
    store.write_block(0, make_block(spec, 0), "none")
    for layout in store.layouts.values():
        for name in layout.block_objects(0):
            head, _, tail = name.partition("/c/0")
            for block in range(1, store.blocks):
                copy = path / f"{head}/c/{block}{tail}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, copy)
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


def speeds(labels: int, work: Callable[[], Any], times: int) -> dict[str, int]:
    """Labels/s of work on so many, by the clock and by one core's processor time."""
    seconds, cpu = best(work, times)
    return {"labels_per_s": round(labels / seconds), "labels_per_core_s": round(labels / cpu)}


def read_store(path: Path, times: int) -> dict[str, int]:
    """Reading and decoding planes."""
    store = LabelStore.open(path)
    codec = store.spec.teachers[TEACHER].codec
    planes = iter([0, PLANE] * times)

    def work() -> None:
        plane = store.read_plane(next(planes), PLANE, TEACHER)
        assert np.isfinite(decode(codec, plane.index, plane.code, plane.tail)[0]).all()

    return speeds(store.spec.num_images * PLANE, work, times)


def read_memory_map(path: Path, folder: Path, times: int) -> dict[str, int]:
    """The same from flat files that are mapped: no compression, no checks."""
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

    return speeds(store.spec.num_images * PLANE, work, times)


def read_fkd(path: Path, folder: Path, files: int) -> dict[str, int]:
    """Per-image files in FKD's layout, each with all views; 4 of them are used."""
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

    return speeds(rows * PLANE, work, 2)


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


def open_many(folder: Path) -> dict[str, float]:
    """Seconds to open a sealed store of about 10,000 files, without and with a look at each."""
    spec = make_spec(8000, 3, 8, views=2, kind=PLAIN)
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
@click.option("--times", default=9, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(images: int, top_k: int, fkd_files: int, times: int, as_json: bool) -> None:
    """Measure reading planes of label stores."""
    result: dict[str, Any] = {
        "cores": decoders(), "labels_a_plane": -(-images // BLOCK) * BLOCK * PLANE
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for kind in (DICTIONARY, PLAIN):
            path = root / f"{kind}.zarr"
            blocks = -(-images // BLOCK)
            write_repeated(path, make_spec(blocks * BLOCK, top_k, BLOCK, kind=kind))
            result[kind] = {
                **read_store(path, times),
                "memory": peak_memory(path),
            }
        for name in ("map", "fkd"):
            (root / name).mkdir()
        result["memory map"] = read_memory_map(path, root / "map", times)
        result["torch.load of FKD files"] = read_fkd(path, root / "fkd", fkd_files)
        result["opening"] = open_many(root / "many.zarr")
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:26} {value}")


if __name__ == "__main__":
    main()
