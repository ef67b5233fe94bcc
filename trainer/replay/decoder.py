"""The FFCV operation of exact replay: decode a row once, cut its views from the epoch's table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numba import cfunc

from trainer.replay.jit import CACHE, kernel
from trainer.replay.resample import SUPPORT
from trainer.replay.row import RAISED, RETURNED, ROW_FUNCTION, array_at, replay_row
from trainer.replay.simd import fetch_add


@kernel
def largest_first(sizes):  # type: ignore[no-untyped-def]
    """Places of int64 [n] in falling order.

    Apart from the loop that needs it, so that the sort is compiled once and not for every loader.
    """
    return np.argsort(-sizes)


@functools.cache
def compile_replay() -> Any:
    """`replay_row` as a C function: compiled (half a minute), or found on disk."""
    return cfunc(ROW_FUNCTION, cache=CACHE)(replay_row).ctypes


class ReplayDecoder(Operation):
    """Decode each row once and cut V views of it.

    Args:
        box, flip, draw: the epoch's tables, uint16 [rows, V, 4], uint8 [rows, V] and int16
            [rows, V, D], C-contiguous. The compiled code has their addresses: the owner keeps
            the arrays alive and refills them in place between epochs, never during one.
        size, interpolation, padding: the pixel contract's.
        program: what is done with the draws (`compile_program`); kept alive likewise.
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
        self.size, self._views = size, box.shape[1]
        self._next = np.zeros(1, np.int64)  # place of the next image in the batch at work
        self._tables = np.array(
            [
                box.ctypes.data, flip.ctypes.data, draw.ctypes.data, draw.shape[2],
                program.ctypes.data, len(program), padding, SUPPORT[interpolation],
            ],
            np.int64,
        )  # fmt: skip

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, tuple[AllocationQuery, ...]]:
        """Called by FFCV: memory of one batch slot."""
        views = (self._views, self.size, self.size, 3)
        kind = np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=views, dtype=kind)
        return state, tuple(AllocationQuery(shape, kind) for shape in (views, (32,), ()))

    def row_code(self) -> Any:
        """What is done with one row: a C function, as `replay_row` is."""
        return compile_replay()

    def generate_code(self) -> Callable[..., Any]:
        """Called by FFCV: the function that it compiles.

        Threads take a batch's images one by one, from the largest on: in equal shares, as FFCV
        divides them, the quickest thread would wait for the slowest at the end of every batch.
        """
        each, threads = Compiler.get_iterator(), np.int64(Compiler.num_threads)
        next_address = np.int64(self._next.ctypes.data)
        work, tables = self.row_code(), np.int64(self._tables.ctypes.data)

        def decode(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            images, digests, statuses = memory
            file = storage_state[0]  # the whole file, mapped (FFCV's os_cache)
            count = len(batch_indices)
            sizes = np.empty(count, np.int64)
            for slot in range(count):
                sizes[slot] = metadata[np.int64(batch_indices[slot])]["size"]
            order = largest_first(sizes)
            array_at(next_address, (1,), np.int64)[0] = 0
            for _ in each(threads):
                place = fetch_add(next_address, 1)
                while place < count:
                    slot = order[place]
                    row = np.int64(batch_indices[slot])
                    record = metadata[row]
                    start, size = np.int64(record["ptr"]), np.int64(record["size"])
                    views = images[slot]
                    done = work(
                        row, record["status"], record["mode"], record["warns"],
                        np.int64(record["height"]), np.int64(record["width"]),
                        file[start : start + size].ctypes.data, size,
                        views.ctypes.data, views.shape[0], views.shape[1], tables,
                    )  # fmt: skip
                    statuses[slot] = done - RETURNED if done else RAISED
                    for i in range(32):
                        digests[slot, i] = record["digest"][i]
                    place = fetch_add(next_address, 1)
            return images, digests, statuses

        decode.is_parallel = True
        return decode
