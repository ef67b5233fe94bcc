"""The values of a store, block by block on all cores: chunks decode, ranges hold, sums agree."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from storage.block import block_problems
from storage.chunks import Array
from storage.errors import StoreError
from storage.format import StoreSpec, dataset_fingerprint
from storage.layout import ArrayLayout
from storage.measure import measure_block, summarise
from storage.store import LabelStore
from storage.threads import decoders, for_each

Note = Callable[[str, str, str], None]
Progress = Callable[[int, int], None]
Sums = dict[str, dict[str, float]]
ROUNDING = 2e-6  # measured values are rounded to 1e-6; other machines' exp may differ in the last
SLICE_LABELS = 1 << 14  # checked at once, so that what is derived from them stays in the cache


@dataclass
class BlockFindings:
    """What one block holds.

    problems: (array's or file's path, kind, detail).
    digests: u1 [n, 32]; sums: of every slice; both complete only where there is no problem.
    """

    problems: list[tuple[str, str, str]] = field(default_factory=list)
    digests: Array | None = None
    sums: list[Sums] = field(default_factory=list)


def check_blocks(
    store: LabelStore,
    blocks: list[int],
    layouts: Mapping[str, ArrayLayout],
    progress: Callable[[], None],
) -> dict[int, BlockFindings]:
    """Decode and check blocks of a store.

    Args:
        layouts: arrays with rows of images, by path.
        progress: called after each block.
    """
    found: dict[int, BlockFindings] = {}
    lock = threading.Lock()

    def work(block: int) -> None:
        findings = _check_block(store, block, layouts)
        with lock:
            found[block] = findings
            progress()

    for_each(blocks, work, decoders())
    return found


def _check_block(
    store: LabelStore, block: int, layouts: Mapping[str, ArrayLayout]
) -> BlockFindings:
    rows, found = store.block_rows(block), BlockFindings()
    arrays: dict[str, Array] = {}
    for path, layout in layouts.items():
        views = slice(0, layout.shape[1]) if layout.shard else None
        try:
            arrays[path] = store.read_array(path, slice(rows.start, rows.stop), views)
        except StoreError as error:
            found.problems.append((f"{path}/c/{block}", "damaged", str(error)))
    if found.problems:
        return found
    step = max(1, SLICE_LABELS // store.spec.num_views)
    for first in range(0, len(rows), step):
        part = {path: values[first : first + step] for path, values in arrays.items()}
        problems = block_problems(store.spec, part)
        for path, row, what in problems:
            image = rows.start + first + row
            found.problems.append((f"{path}/c/{block}", "values", f"image {image} {what}"))
        if not problems:
            found.sums.append(measure_block(store.spec, part))
    found.digests = arrays["images/digest"]
    return found


def check_measured(
    spec: StoreSpec,
    measured: Mapping[str, Any],
    found: list[BlockFindings],
    note: Callable[[str], None],
) -> None:
    """Compare what a sealed store states with what all its blocks hold."""
    digests = [block.digests for block in found if block.digests is not None]
    if measured.get("dataset_fingerprint") != dataset_fingerprint(np.concatenate(digests)):
        note("dataset fingerprint differs from the images' digests")
    for name in spec.teachers:
        sums = summarise(part[name] for block in found for part in block.sums)
        stated = measured.get("teachers", {}).get(name, {})
        for key, value in sums.items():
            if not _agrees(value, stated.get(key)):
                note(f"{name}: {key} is stated as {stated.get(key)}, measured {value}")


def _agrees(found: float | None, stated: object) -> bool:
    if found is None or not isinstance(stated, int | float):
        return found is None and stated is None
    return math.isclose(found, stated, rel_tol=0, abs_tol=ROUNDING)
