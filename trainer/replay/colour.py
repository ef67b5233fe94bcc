"""Stored augmentations compiled: storage/colour.py, randaugment.py and erasing.py, bit for bit.

Views are changed in place. What a store's augmentations are is passed as a *program*, a small
table of integers, so that one compiled function serves every store and is kept on disk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.augment import Augment
from storage.colour import ONE
from storage.colour_draws import ORDERS, ColourJitter, Lighting
from storage.erasing import GRID, GRID_BITS, Erasing
from storage.errors import FormatVersion
from storage.randaugment import RandAugment
from trainer.replay.jit import kernel
from trainer.replay.randaugment import (
    augment_once,
    blend_with_grey,
    contrast_table,
    look_up,
    strengthen_table,
    turn_hue,
)

_RANDAUGMENT, _JITTER, _LIGHTING, _ERASING = range(4)
PROGRAM_COLUMNS = 6  # operation, first column, columns, three parameters
_ORDERS = np.array(ORDERS, np.int64)


def compile_program(augment: Augment | None) -> npt.NDArray[np.int64]:
    """The program of a store's augmentations, int64 [operations, 6]; no rows for none.

    Raises:
        FormatVersion: an operation that isn't compiled here.
    """
    rows, first = [], 0
    for operation in augment.operations if augment else ():
        fill = (0, 0, 0)
        match operation:
            case RandAugment():
                number = _RANDAUGMENT
            case ColourJitter():
                number = _JITTER
            case Lighting():
                number = _LIGHTING
            case Erasing():
                number, fill = _ERASING, operation.fill
            case _:
                raise FormatVersion(
                    f"augmentation {operation.kind!r} is unknown to the FFCV loader: use --loader "
                    "torch"
                )
        rows.append((number, first, operation.columns, *fill))
        first += operation.columns
    return np.array(rows, np.int64).reshape(-1, PROGRAM_COLUMNS)


@kernel
def augment_view(pixels, draw, program):  # type: ignore[no-untyped-def]
    """One view uint8 [S, S, 3], C-contiguous, changed as its draw int16 [D] says."""
    for number in range(program.shape[0]):
        operation, first, columns = program[number, 0], program[number, 1], program[number, 2]
        part = draw[first : first + columns]
        if operation == _RANDAUGMENT:
            for pair in range(columns // 2):
                augment_once(pixels, np.int64(part[2 * pair]), np.int64(part[2 * pair + 1]))
        elif operation == _JITTER:
            _jitter(pixels, part)
        elif operation == _LIGHTING:
            _light(pixels, part)
        else:
            _erase(pixels, part, program[number, 3:])


@kernel
def _jitter(pixels, draw):  # type: ignore[no-untyped-def]
    tables = np.empty((3, 256), np.uint8)
    for place in range(4):
        step = _ORDERS[np.int64(draw[0]), place]
        amount = np.int64(draw[1 + step])
        if step == 3:
            turn_hue(pixels, amount)
        elif amount == ONE:
            continue
        elif step == 0:
            strengthen_table(amount, tables)
            look_up(pixels, tables)
        elif step == 1:
            contrast_table(pixels, amount, tables)
            look_up(pixels, tables)
        else:
            blend_with_grey(pixels, amount)


@kernel
def _light(pixels, draw):  # type: ignore[no-untyped-def]
    tables = np.empty((3, 256), np.uint8)
    for channel in range(3):
        for level in range(256):
            tables[channel, level] = min(max(level + np.int64(draw[channel]), 0), 255)
    look_up(pixels, tables)


@kernel
def _erase(pixels, draw, fill):  # type: ignore[no-untyped-def]
    side = pixels.shape[0]
    top, left = np.int64(draw[0]), np.int64(draw[1])
    bottom, right = top + np.int64(draw[2]), left + np.int64(draw[3])
    half = GRID // 2
    for row in range((top * side + half) >> GRID_BITS, (bottom * side + half) >> GRID_BITS):
        for column in range((left * side + half) >> GRID_BITS, (right * side + half) >> GRID_BITS):
            for channel in range(3):
                pixels[row, column, channel] = fill[channel]
