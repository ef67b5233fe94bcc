"""Batches of images for dense tasks: order and chance are pure functions of seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from trainer.batch import Counted
from trainer.distributed import World
from trainer.plan import images_per_step, pieces, plan_epoch, share_of_rank, steps_per_epoch

_DRAW_STREAM = 2  # trainer.plan has 0 and 1 of the same seed


class Samples(Protocol):
    """Training images of a task; has to travel to worker processes."""

    def __len__(self) -> int:
        """Images."""

    def name(self, row: int) -> str:
        """Of an image, for people."""

    def sample(self, row: int) -> Any:
        """An image with its target, augmented; all chance comes from torch's random state."""


@contextmanager
def seeded_draws(seed: int, epoch: int, row: int) -> Iterator[None]:
    """Inside, torch draws what this seed, epoch and image always draw; outside nothing changes."""
    words = np.random.SeedSequence([seed, _DRAW_STREAM, epoch, row]).generate_state(2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        yield


class EpochBatches:
    """Whole batches in an order drawn anew for every epoch (transfer.finetune.EpochData).

    Images left over at the end of an epoch are dropped, as in the published runs; a data set
    smaller than a batch is one batch.

    Args:
        collate: samples of a batch -> the batch.
        batch_size: images of a step, of all processes together.
        workers: processes that read images; 0 reads them in this one.
        world: the processes that share every batch; each has its part of it here.
    Raises:
        UsageError: a batch that the processes can't share evenly.
    """

    def __init__(
        self,
        samples: Samples,
        collate: Callable[[list[Any]], Counted],
        *,
        seed: int,
        batch_size: int,
        workers: int = 0,
        world: World = World(),  # noqa: B008 - frozen
    ) -> None:
        self._samples, self._seed, self._world = samples, seed, world
        self._size = images_per_step(batch_size, 1, len(samples))
        self._share = pieces(self._size, 1, world.size)
        self.steps = steps_per_epoch(len(samples), self._size)
        self._wanted = _Wanted()
        self._loader = DataLoader(
            _Drawn(samples, seed),
            batch_sampler=self._wanted,
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # or it would draw from the run's random state
        )

    def batches(self, epoch: int, first: int) -> Iterator[Counted]:
        """Batches of an epoch from number `first` on."""
        rows = self._rows(epoch)[first:]
        self._wanted.keys = [[(epoch, int(row)) for row in batch] for batch in rows]
        yield from self._loader

    def names(self, epoch: int, number: int) -> list[str]:
        """Images of this process's part of a batch."""
        return [self._samples.name(int(row)) for row in self._rows(epoch)[number]]

    def _rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """int64 [steps, batch / processes]."""
        plan = plan_epoch(
            self._seed, epoch, num_images=len(self._samples), stored_views=1, views_per_image=1
        )
        order = plan.order[: self.steps * self._size]
        mine = share_of_rank(order, self._size, self._world.rank, self._world.size)
        return mine.reshape(self.steps, self._share)


class _Wanted:
    """Batch sampler whose keys, (epoch, row), change with the epoch while its workers stay."""

    def __init__(self) -> None:
        self.keys: list[list[tuple[int, int]]] = []

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.keys)


class _Drawn(Dataset[Any]):
    """Samples by (epoch, row)."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self._samples, self._seed = samples, seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, row = key
        with seeded_draws(self._seed, epoch, row):
            return self._samples.sample(row)
