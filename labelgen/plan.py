"""The order in which crops are cut and labelled: block by block, span by span, image by image,
view by view.

A span is a range of views of which the same things are wanted: with features of the first 8 of 500
views there are two, 0 to 7 and 8 to 499, so that no batch mixes crops that need more than labels
with crops that don't. Crop (i, v) of a span of m views has position i * m + (v - its first view) in
it; a span's batches are consecutive runs of B positions, the last one filled up with empty slots.
What is in a batch thus depends on the block alone, so a run that was killed and resumed forwards
the very same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
        block: block of the store; span: the views it is of; first: its first position among the
            span's; count: positions used, 1 to B.
        last: whether the block ends here.
    """

    number: int
    block: int
    span: range
    first: int
    count: int
    last: bool


def view_spans(num_views: int, target_views: Iterable[int] = ()) -> tuple[range, ...]:
    """Views 0 to num_views - 1, cut after each of `target_views`."""
    ends = sorted({*target_views, num_views})
    return tuple(range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))


def num_batches(num_images: int, spans: Sequence[range], batch_size: int) -> int:
    """Batches of a block."""
    return sum(-(-num_images * len(span) // batch_size) for span in spans)


def plan_batches(
    blocks: Iterable[tuple[int, range]], spans: Sequence[range], batch_size: int
) -> Iterator[Batch]:
    """Batches of the given (block, rows), in order."""
    number = 0
    for block, rows in blocks:
        for span in spans:
            total = len(rows) * len(span)
            for first in range(0, total, batch_size):
                count = min(batch_size, total - first)
                last = span is spans[-1] and first + count == total
                yield Batch(number, block, span, first, count, last)
                number += 1


def plan_units(
    blocks: Iterable[tuple[int, range]], spans: Sequence[range], batch_size: int
) -> Iterator[Unit]:
    """Units of the given (block, rows), in the order of their slots."""
    start = 0
    for _, rows in blocks:
        for span in spans:
            for i, row in enumerate(rows):
                for view in range(span.start, span.stop, SEGMENT_VIEWS):
                    count = min(SEGMENT_VIEWS, span.stop - view)
                    slot = start + i * len(span) + view - span.start
                    yield Unit(row, view, count, slot)
            start += num_batches(len(rows), [span], batch_size) * batch_size
