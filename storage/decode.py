"""Chunks of label stores from their files straight into arrays, on all cores.

Does what Zarr does for the codecs of `layout.py`, without its cost a chunk, and stricter: lost
files and absent chunks are errors, and no more is ever unpacked than a chunk holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import numpy.typing as npt

from storage.errors import CorruptStore
from storage.layout import ArrayLayout
from storage.shards import ABSENT, CRC_BYTES, chunks_per_shard, index_bytes, parse_index
from storage.threads import decoders, for_each

Array = npt.NDArray[Any]
KNOWN = ("zstd", "blosc", "crc32c")
BLOSC_HEADER = 16
ZSTD_MAGIC = 0xFD2FB528


def is_known(layout: ArrayLayout) -> bool:
    """Whether `read_parts` can decode this array; else Zarr has to."""
    packed = [codec["name"] for codec in layout.compressors]
    packers = [name for name in packed if name != "crc32c"]
    return all(name in KNOWN for name in packed) and len(packers) == 1


@dataclass(frozen=True)
class Part:
    """Rows and views (None for arrays without a view axis), step 1, of an array."""

    layout: ArrayLayout
    rows: slice
    views: slice | None


@dataclass(frozen=True)
class _File:
    """A file of a part: its name, block, planes to take, and where the part lies in the array."""

    name: str
    block: int
    planes: list[int]
    spans: list[tuple[int, int]]
    layout: ArrayLayout
    out: Array


def read_parts(root: Path, parts: Sequence[Part]) -> list[Array]:
    """Parts of arrays of a store on disk, all files at once on all cores.

    Raises:
        CorruptStore: a file is missing or a chunk doesn't decode; the message names the file.
    """
    files: list[_File] = []
    found = []
    for part in parts:
        spans = _spans(part)
        inner = part.layout.shape[len(spans) :]
        out = np.empty((*(stop - start for start, stop in spans), *inner), part.layout.dtype)
        found.append(out)
        if out.size:
            files += _files(part.layout, spans, out)

    def read(file: _File) -> None:
        path = root / file.name
        try:
            _read_file(path, file)
        except FileNotFoundError:
            raise CorruptStore(f"{path} is missing: fetch the store again") from None
        except (ValueError, RuntimeError) as error:
            raise CorruptStore(
                f"{path}: a chunk can't be decoded ({error}): run `labelstore verify --full` to "
                "find all damage, and fetch the file again"
            ) from error

    for_each(files, read, decoders())
    return found


def _spans(part: Part) -> list[tuple[int, int]]:
    """(first, last + 1) of rows, and of views where there are any."""
    axes = [part.rows] if part.layout.shard is None else [part.rows, part.views or slice(None)]
    limits = [axis.indices(size) for axis, size in zip(axes, part.layout.shape, strict=False)]
    return [(start, max(start, stop)) for start, stop, _ in limits]


def _files(layout: ArrayLayout, spans: list[tuple[int, int]], out: Array) -> list[_File]:
    blocks = range(spans[0][0] // layout.chunk[0], -(-spans[0][1] // layout.chunk[0]))
    if layout.shard is None:
        return [_File(layout.object_paths(b)[0], b, [0], spans, layout, out) for b in blocks]
    per_file = chunks_per_shard(layout)
    planes = range(spans[1][0] // layout.chunk[1], -(-spans[1][1] // layout.chunk[1]))
    return [
        _File(
            name=layout.object_paths(block, [segment])[0],
            block=block,
            planes=[plane for plane in planes if plane // per_file == segment],
            spans=spans,
            layout=layout,
            out=out,
        )
        for block in blocks
        for segment in sorted({plane // per_file for plane in planes})
    ]


def _read_file(path: Path, wanted: _File) -> None:
    layout = wanted.layout
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        entries = [[0, size]]
        if layout.shard is not None:
            chunks = chunks_per_shard(layout)
            length = index_bytes(chunks)
            if size < length:
                raise ValueError("the file is shorter than its index")
            index = os.pread(file.fileno(), length, size - length)
            entries = parse_index(index, chunks, size).tolist()
        for plane in wanted.planes:
            offset, length = entries[plane % len(entries)]
            if offset == ABSENT:
                raise ValueError(f"chunk {plane % len(entries)} is absent")
            data = os.pread(file.fileno(), length, offset)
            if len(data) != length:
                raise ValueError("the file ends too early")
            _place(wanted, plane, data)


def _place(wanted: _File, plane: int, data: bytes) -> None:
    """Decode a chunk into where it lies in the part."""
    layout, out = wanted.layout, wanted.out
    there, here = [], []
    for number, (start, stop), size in zip(
        (wanted.block, plane), wanted.spans, layout.chunk, strict=False
    ):
        low, high = max(start, number * size), min(stop, (number + 1) * size)
        there.append(slice(low - start, high - start))
        here.append(slice(low - number * size, high - number * size))
    target = out[tuple(there)]
    if target.shape == layout.chunk and target.flags.c_contiguous:
        decode_chunk(layout, data, target)
    else:
        chunk = np.empty(layout.chunk, layout.dtype)
        decode_chunk(layout, data, chunk)
        target[...] = chunk[tuple(here)]


def decode_chunk(layout: ArrayLayout, data: bytes, out: Array) -> None:
    """Unpack a chunk's bytes into `out`, of the chunk's shape and contiguous.

    Raises:
        ValueError, RuntimeError: a checksum or a size differs.
    """
    view = memoryview(data)
    for codec in reversed(layout.compressors):
        if codec["name"] == "crc32c":
            if len(view) < CRC_BYTES:
                raise ValueError("it is too short for its checksum")
            view, crc = view[:-CRC_BYTES], view[-CRC_BYTES:]
            if google_crc32c.value(bytes(view)) != int.from_bytes(crc, "little"):
                raise ValueError("its checksum differs")
        elif codec["name"] == "blosc":
            if _blosc_size(view) != out.nbytes:
                raise ValueError(f"it doesn't unpack to {out.nbytes} bytes")
            numcodecs.blosc.decompress(view, out)
        else:
            if _zstd_size(view) != out.nbytes:
                raise ValueError(f"it doesn't unpack to {out.nbytes} bytes")
            numcodecs.zstd.decompress(view, out)


def _blosc_size(data: memoryview) -> int:
    """Unpacked bytes by the header of a blosc buffer."""
    if len(data) < BLOSC_HEADER or int.from_bytes(data[12:16], "little") != len(data):
        return -1
    return int.from_bytes(data[4:8], "little")


def _zstd_size(data: memoryview) -> int:
    """Unpacked bytes by the header of a zstd frame with a checksum (RFC 8878 section 3.1.1)."""
    if len(data) < 6 or int.from_bytes(data[:4], "little") != ZSTD_MAGIC:
        return -1
    flags = data[4]
    single, checked, has_dictionary = flags & 0x20, flags & 0x04, flags & 0x03
    if not checked or has_dictionary:
        return -1
    start = 5 if single else 6
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(data[start : start + width], "little")
    return size + 256 if width == 2 else size if width else -1
