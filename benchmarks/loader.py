"""Crops a second of the replay loader beside its rivals, in one run, rounds interleaved.

    python benchmarks/loader.py --data FOLDER [--images 200] [--rounds 5] [--workers 2]

    (a)  FFCVReplayLoader to what a training step takes: normalised float images, decoded labels
    (a8) FFCVReplayLoader, uint8 images only
    (b)  a loader built like FKD's: per image torch.load of a 500-crop label file, Pillow
         decode, crop, bilinear resize, flip, ToTensor, Normalize in a DataLoader
    (c)  FFCV's own imdecode (fast DCT) and resize_crop (INTER_AREA) of the same boxes
    (d)  the exact decode alone, in the same FFCV machinery

Ratios are medians over the rounds of ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchvision.transforms.functional as F
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.compiler import Compiler
from numba import carray, njit
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from storage.codecs import TopKCodec, TopKLabels
from storage.images import ImageStatus, scan_folder
from storage.views import RandomResizedCrop
from trainer.replay import ffcv_loader
from trainer.replay.beton import Beton, pack
from trainer.replay.decoder import ReplayDecoder, _as_pointer, decode_jpeg
from trainer.replay.loader import FFCVReplayLoader
from trainer.replay.normalize import Normalizer
from trainer.replay.resample import canvas_bytes

SIZE, VIEWS, BATCH, CLASSES, TOP_K, LABEL_CROPS = 224, 4, 16, 1000, 10, 500
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FfcvCutDecoder(ReplayDecoder):
    """(c): FFCV's C functions on the same bytes and boxes; no flip."""

    def generate_code(self) -> Callable:
        each, size = Compiler.get_iterator(), self.size
        decode_c, resize_c = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        box_address = np.int64(self.box.ctypes.data)
        views = self.box.shape[1]

        @njit(nogil=True)
        def row_boxes(row):
            return carray(_as_pointer(box_address + row * views * 8, np.uint16), (views, 4))

        def decode(batch_indices, memory, metadata, storage_state):
            images, digests, statuses = memory
            file = storage_state[0]
            for slot in each(len(batch_indices)):
                row = np.int64(batch_indices[slot])
                record = metadata[row]
                start, count = np.int64(record["ptr"]), np.int64(record["size"])
                height, width = np.uint32(record["height"]), np.uint32(record["width"])
                pixels = np.empty((np.int64(height), np.int64(width), 3), np.uint8)
                decode_c(file[start : start + count], pixels, height, width, height, width,
                         0, 0, 1, 1, False, False)  # fmt: skip
                boxes = row_boxes(row)
                for view in range(views):
                    top, left = np.int64(boxes[view, 0]), np.int64(boxes[view, 1])
                    resize_c(pixels, top, top + np.int64(boxes[view, 2]), left,
                             left + np.int64(boxes[view, 3]), images[slot, view])  # fmt: skip
                statuses[slot] = 0
            return images, digests, statuses

        assert size == SIZE
        decode.is_parallel = True
        return decode


class DecodeOnly(ReplayDecoder):
    """(d): our decode, no cut."""

    def generate_code(self) -> Callable:
        each = Compiler.get_iterator()

        def decode(batch_indices, memory, metadata, storage_state):
            images, digests, statuses = memory
            file = storage_state[0]
            for slot in each(len(batch_indices)):
                record = metadata[batch_indices[slot]]
                start, count = np.int64(record["ptr"]), np.int64(record["size"])
                height, width = np.int64(record["height"]), np.int64(record["width"])
                canvas = np.empty(canvas_bytes(height, width), np.uint8)
                statuses[slot] = decode_jpeg(
                    file[start : start + count], height, width, canvas, 0, 4 * width, 0
                )
            return images, digests, statuses

        decode.is_parallel = True
        return decode


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


def make_labels(beton: Beton, folder: Path) -> tuple[np.ndarray, np.ndarray, TopKLabels]:
    """Boxes, flips and labels of VIEWS views in memory, and FKD's files of LABEL_CROPS."""
    rng = np.random.default_rng(0)
    box = np.zeros((beton.num_rows, VIEWS, 4), np.uint16)
    flip = np.zeros((beton.num_rows, VIEWS), np.uint8)
    for row in np.flatnonzero(beton.status == ImageStatus.OK):
        height, width = map(int, beton.sizes[row])
        digest = beton.digests[row].tobytes()
        views = RandomResizedCrop().draw(0, digest, height, width, 0, LABEL_CROPS)
        box[row], flip[row] = views.box[:VIEWS], views.flip[:VIEWS]
        coords = torch.from_numpy(views.box / np.array([height, width] * 2)).float()
        soft = torch.from_numpy(rng.random((LABEL_CROPS, 2, TOP_K), np.float32))
        torch.save([coords, torch.from_numpy(views.flip).bool(), soft], folder / f"{row}.tar")
    shape = (beton.num_rows, VIEWS, TOP_K)
    labels = TopKLabels(
        index=np.argsort(rng.random((*shape[:2], CLASSES)), axis=-1)[..., :TOP_K].astype(np.uint16),
        code=np.sort(rng.integers(0, 60, shape), axis=-1).astype(np.uint8),
        tail=rng.integers(0, 100, shape[:2]).astype(np.uint8),
    )
    return box, flip, labels


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
    folder = scan_folder(options.data)
    beton = Beton.open(pack(folder, temporary / "photos.beton", workers=options.workers).path)
    box, flip, labels = make_labels(beton, temporary)
    codec = TopKCodec(num_classes=CLASSES, top_k=TOP_K)
    rows = np.resize(np.flatnonzero(beton.status == ImageStatus.OK), options.images)
    settings = {"size": SIZE, "views": VIEWS, "batch_images": BATCH, "workers": options.workers}
    exact = FFCVReplayLoader(beton, **settings)
    with mock.patch.object(ffcv_loader, "ReplayDecoder", FfcvCutDecoder):
        rival = FFCVReplayLoader(beton, **settings)
    with mock.patch.object(ffcv_loader, "ReplayDecoder", DecodeOnly):
        decode_only = FFCVReplayLoader(beton, **settings)
    fkd = DataLoader(
        FkdDataset([folder.path(row) for row in rows], [temporary / f"{r}.tar" for r in rows]),
        batch_size=BATCH, num_workers=options.workers, persistent_workers=options.workers > 0,
    )  # fmt: skip
    normalize = Normalizer(MEAN, STD, SIZE)

    def exact_step_input() -> None:
        for batch in exact.epoch(rows, box, flip):
            normalize(batch.images)
            taken = batch.rows
            codec.decode(
                TopKLabels(
                    index=labels.index[taken], code=labels.code[taken], tail=labels.tail[taken]
                )
            )

    def drain(loader: FFCVReplayLoader) -> None:
        for _ in loader.epoch(rows, box, flip):
            pass

    def drain_fkd() -> None:
        for images, soft in fkd:
            images.flatten(0, 1), soft.flatten(0, 1)

    cases = {
        "a  exact replay, floats + labels": exact_step_input,
        "a8 exact replay, uint8": lambda: drain(exact),
        "b  like FKD's": drain_fkd,
        "c  FFCV decode + INTER_AREA": lambda: drain(rival),
        "d  exact decode only": lambda: drain(decode_only),
    }
    for case in cases.values():
        case()  # compile, start workers, warm the page cache
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    crops = options.images * VIEWS
    for name, times in seconds.items():
        print(f"{name:34s} {crops / statistics.median(times):8.0f} crops/s")
    a, a8, b, c, d = seconds.values()
    comparisons = (
        ("a / b   (floats, beside FKD's)", a, b, 3.0),
        ("a8 / c  (uint8, beside FFCV's)", a8, c, 0.9),
        ("a / c   (floats, beside FFCV's uint8)", a, c, None),
        ("a8 / d  (uint8, beside decode only)", a8, d, None),
        ("a / d   (floats, beside decode only)", a, d, None),
    )
    for text, ours, theirs, target in comparisons:
        ratio = statistics.median(other / own for own, other in zip(ours, theirs, strict=True))
        goal = "" if target is None else f"  target >= {target}"
        print(f"{text:38s} {ratio:5.2f} times the speed{goal}")


if __name__ == "__main__":
    main()
