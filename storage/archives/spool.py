"""Epoch by epoch in, image by image out: records turned round in an unnamed file on disk."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt


def spool(rows: int, views: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Records [rows, views] of one structured type, all zero; memory is the system's cache.

    The file behind them has no name, so nothing is left of it however the process ends.

    Raises:
        OSError: no space for them.
    """
    with tempfile.TemporaryFile(prefix="teachonce-") as file:
        file.truncate(max(1, rows * views * dtype.itemsize))
        return np.memmap(file, dtype, mode="r+", shape=(rows, views))
