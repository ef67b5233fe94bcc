"""The FFCV operation of exact replay: decode a row once, cut its views from the epoch's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from llvmlite import binding
from numba import carray, njit, types
from numba.extending import intrinsic

from trainer.replay import turbojpeg
from trainer.replay.colour import PROGRAM_COLUMNS, augment_view
from trainer.replay.encode import MODE_JPEG
from trainer.replay.resample import SUPPORT, canvas_bytes, cut
from trainer.replay.simd import fetch_add

# What happened to a row, written beside its pixels (a failed row's pixels are zeros).
DECODED = 0
MASKED = 1  # the beton has no pixels for the row; the caller should not have asked for it
UNDECODABLE = 2  # libjpeg-turbo refused, or warned where it did not when the beton was packed
WRONG_SIZE = 3  # the bytes are not of the recorded size
WRONG_BOX = 4  # a box leaves the padded image


@njit(cache=True, nogil=True)
def expand_raw(data, height, width, canvas, start, pitch):  # type: ignore[no-untyped-def]
    """RGB bytes [height * width * 3] -> RGBX pixels from byte `start` of the canvas."""
    for row in range(height):
        for column in range(width):
            target = start + row * pitch + 4 * column
            source = 3 * (row * width + column)
            for channel in range(3):
                canvas[target + channel] = data[source + channel]


@njit(cache=True, nogil=True)
def blank_border(canvas, height, width, padding):  # type: ignore[no-untyped-def]
    """Zero the border of a canvas of height x width pixels, padding included."""
    pitch = 4 * width
    canvas[: padding * pitch] = 0
    canvas[(height - padding) * pitch : height * pitch] = 0
    for row in range(padding, height - padding):
        start = row * pitch
        canvas[start : start + 4 * padding] = 0
        canvas[start + pitch - 4 * padding : start + pitch] = 0


@njit(cache=True, nogil=True)
def boxes_fit(boxes, height, width):  # type: ignore[no-untyped-def]
    """Whether every box [V, 4] is not empty and inside height x width."""
    for view in range(boxes.shape[0]):
        top, left = np.int64(boxes[view, 0]), np.int64(boxes[view, 1])
        tall, wide = np.int64(boxes[view, 2]), np.int64(boxes[view, 3])
        if tall < 1 or wide < 1 or top + tall > height or left + wide > width:
            return False
    return True


@njit(cache=True, nogil=True)
def largest_first(sizes):  # type: ignore[no-untyped-def]
    """Places of int64 [n] in falling order.

    Apart from the loop that needs it, so that the sort is compiled once and not for every loader.
    """
    return np.argsort(-sizes)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def replay_row(row, status, mode, warns, height, width, data, out, tables):  # type: ignore[no-untyped-def]
    """One beton row to its views by the epoch's tables; returns a row status.

    Scalars instead of the row's record: numba's record types differ between processes, so code
    that takes one is not found on disk again.

    Args:
        data: the row's bytes in the file. out: uint8 [V, S, S, 3], written.
        tables: int64, in this order: the addresses of boxes uint16 [rows, V, 4], of flips uint8
            [rows, V] and of draws int16 [rows, V, columns]; columns (none: draws are not read);
            the address of the program int64 [operations, PROGRAM_COLUMNS]; operations; padding;
            the filter's support.
    """
    box_address, flip_address, draw_address, columns = tables[0], tables[1], tables[2], tables[3]
    program_address, operations, padding, support = tables[4], tables[5], tables[6], tables[7]
    if status != 0:
        out.fill(0)
        return MASKED
    views = out.shape[0]
    boxes = carray(_as_pointer(box_address + row * views * 8, np.uint16), (views, 4))
    flips = carray(_as_pointer(flip_address + row * views, np.uint8), (views,))
    draws = carray(
        _as_pointer(draw_address + row * views * columns * 2, np.int16), (views, columns)
    )
    program = carray(_as_pointer(program_address, np.int64), (operations, PROGRAM_COLUMNS))
    return decode_views(
        data, mode, warns, height, width, padding, boxes, flips, draws, program, support, out
    )


class ReplayDecoder(Operation):
    """Decode each row once and cut V views of it.

    Args:
        box, flip, draw: the epoch's tables, uint16 [rows, V, 4], uint8 [rows, V] and int16
            [rows, V, D], C-contiguous. Their addresses are compiled in: the owner keeps the
            arrays alive and refills them in place between epochs, never during one.
        size, interpolation, padding: the pixel contract's.
        program: what is done with the draws (`compile_program`).
    Output: a tuple (uint8 [B, V, S, S, 3], digest uint8 [B, 32], status uint8 [B]).
    """

    def __init__(
        self,
        *,
        box: np.ndarray,
        flip: np.ndarray,
        draw: np.ndarray,
        size: int,
        interpolation: str,
        padding: int,
        program: np.ndarray,
    ) -> None:
        super().__init__()
        self.box, self.flip, self.draw = box, flip, draw
        self.program = program
        self.size, self.padding = size, padding
        self.support = SUPPORT[interpolation]
        self._next = np.zeros(1, np.int64)  # place of the next image in the batch at work

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, tuple[AllocationQuery, ...]]:
        """Called by FFCV: memory of one batch slot."""
        views = (self.box.shape[1], self.size, self.size, 3)
        kind = np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=views, dtype=kind)
        return state, tuple(AllocationQuery(shape, kind) for shape in (views, (32,), ()))

    def row_code(self) -> Callable[..., int]:
        """Compiled: what is done with one row, called as `replay_row` is; returns its status.

        Found on disk again: a function made here would be compiled, with all that it calls, for
        every loader.
        """
        return replay_row  # type: ignore[no-any-return]

    def tables(self) -> tuple[np.int64, ...]:
        """`tables` of `replay_row`; NumPy's integers, since Python's would be types of their own,
        compiled anew for every value.
        """
        return tuple(
            np.int64(value)
            for value in (
                self.box.ctypes.data, self.flip.ctypes.data, self.draw.ctypes.data,
                self.draw.shape[2], self.program.ctypes.data, len(self.program), self.padding,
                self.support,
            )
        )  # fmt: skip

    def generate_code(self) -> Callable[..., Any]:
        """Called by FFCV: the function that it compiles.

        Threads take a batch's images one by one, from the largest on: in equal shares, as FFCV
        divides them, the quickest thread would wait for the slowest at the end of every batch.
        """
        each, threads = Compiler.get_iterator(), np.int64(Compiler.num_threads)
        next_address = np.int64(self._next.ctypes.data)
        work, tables = self.row_code(), self.tables()

        def decode(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            images, digests, statuses = memory
            file = storage_state[0]  # the whole file, mapped (FFCV's os_cache)
            count = len(batch_indices)
            sizes = np.empty(count, np.int64)
            for slot in range(count):
                sizes[slot] = metadata[np.int64(batch_indices[slot])]["size"]
            order = largest_first(sizes)
            carray(_as_pointer(next_address, np.int64), (1,))[0] = 0
            for _ in each(threads):
                place = fetch_add(next_address, 1)
                while place < count:
                    slot = order[place]
                    row = np.int64(batch_indices[slot])
                    record = metadata[row]
                    start, size = np.int64(record["ptr"]), np.int64(record["size"])
                    statuses[slot] = work(
                        row, record["status"], record["mode"], record["warns"],
                        np.int64(record["height"]), np.int64(record["width"]),
                        file[start : start + size], images[slot], tables,
                    )  # fmt: skip
                    for i in range(32):
                        digests[slot, i] = record["digest"][i]
                    place = fetch_add(next_address, 1)
            return images, digests, statuses

        decode.is_parallel = True
        return decode
