"""The order in which crops are cut and labelled: block by block, image by image, view by view.

Crop (i, v) of a block has position i * M + v; the block's batches are consecutive runs of B
positions, the last one filled up with empty slots. What is in a batch thus depends on the block
alone, so a run that was killed and resumed forwards the very same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEGMENT_VIEWS = 128  # views cut from one decode: bounds the memory that an image needs


@dataclass(frozen=True)
class Unit:
    """Work for one crop worker: some consecutive views of one image.

    Attributes:
        row: image. first_view, num_views: which of its views.
        slot: place of the first crop in the stream of all crops of this run, empty slots
            included; crop j goes to slot + j.
    """

    row: int
    first_view: int
    num_views: int
    slot: int


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        number: 0, 1, ... over the whole run; crops of batch b have slots b * B to (b + 1) * B.
        block: block of the store; first: its first position; count: positions used, 1 to B.
        last: whether the block ends here.
    """

    number: int
    block: int
    first: int
    count: int
    last: bool


def num_batches(num_images: int, num_views: int, batch_size: int) -> int:
    """Batches of a block."""
    return -(-num_images * num_views // batch_size)


def plan_batches(
    blocks: Sequence[tuple[int, range]], num_views: int, batch_size: int
) -> Iterator[Batch]:
    """Batches of the given (block, rows), in order."""
    number = 0
    for block, rows in blocks:
        total = len(rows) * num_views
        for first in range(0, total, batch_size):
            count = min(batch_size, total - first)
            yield Batch(number, block, first, count, first + count == total)
            number += 1


def plan_units(
    blocks: Sequence[tuple[int, range]], num_views: int, batch_size: int
) -> Iterator[Unit]:
    """Units of the given (block, rows), in the order of their slots."""
    start = 0
    for _, rows in blocks:
        for i, row in enumerate(rows):
            for view in range(0, num_views, SEGMENT_VIEWS):
                count = min(SEGMENT_VIEWS, num_views - view)
                yield Unit(row, view, count, start + i * num_views + view)
        start += num_batches(len(rows), num_views, batch_size) * batch_size
