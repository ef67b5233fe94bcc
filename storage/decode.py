"""Chunks of label stores from their files straight into arrays, on all cores.

Does what Zarr does for the codecs of `layout.py`, without its cost a chunk, and stricter: lost
files and absent chunks are errors, and no more is ever unpacked than a chunk holds.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
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
from storage.shards import (
    ABSENT,
    CRC_BYTES,
    Chunk,
    chunks_per_shard,
    index_bytes,
    parse_index,
    shard_chunks,
)
from storage.threads import decoders, for_each

Array = npt.NDArray[Any]
KNOWN = ("zstd", "blosc", "crc32c")
BLOSC_HEADER = 16
BLOSC_VERSION = 2
BLOSC_PLAIN = 0x02  # flag: bytes as they are
BLOSC_ZSTD = 4  # in the upper three bits of the flags
ZSTD_MAGIC = 0xFD2FB528
MOST_AT_ONCE = 64 << 20  # bytes of a file that is read whole where most of it is wanted
WORTH_A_THREAD = 256 << 10  # decoded bytes; handing over less takes longer than doing it
MOST_RATIO = 1 << 15  # zstd's densest block: 128 KiB from 4 bytes (RFC 8878 section 3.1.1.2)


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
    """A file, the chunks to take from it, and what puts a chunk where it is wanted."""

    name: str
    layout: ArrayLayout
    chunks: list[Chunk]
    place: Callable[[Chunk, memoryview], None]


def read_parts(root: Path, parts: Sequence[Part]) -> list[Array]:
    """Parts of arrays of a store on disk, all files at once on all cores.

    Raises:
        CorruptStore: a file is missing or a chunk doesn't decode; the message names the file.
    """
    files: list[_File] = []
    found = []
    for part in parts:
        spans = _spans(part)
        shape = (*(stop - start for start, stop in spans), *part.layout.shape[len(spans) :])
        sources = _sources(part.layout, spans) if math.prod(shape) else {}
        _check_room(root, part.layout, shape, list(sources))
        out = np.empty(shape, part.layout.dtype)
        found.append(out)
        place = functools.partial(_place, part.layout, spans, out)
        files += [_File(name, part.layout, chunks, place) for name, chunks in sources.items()]
    _read_files(root, files)
    return found


def read_rows(root: Path, layout: ArrayLayout, rows: npt.NDArray[np.int64], views: slice) -> Array:
    """Some rows of an array with views, in their order; only the chunks that they touch.

    Args:
        rows: row numbers inside the array, in any order.
        views: step 1.
    Raises:
        CorruptStore: as `read_parts`.
    """
    first, last, _ = views.indices(layout.shape[1])
    shape = (len(rows), max(0, last - first), *layout.shape[2:])
    chunk_of = rows // layout.chunk[0]
    sources = row_sources(layout, rows, views) if math.prod(shape) else {}
    _check_room(root, layout, shape, list(sources))
    out = np.empty(shape, layout.dtype)
    order = np.argsort(chunk_of, kind="stable")
    sorted_chunks = chunk_of[order]

    def place(chunk: Chunk, data: memoryview) -> None:
        values = np.empty(layout.chunk, layout.dtype)
        decode_chunk(layout, data, values)
        begin, end = np.searchsorted(sorted_chunks, (chunk.images, chunk.images + 1))
        wanted = order[begin:end]
        start = chunk.plane * layout.chunk[1]
        low, high = max(first, start), min(last, start + layout.chunk[1])
        inside = values[rows[wanted] - chunk.images * layout.chunk[0], low - start : high - start]
        out[wanted, low - first : high - first] = inside

    _read_files(root, [_File(name, layout, chunks, place) for name, chunks in sources.items()])
    return out


def row_sources(
    layout: ArrayLayout, rows: npt.NDArray[np.int64], views: slice
) -> dict[str, list[Chunk]]:
    """Chunks that hold some rows and views of an array with views, by their files."""
    first, last, _ = views.indices(layout.shape[1])
    planes = range(first // layout.chunk[1], -(-last // layout.chunk[1]))
    images = np.unique(rows // layout.chunk[0]).tolist()
    return {
        layout.object_paths(block, [segment])[0]: chunks
        for (block, segment), chunks in shard_chunks(layout, images, planes).items()
    }


def _read_files(root: Path, files: Sequence[_File]) -> None:
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

    decoded = sum(len(file.chunks) * file.layout.chunk_bytes for file in files)
    for_each(files, read, decoders() if decoded >= WORTH_A_THREAD else 1)


def _spans(part: Part) -> list[tuple[int, int]]:
    """(first, last + 1) of rows, and of views where there are any."""
    axes = [part.rows] if part.layout.shard is None else [part.rows, part.views or slice(None)]
    limits = [axis.indices(size) for axis, size in zip(axes, part.layout.shape, strict=False)]
    return [(start, max(start, stop)) for start, stop, _ in limits]


def _check_room(
    root: Path, layout: ArrayLayout, shape: tuple[int, ...], names: Sequence[str]
) -> None:
    """Refuse to allocate what files of this size can't hold, however well they are packed."""
    size, held = math.prod(shape) * np.dtype(layout.dtype).itemsize, 0
    for name in names:
        try:
            held += (root / name).stat().st_size
        except FileNotFoundError:
            raise CorruptStore(f"{root / name} is missing: fetch the store again") from None
    if size > held * MOST_RATIO:
        raise CorruptStore(
            f"{root / layout.path} has {held:,} bytes on disk, too few for the {size:,} bytes that "
            "the store's settings ask for: run `labelstore verify`, and fetch the store again"
        )


def _sources(layout: ArrayLayout, spans: list[tuple[int, int]]) -> dict[str, list[Chunk]]:
    """Chunks of a part by their files."""
    grid = [
        range(start // size, -(-stop // size))
        for (start, stop), size in zip(spans, layout.chunk, strict=False)
    ]
    found = shard_chunks(layout, grid[0], grid[1] if len(grid) > 1 else ())
    return {
        layout.object_paths(block, [segment])[0]: chunks
        for (block, segment), chunks in found.items()
    }


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
        at_once = 2 * len(wanted.chunks) > len(entries) and size <= MOST_AT_ONCE
        whole = os.pread(file.fileno(), size, 0) if at_once else None
        for chunk in wanted.chunks:
            offset, length = entries[chunk.number]
            if offset == ABSENT:
                raise ValueError(f"chunk {chunk.number} is absent")
            if whole is None:
                data = memoryview(os.pread(file.fileno(), length, offset))
            else:
                data = memoryview(whole)[offset : offset + length]
            if len(data) != length:
                raise ValueError("the file ends too early")
            wanted.place(chunk, data)


def _place(
    layout: ArrayLayout,
    spans: list[tuple[int, int]],
    out: Array,
    place: Chunk,
    data: memoryview,
) -> None:
    """Decode a chunk into where it lies in the part `out`, which begins and ends at `spans`."""
    there, here = [], []
    for number, (start, stop), size in zip(
        (place.images, place.plane), spans, layout.chunk, strict=False
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


def decode_chunk(layout: ArrayLayout, data: bytes | memoryview, out: Array) -> None:
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
            if _blosc_size(view, codec["configuration"]["typesize"]) != out.nbytes:
                raise ValueError(f"it doesn't unpack to {out.nbytes} bytes")
            numcodecs.blosc.decompress(view, out)
        else:
            if _zstd_size(view) != out.nbytes:
                raise ValueError(f"it doesn't unpack to {out.nbytes} bytes")
            numcodecs.zstd.decompress(view, out)


def _blosc_size(data: memoryview, typesize: int) -> int:
    """Unpacked bytes by the header of a blosc buffer of zstd or of plain bytes; -1 for others."""
    if len(data) < BLOSC_HEADER or int.from_bytes(data[12:16], "little") != len(data):
        return -1
    version, flags = data[0], data[2]
    plain, packer = flags & BLOSC_PLAIN, flags >> 5
    if version != BLOSC_VERSION or data[3] != typesize or not (plain or packer == BLOSC_ZSTD):
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
