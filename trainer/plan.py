"""Which images, in which order, with which stored views: an epoch as a pure function of a seed.

An epoch is one pass over the images with V views each. Every image of an epoch uses the same
plane of V consecutive stored views, so that its labels are one sequential read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError

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


def num_planes(stored_views: int, views_per_image: int) -> int:
    """Planes of V whole views among M stored ones; the remainder M mod V is never used."""
    if not 1 <= views_per_image <= stored_views:
        raise UsageError(
            f"--views-per-image is {views_per_image}; the store holds {stored_views} views "
            f"an image: expected 1 to {stored_views}"
        )
    return stored_views // views_per_image


def plan_epoch(
    seed: int, epoch: int, *, num_images: int, stored_views: int, views_per_image: int
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
    """
    planes = num_planes(stored_views, views_per_image)
    cycle, position = divmod(epoch, planes)
    plane = np.random.default_rng([seed, _PLANE_STREAM, cycle]).permutation(planes)[position]
    order = np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(num_images)
    return EpochPlan(
        order=order.astype(np.int64),
        first_view=int(plane) * views_per_image,
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


def steps_per_epoch(num_images: int, step_images: int) -> int:
    """Whole steps of one epoch; images left over wait for the next epoch's order."""
    return num_images // step_images
