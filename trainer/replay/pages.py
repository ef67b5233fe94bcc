"""Pages of a beton: which one an image lies in, and reading them whole before they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trainer.pass_config import PAGE_MIB

PAGE_BYTES = PAGE_MIB << 20
AHEAD = 8  # batches between asking for a page and its first image; loaders work on a few themselves

Item = TypeVar("Item")


def file_pages(pointer: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Page that each image begins in, of where in the file it begins."""
    return (pointer // PAGE_BYTES).astype(np.int64)


def with_pages_read(
    batches: Iterator[Item], path: Path, page: npt.NDArray[np.int64], batch_images: int
) -> Iterator[Item]:
    """The same batches; the system is told to read every page some batches before it is needed.

    Args:
        page: int64 [n], of the images in the order of the batches.
    """
    names, first = np.unique(page, return_index=True)
    in_turn = np.argsort(first)
    wanted = iter(zip((first[in_turn] // batch_images).tolist(), names[in_turn].tolist(),
                      strict=True))  # fmt: skip
    with path.open("rb") as file:
        due, number = next(wanted, (None, 0))
        taken = 0
        while True:
            while due is not None and due < taken + AHEAD:
                start = number * PAGE_BYTES
                os.posix_fadvise(file.fileno(), start, PAGE_BYTES, os.POSIX_FADV_WILLNEED)
                due, number = next(wanted, (None, 0))
            try:
                batch = next(batches)
            except StopIteration:
                return
            taken += 1
            yield batch
