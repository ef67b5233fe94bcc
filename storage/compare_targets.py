"""Targets of two stores, compared as they are encoded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from storage.chunks import Array
from storage.format import StoreSpec

Read = Callable[[str, int, int, int], Array]  # (array path, side, first view, views)


def common_targets(
    ours: StoreSpec, theirs: StoreSpec, first: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """Views, by their number in the sampler's stream, of the targets that both stores keep alike.

    Args:
        first: number of each store's first view.
    """
    found = {}
    for path in sorted({*ours.targets} & {*theirs.targets}):
        records = ours.targets[path], theirs.targets[path]
        begin = max(first)
        end = min(f + record.views for f, record in zip(first, records, strict=True))
        if records[0].parts == records[1].parts and end > begin:
            found[path] = begin, end
    return found


def compare_target(
    counts: dict[str, int], spec: StoreSpec, path: str, views: tuple[int, int], read: Read
) -> tuple[int, int] | None:
    """Count views of n images whose vectors differ; (image, view) of the first that does."""
    begin, end = views
    wrong: Array | None = None
    for name in spec.targets[path].arrays():
        mine, other = (read(f"{path}/{name}", side, begin, end - begin) for side in (0, 1))
        where = (mine != other).reshape(*mine.shape[:2], -1).any(axis=-1)
        wrong = where if wrong is None else wrong | where
    assert wrong is not None, "a target has parts"
    counts["compared"] += wrong.size
    counts["different"] += int(wrong.sum())
    if not wrong.any():
        return None
    row, view = np.argwhere(wrong)[0].tolist()
    return row, begin + view
