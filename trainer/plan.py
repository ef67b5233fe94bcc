"""Which images, in which order, with which stored views: an epoch as a pure function of a seed.

An epoch is one pass over the images with V views each. Every image of an epoch uses the same
plane of V consecutive stored views, so that its labels are one sequential read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from trainer.order import Pages, paged_order

_ORDER_STREAM, _PLANE_STREAM = 0, 1  # keep the two draws of one seed independent


@dataclass(frozen=True)
class EpochPlan:
    """Order and view plane of one epoch.

    Attributes:
        order: int64 [n], a permutation of 0..n-1.
        first_view: the epoch's views are first_view .. first_view + num_views - 1.
        num_views: V.
    """

    order: npt.NDArray[np.int64]
    first_view: int
    num_views: int


@dataclass(frozen=True)
class Pass:
    """One pass over the images.

    Attributes:
        number: from 0. views: V. steps: optimiser steps. first_step: global number of the first.
        lr_epoch: the epoch whose learning rate holds throughout; None: it changes every step.
    """

    number: int
    views: int
    steps: int
    first_step: int
    lr_epoch: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch that a pass is, or begins with, as the run counts them."""
        return self.number if self.lr_epoch is None else self.lr_epoch


def plan_run(
    num_images: int, batch_size: int, views_per_image: int, epochs: int, counting: str = "passes"
) -> tuple[Pass, ...]:
    """All passes of a run.

    Counting `passes`: an epoch is one pass with V views. Counting `views`, as FKD's published
    code counts: a pass with V views is V epochs and has the learning rate of the first of them
    throughout; the last epochs (V of them, where V divides all) are passes with one view each.
    Images left over at the end of a pass are dropped in both.

    Raises:
        UsageError: a batch that V views don't divide.
    """
    if counting == "passes":
        kinds: list[tuple[int, int | None]] = [(views_per_image, None)] * epochs
    else:
        whole = range(0, max(0, epochs - views_per_image), views_per_image)
        single = range(len(whole) * views_per_image, epochs)
        kinds = [*((views_per_image, e) for e in whole), *((1, e) for e in single)]
    passes, first_step = [], 0
    for number, (views, lr_epoch) in enumerate(kinds):
        steps = steps_per_epoch(num_images, images_per_step(batch_size, views, num_images))
        passes.append(Pass(number, views, steps, first_step, lr_epoch))
        first_step += steps
    return tuple(passes)


def num_planes(stored_views: int, views_per_image: int) -> int:
    """Planes of V whole views among M stored ones; the remainder M mod V is never used."""
    if not 1 <= views_per_image <= stored_views:
        raise UsageError(
            f"--views-per-image is {views_per_image}; the store holds {stored_views} views "
            f"an image: expected 1 to {stored_views}"
        )
    return stored_views // views_per_image


def views_reused(passes: tuple[Pass, ...], seed: int, stored_views: int) -> tuple[int, int]:
    """(views of an image that a run takes, how many of them are taken again).

    Views are drawn without replacement until all planes are used, so the run takes new ones as
    long as there are any.
    """
    taken = sum(one.views for one in passes)
    seen: set[int] = set()
    for one in passes:
        first = first_view(seed, one.number, stored_views, one.views)
        seen.update(range(first, first + one.views))
    return taken, taken - len(seen)


def first_view(seed: int, epoch: int, stored_views: int, views_per_image: int) -> int:
    """First of the views that an epoch takes."""
    planes = num_planes(stored_views, views_per_image)
    cycle, position = divmod(epoch, planes)
    plane = np.random.default_rng([seed, _PLANE_STREAM, cycle]).permutation(planes)[position]
    return int(plane) * views_per_image


def plan_epoch(
    seed: int,
    epoch: int,
    *,
    num_images: int,
    stored_views: int,
    views_per_image: int,
    pages: Pages | None = None,
) -> EpochPlan:
    """Order and views of one epoch.

    Planes are drawn without replacement: floor(M / V) epochs use every plane once, then a new
    permutation of the planes begins.

    Args:
        seed: of the run; epochs and seeds never share a stream.
        epoch: from 0.
        num_images: n images that take part.
        stored_views: M.
        views_per_image: V <= M.
        pages: of the images, for quasi-random order; None: any order alike.
    """
    rng = np.random.default_rng([seed, _ORDER_STREAM, epoch])
    order = rng.permutation(num_images) if pages is None else paged_order(rng, pages)
    return EpochPlan(
        order=order.astype(np.int64),
        first_view=first_view(seed, epoch, stored_views, views_per_image),
        num_views=views_per_image,
    )


def images_per_step(batch_size: int, views_per_image: int, num_images: int) -> int:
    """Images of one step: `batch_size` counts crops, as FKD's -b does.

    Raises:
        UsageError: `batch_size` is not a multiple of V.
    """
    if batch_size % views_per_image:
        raise UsageError(
            f"--batch-size counts crops: {batch_size} is not a multiple of "
            f"--views-per-image {views_per_image}"
        )
    return min(batch_size // views_per_image, num_images)


def pieces(step_images: int, accumulate: int, processes: int = 1) -> int:
    """Images of each piece of a step: `accumulate` pieces in each of the processes.

    Raises:
        UsageError: a step's images can't be cut into that many equal pieces.
    """
    if step_images < processes:
        raise UsageError(
            f"{processes} processes share steps of {step_images} images: start {step_images} "
            "processes at most, or give more images or a larger --batch-size"
        )
    if step_images % (accumulate * processes):
        what = f"{processes} processes" + (
            f" and loop.accumulate {accumulate}" if accumulate > 1 else ""
        )
        raise UsageError(
            f"{what} make {accumulate * processes} pieces of a step, which has {step_images} "
            "images: expected a divisor; change --batch-size"
        )
    return step_images // (accumulate * processes)


def share_of_rank(
    order: npt.NDArray[np.int64], step_images: int, rank: int, processes: int
) -> npt.NDArray[np.int64]:
    """The images that one of several processes takes of every step, in order.

    Args:
        order: int64 [steps * step_images], a pass's images.
    Returns:
        int64 [steps * step_images / processes]; the shares of all ranks together are the order.
    """
    shares: npt.NDArray[np.int64] = order.reshape(-1, processes, step_images // processes)
    return shares[:, rank].reshape(-1)


def steps_per_epoch(num_images: int, step_images: int) -> int:
    """Whole steps of one epoch; images left over wait for the next epoch's order."""
    return num_images // step_images
