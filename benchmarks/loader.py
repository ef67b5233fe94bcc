"""Crops a second of the replay loader beside its rivals, in one run, rounds interleaved.

    python benchmarks/loader.py --data FOLDER [--images 200] [--rounds 5] [--workers 2]

    (a)  FFCVReplayLoader to what a training step takes: normalised float images, decoded labels
    (a8) FFCVReplayLoader, uint8 images only
    (b)  a loader built like FKD's: per image torch.load of a 500-crop label file, Pillow
         decode, crop, bilinear resize, flip, ToTensor, Normalize in a DataLoader
    (c)  FFCV's own imdecode (fast DCT) and resize_crop (INTER_AREA) of the same boxes
    (d)  the exact decode alone

(a), (a8), (c) and (d) run in the same loader, settings and threads, once on the source bytes and
once on a beton packed with --max-side 500 --quality 90, with boxes drawn for it; (b) always reads
the source files. Ratios are medians over the rounds of ratios within a round.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision.transforms.functional as F
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.compiler import Compiler
from numba import cfunc
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from storage.allocator import keep_freed_memory
from storage.codecs import TopKCodec, TopKLabels
from storage.images import ImageStatus, scan_folder
from storage.views import RandomResizedCrop
from trainer.replay import ffcv_loader
from trainer.replay.beton import Beton, pack
from trainer.replay.decoder import ReplayDecoder
from trainer.replay.loader import FFCVReplayLoader
from trainer.replay.normalize import Normalizer
from trainer.replay.reencode import Reencoding
from trainer.replay.resample import canvas_bytes
from trainer.replay.row import DECODED, RETURNED, ROW_FUNCTION, TABLES, array_at, decode_jpeg

SIZE, VIEWS, BATCH, CLASSES, TOP_K, LABEL_CROPS = 224, 4, 16, 1000, 10, 500
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache  # FFCV asks in every epoch
def ffcv_row() -> Any:
    """FFCV's C functions on a row's bytes and boxes; no flip."""
    decode_c, resize_c = Compiler.compile(imdecode), Compiler.compile(resize_crop)

    @cfunc(ROW_FUNCTION)
    def work(row, status, mode, warns, height, width, data, length, out, views, side, tables):
        tall, wide = np.uint32(height), np.uint32(width)
        pixels = np.empty((height, width, 3), np.uint8)
        source = array_at(data, (length,), np.uint8)
        cuts = array_at(out, (views, side, side, 3), np.uint8)
        box_address = array_at(tables, (TABLES,), np.int64)[0]
        boxes = array_at(box_address + row * views * 8, (views, 4), np.uint16)
        decode_c(source, pixels, tall, wide, tall, wide, 0, 0, 1, 1, False, False)
        for view in range(views):
            top, left = np.int64(boxes[view, 0]), np.int64(boxes[view, 1])
            resize_c(pixels, top, top + np.int64(boxes[view, 2]), left,
                     left + np.int64(boxes[view, 3]), cuts[view])  # fmt: skip
        return RETURNED + DECODED

    return work.ctypes


@functools.cache
def decoded_row() -> Any:
    """Our decode, no cut."""

    @cfunc(ROW_FUNCTION)
    def work(row, status, mode, warns, height, width, data, length, out, views, side, tables):
        canvas = np.empty(canvas_bytes(height, width), np.uint8)
        source = array_at(data, (length,), np.uint8)
        return RETURNED + decode_jpeg(source, height, width, canvas, 0, 4 * width, 0)

    return work.ctypes


class FfcvCutDecoder(ReplayDecoder):
    """(c)"""

    def row_code(self) -> Any:
        return ffcv_row()


class DecodeOnly(ReplayDecoder):
    """(d)"""

    def row_code(self) -> Any:
        return decoded_row()


class FkdDataset(Dataset):
    """(b): as FKD's `ImageFolder_FKD_MIX.__getitem__`, label files as its generator lays out."""

    def __init__(self, files: list[Path], labels: list[Path]) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        # FKD passes no flag; these files hold tensors only, so the safe default reads them
        coords, flips, soft = torch.load(self.labels[index], weights_only=True)
        with self.files[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        width, height = image.size
        chosen = np.random.default_rng(index).choice(LABEL_CROPS, VIEWS, replace=False)
        crops = []
        for crop in chosen:
            top, left, tall, wide = (coords[crop] * torch.tensor([height, width] * 2)).tolist()
            view = image.crop((left, top, left + wide, top + tall))
            view = view.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if flips[crop]:
                view = F.hflip(view)
            crops.append(F.normalize(F.to_tensor(view), MEAN, STD))
        return torch.stack(crops), soft[torch.from_numpy(chosen)]


@dataclass(frozen=True)
class Plan:
    """Boxes, flips and labels of VIEWS views, by beton row."""

    box: np.ndarray
    flip: np.ndarray
    labels: TopKLabels


def make_plan(beton: Beton, fkd_files: Path | None = None) -> Plan:
    """Views drawn as `labelgen` draws them; FKD's files of LABEL_CROPS where a folder is given."""
    rng = np.random.default_rng(0)
    box = np.zeros((beton.num_rows, VIEWS, 4), np.uint16)
    flip = np.zeros((beton.num_rows, VIEWS), np.uint8)
    for row in np.flatnonzero(beton.status == ImageStatus.OK):
        height, width = map(int, beton.sizes[row])
        digest = beton.digests[row].tobytes()
        views = RandomResizedCrop().draw(0, digest, height, width, 0, LABEL_CROPS)
        box[row], flip[row] = views.box[:VIEWS], views.flip[:VIEWS]
        if fkd_files is None:
            continue
        coords = torch.from_numpy(views.box / np.array([height, width] * 2)).float()
        soft = torch.from_numpy(rng.random((LABEL_CROPS, 2, TOP_K), np.float32))
        torch.save([coords, torch.from_numpy(views.flip).bool(), soft], fkd_files / f"{row}.tar")
    shape = (beton.num_rows, VIEWS, TOP_K)
    labels = TopKLabels(
        index=np.argsort(rng.random((*shape[:2], CLASSES)), axis=-1)[..., :TOP_K].astype(np.uint16),
        code=np.sort(rng.integers(0, 60, shape), axis=-1).astype(np.uint8),
        tail=rng.integers(0, 100, shape[:2]).astype(np.uint8),
    )
    return Plan(box, flip, labels)


def replays(beton: Beton, plan: Plan, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """(a), (a8), (c) and (d) on one beton."""
    rows = np.resize(np.flatnonzero(beton.status == ImageStatus.OK), options.images)
    settings = {"size": SIZE, "views": VIEWS, "batch_images": BATCH, "workers": options.workers}
    codec, normalize = TopKCodec(num_classes=CLASSES, top_k=TOP_K), Normalizer(MEAN, STD, SIZE)
    exact = FFCVReplayLoader(beton, **settings)
    with mock.patch.object(ffcv_loader, "ReplayDecoder", FfcvCutDecoder):
        rival = FFCVReplayLoader(beton, **settings)
    with mock.patch.object(ffcv_loader, "ReplayDecoder", DecodeOnly):
        decode_only = FFCVReplayLoader(beton, **settings)

    def step_input() -> None:
        for batch in exact.epoch(rows, plan.box, plan.flip):
            normalize(batch.images)
            taken, labels = batch.rows, plan.labels
            codec.decode(
                TopKLabels(
                    index=labels.index[taken], code=labels.code[taken], tail=labels.tail[taken]
                )
            )

    def drain(loader: FFCVReplayLoader) -> None:
        for _ in loader.epoch(rows, plan.box, plan.flip):
            pass

    return {
        "a": step_input,
        "a8": lambda: drain(exact),
        "c": lambda: drain(rival),
        "d": lambda: drain(decode_only),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of full-size photos")
    parser.add_argument("--images", type=int, default=200, help="images in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary))


def run(options: argparse.Namespace, temporary: Path) -> None:
    keep_freed_memory()  # as `trainer fit` does
    folder = scan_folder(options.data)
    source = Beton.open(pack(folder, temporary / "photos.beton").path)
    small = Beton.open(
        pack(folder, temporary / "small.beton", reencoding=Reencoding(max_side=500)).path
    )
    rows = np.resize(np.flatnonzero(source.status == ImageStatus.OK), options.images)
    plan = make_plan(source, temporary)
    fkd = DataLoader(
        FkdDataset([folder.path(row) for row in rows], [temporary / f"{r}.tar" for r in rows]),
        batch_size=BATCH, num_workers=options.workers, persistent_workers=options.workers > 0,
    )  # fmt: skip

    def drain_fkd() -> None:
        for images, soft in fkd:
            images.flatten(0, 1), soft.flatten(0, 1)

    cases = {"b": drain_fkd}
    for kind, beton, own in (("source", source, plan), ("small", small, make_plan(small))):
        found = replays(beton, own, options)
        cases |= {f"{kind} {name}": case for name, case in found.items()}
    for case in cases.values():
        case()  # compile, start workers, warm the page cache
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    crops = options.images * VIEWS
    print("crops/s  " + ", ".join(
        f"{name} {crops / statistics.median(times):.0f}" for name, times in seconds.items()
    ))  # fmt: skip
    for kind, goals in (("source", (3.5, 1.0, 0.6)), ("small", (5.0, 1.0, 0.6))):
        for text, ours, theirs, goal in (
            ("a / b   (floats and labels, beside FKD's)", f"{kind} a", "b", goals[0]),
            ("a8 / c  (uint8, beside FFCV's)", f"{kind} a8", f"{kind} c", goals[1]),
            ("a8 / d  (uint8, beside decode only)", f"{kind} a8", f"{kind} d", goals[2]),
            ("d / b   (decode only, beside FKD's)", f"{kind} d", "b", None),
        ):
            pairs = zip(seconds[ours], seconds[theirs], strict=True)
            ratio = statistics.median(other / own for own, other in pairs)
            target = "" if goal is None else f"  target >= {goal}"
            print(f"{kind:7s} {text:44s} {ratio:5.2f} times{target}")


if __name__ == "__main__":
    main()
