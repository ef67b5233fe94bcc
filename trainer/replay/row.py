"""One row of a beton to its views, in compiled code: decode once, cut every view."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding
from numba import carray, types
from numba.extending import intrinsic

from trainer.replay import turbojpeg
from trainer.replay.colour import PROGRAM_COLUMNS, augment_view
from trainer.replay.encode import MODE_JPEG
from trainer.replay.jit import kernel
from trainer.replay.resample import canvas_bytes, cut

# What happened to a row, written beside its pixels (a failed row's are zeros; not after RAISED).
DECODED = 0
MASKED = 1  # the beton has no pixels for the row; the caller should not have asked for it
UNDECODABLE = 2  # libjpeg-turbo refused, or warned where it did not when the beton was packed
WRONG_SIZE = 3  # the bytes are not of the recorded size
WRONG_BOX = 4  # a box leaves the padded image
RAISED = 255  # an exception in compiled code, which has been printed (no memory)
RETURNED = 1  # added to a row's status, so that it is told from an exception's 0

TABLES = 8  # numbers that say where an epoch's tables are, see `replay_row`


@kernel
def expand_raw(data, height, width, canvas, start, pitch):  # type: ignore[no-untyped-def]
    """RGB bytes [height * width * 3] -> RGBX pixels from byte `start` of the canvas."""
    for row in range(height):
        for column in range(width):
            target = start + row * pitch + 4 * column
            source = 3 * (row * width + column)
            for channel in range(3):
                canvas[target + channel] = data[source + channel]


@kernel
def blank_border(canvas, height, width, padding):  # type: ignore[no-untyped-def]
    """Zero the border of a canvas of height x width pixels, padding included."""
    pitch = 4 * width
    canvas[: padding * pitch] = 0
    canvas[(height - padding) * pitch : height * pitch] = 0
    for row in range(padding, height - padding):
        start = row * pitch
        canvas[start : start + 4 * padding] = 0
        canvas[start + pitch - 4 * padding : start + pitch] = 0


@kernel
def boxes_fit(boxes, height, width):  # type: ignore[no-untyped-def]
    """Whether every box [V, 4] is not empty and inside height x width."""
    for view in range(boxes.shape[0]):
        top, left = np.int64(boxes[view, 0]), np.int64(boxes[view, 1])
        tall, wide = np.int64(boxes[view, 2]), np.int64(boxes[view, 3])
        if tall < 1 or wide < 1 or top + tall > height or left + wide > width:
            return False
    return True


@kernel
def cut_views(canvas, canvas_width, boxes, flips, draws, program, support, out):  # type: ignore[no-untyped-def]
    """All views of one image: boxes uint16 [V, 4], flips uint8 [V], draws int16 [V, D] (for the
    program, see `augment_view`) -> out uint8 [V, S, S, 3]."""
    for view in range(boxes.shape[0]):
        cut(
            canvas, canvas_width, np.int64(boxes[view, 0]), np.int64(boxes[view, 1]),
            np.int64(boxes[view, 2]), np.int64(boxes[view, 3]), flips[view] != 0, support,
            out[view],
        )  # fmt: skip
        augment_view(out[view], draws[view], program)


def _c_function(name: str, *arguments: Any, returns: Any = types.intc) -> Any:
    """A TurboJPEG function by name, so that compiled code can be kept on disk (an address,
    which ctypes gives, could not)."""
    return types.ExternalFunction(name, returns(*arguments))


turbojpeg.load()  # the clear error when it isn't there
binding.load_library_permanently(turbojpeg.LIBRARY)
_address = types.uintp
_init = _c_function("tjInitDecompress", returns=_address)
_header = _c_function("tjDecompressHeader3", _address, _address, types.ulong, *[_address] * 4)
_decompress = _c_function(
    "tjDecompress2", _address, _address, types.ulong, _address, *[types.intc] * 5
)
_error_code = _c_function("tjGetErrorCode", _address)
_destroy = _c_function("tjDestroy", _address)
_FLAGS, _RGBX = turbojpeg.FLAG_ACCURATE_DCT, turbojpeg.FORMAT_RGBX
_WARNING = turbojpeg.ERROR_WARNING


@kernel
def decode_jpeg(data, height, width, canvas, start, pitch, warns):  # type: ignore[no-untyped-def]
    """JPEG bytes -> RGBX pixels from byte `start` of the canvas; returns a row status."""
    handle = _init()
    if handle == 0:
        return UNDECODABLE
    found = np.zeros(4, np.int32)
    at = found.ctypes.data
    status = DECODED
    code = _header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12)
    if code != 0 and _error_code(handle) != _WARNING:
        status = UNDECODABLE
    elif found[0] != width or found[1] != height:
        status = WRONG_SIZE
    else:
        code = _decompress(
            handle, data.ctypes.data, data.size, canvas.ctypes.data + start,
            width, pitch, height, _RGBX, _FLAGS,
        )  # fmt: skip
        if code != 0 and (warns == 0 or _error_code(handle) != _WARNING):
            status = UNDECODABLE
    _destroy(handle)
    return status


@kernel
def decode_views(
    data, mode, warns, height, width, padding, boxes, flips, draws, program, support, out
):  # type: ignore[no-untyped-def]  # fmt: skip
    """One image to its views; returns a row status, `out` is zeros unless that is DECODED."""
    tall, wide = height + 2 * padding, width + 2 * padding
    if not boxes_fit(boxes, tall, wide):
        out.fill(0)
        return WRONG_BOX
    pitch = 4 * wide
    start = padding * pitch + 4 * padding
    canvas = np.empty(canvas_bytes(tall, wide), np.uint8)
    status = DECODED
    if mode == MODE_JPEG:
        status = decode_jpeg(data, height, width, canvas, start, pitch, warns)
    elif data.size == 3 * height * width:
        expand_raw(data, height, width, canvas, start, pitch)
    else:
        status = WRONG_SIZE
    if status != DECODED:
        out.fill(0)
        return status
    if padding:
        blank_border(canvas, tall, wide, padding)
    cut_views(canvas, wide, boxes, flips, draws, program, support, out)
    return DECODED


@intrinsic
def _as_pointer(typingctx, address, kind):  # type: ignore[no-untyped-def]
    """Integer address -> pointer to the dtype given."""
    pointer = types.CPointer(kind.dtype)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.uintp, kind), codegen


ROW_FUNCTION = types.int64(*[types.int64] * 12)  # signature of `replay_row`


@kernel
def array_at(address, shape, kind):  # type: ignore[no-untyped-def]
    """The C-contiguous array that begins at an integer address."""
    return carray(_as_pointer(address, kind), shape)


def replay_row(  # type: ignore[no-untyped-def]
    row, status, mode, warns, height, width, data, length, out, views, side, tables
):
    """One beton row to its views by the epoch's tables.

    Called by address, all arguments and the result being int64: FFCV compiles its loop anew for
    every loader, and numba would compile all that is called here along with it, 13 seconds
    instead of 1.

    Args:
        row, status, mode, warns, height, width: the row's number and what its record says.
        data, length: address and number of the row's bytes in the file.
        out, views, side: address, V and S of the views uint8 [V, S, S, 3], written.
        tables: address of int64 [TABLES], in this order: the addresses of boxes uint16
            [rows, V, 4], of flips uint8 [rows, V] and of draws int16 [rows, V, columns]; columns
            (none: draws are not read); the address of the program int64
            [operations, PROGRAM_COLUMNS]; operations; padding; the filter's support.
    Returns:
        RETURNED + a row status; numba makes 0 of an exception, which it has printed.
    """
    pixels = array_at(out, (views, side, side, 3), np.uint8)
    if status != 0:
        pixels.fill(0)
        return RETURNED + MASKED
    table = array_at(tables, (TABLES,), np.int64)
    columns, operations, padding, support = table[3], table[5], table[6], table[7]
    done = decode_views(
        array_at(data, (length,), np.uint8), mode, warns, height, width, padding,
        array_at(table[0] + row * views * 8, (views, 4), np.uint16),
        array_at(table[1] + row * views, (views,), np.uint8),
        array_at(table[2] + row * views * columns * 2, (views, columns), np.int16),
        array_at(table[4], (operations, PROGRAM_COLUMNS), np.int64), support, pixels,
    )  # fmt: skip
    return RETURNED + done
