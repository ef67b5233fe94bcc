"""Replay without FFCV: pillow-simd in DataLoader workers. The oracle in tests, the fallback."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from storage.augment import replay_view
from storage.errors import BadImage, TrainingError
from storage.images import ImageStatus
from storage.pixels import PixelContract, decode_rgb, pad_image
from trainer.replay.encode import MODE_JPEG
from trainer.replay.epoch import ReplayBatch, ReplayLoader

Sample = tuple[np.ndarray, np.ndarray, int, bool]  # images, digest, row, failed


class _Views(Dataset[Sample]):
    """Beton row -> its views of this epoch."""

    def __init__(
        self,
        loader: ReplayLoader,
        box: np.ndarray,
        flip: np.ndarray,
        draw: np.ndarray | None,
    ) -> None:
        self.path, self.records = loader.beton.path, loader.beton.records
        self.size, self.contract = loader.size, loader.contract
        self.augment = loader.augment
        self.box, self.flip, self.draw = box, flip, draw

    def __getitem__(self, row: int) -> Sample:
        record = self.records[row]
        views, size = self.flip.shape[1], self.size
        failed = False
        images = np.zeros((views, size, size, 3), np.uint8)
        try:
            image = _decode(self.path, record, self.contract)
        except BadImage:
            failed = True
        else:
            for view in range(views):
                images[view] = replay_view(
                    image, self.box[row, view], bool(self.flip[row, view]), size,
                    self.contract.interpolation, self.augment,
                    None if self.draw is None else self.draw[row, view],
                )  # fmt: skip
        return images, record["digest"], row, failed


def _decode(path: object, record: np.void, contract: PixelContract) -> Image.Image:
    if record["status"] != ImageStatus.OK:
        raise BadImage("masked")
    height, width, size = int(record["height"]), int(record["width"]), int(record["size"])
    data = np.fromfile(path, np.uint8, count=size, offset=int(record["ptr"])).tobytes()
    if record["mode"] == MODE_JPEG:
        image = decode_rgb(data)
    elif len(data) == 3 * height * width:
        image = Image.frombytes("RGB", (width, height), data)
    else:
        raise BadImage(f"{len(data)} bytes of pixels for {height}x{width}")
    if image.size != (width, height):
        raise BadImage(f"{image.size[0]}x{image.size[1]} pixels, packed as {width}x{height}")
    return pad_image(image, contract.padding)


def _collate(samples: list[Sample]) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    images, digests, rows, failed = zip(*samples, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        np.stack(digests),
        np.array(rows, np.int64),
        np.array(failed, np.bool_),
    )


class TorchReplayLoader(ReplayLoader):
    """Replays views with pillow-simd in worker processes; see `ReplayLoader`."""

    def _batches(
        self, rows: np.ndarray, box: np.ndarray, flip: np.ndarray, draw: np.ndarray | None
    ) -> Iterator[ReplayBatch]:
        loader = DataLoader(
            _Views(self, box, flip, draw),
            batch_size=self.batch_images,
            sampler=rows.tolist(),
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # or it would draw from the run's random state
        )
        batches = iter(loader)
        while True:
            try:
                images, digests, taken, failed = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:  # killed; the file can't be read
                last = str(error).strip().splitlines()[-1]  # after a worker's traceback
                raise TrainingError(f"a replay worker failed: {last}") from error
            yield ReplayBatch(images=images, rows=taken, digests=digests, failed=failed)
