"""Replay without FFCV: pillow-simd in DataLoader workers. The oracle in tests, the fallback."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from storage.errors import BadImage, TrainingError
from trainer.replay.epoch import ReplayBatch, ReplayLoader
from trainer.replay.reference import cut_packed, read_packed

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
        images = np.zeros((self.flip.shape[1], self.size, self.size, 3), np.uint8)
        draw = None if self.draw is None else self.draw[row]
        try:
            image = read_packed(self.path, record, self.contract)
        except BadImage:
            return images, record["digest"], row, True
        cut_packed(image, self.box[row], self.flip[row], draw, self.contract, self.augment, images)
        return images, record["digest"], row, False


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
            except (ConnectionError, EOFError) as error:  # while it was handing over a batch
                raise TrainingError("a replay worker failed: it was killed or exited") from error
            except (RuntimeError, OSError) as error:  # killed; the file can't be read
                last = str(error).strip().splitlines()[-1]  # after a worker's traceback
                raise TrainingError(f"a replay worker failed: {last}") from error
            yield ReplayBatch(images=images, rows=taken, digests=digests, failed=failed)
