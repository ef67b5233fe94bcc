"""The index of a shard file (Zarr v3 `sharding_indexed`): where its inner chunks lie.

The index is the end of the file: 16 bytes a chunk (offset, length; both all ones where a chunk
is absent), then a CRC-32C of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import numpy.typing as npt

from storage.layout import ArrayLayout

ABSENT = 2**64 - 1
ENTRY_BYTES = 16
CRC_BYTES = 4


def chunks_per_shard(layout: ArrayLayout) -> int:
    """Inner chunks of one file, by images and then by planes; 1 where files hold one chunk."""
    if layout.shard is None:
        return 1
    images, planes = _shard_grid(layout)
    return images * planes


@dataclass(frozen=True)
class Chunk:
    """An inner chunk: its number in its file, and its place in the grid of all chunks."""

    number: int
    images: int
    plane: int


def shard_chunks(
    layout: ArrayLayout, images: Iterable[int], planes: Sequence[int]
) -> dict[tuple[int, int], list[Chunk]]:
    """Chunks of some places in the grid of all chunks, by (block, segment) of their files.

    Args:
        images: places along the images; planes: along the views (of no account without views).
    """
    if layout.shard is None:
        return {(block, 0): [Chunk(0, block, 0)] for block in images}
    high, wide = _shard_grid(layout)
    found: dict[tuple[int, int], list[Chunk]] = {}
    for row in images:
        for plane in planes:
            chunk = Chunk((row % high) * wide + plane % wide, row, plane)
            found.setdefault((row // high, plane // wide), []).append(chunk)
    return found


def held_chunks(layout: ArrayLayout, chunk: Chunk) -> int:
    """Chunks inside the array's bounds that the file of `chunk` holds."""
    held = 1
    for place, per_file, size, whole in zip(
        (chunk.images, chunk.plane), _shard_grid(layout), layout.chunk, layout.shape, strict=False
    ):
        first = place // per_file * per_file
        held *= min(per_file, -(-whole // size) - first)
    return held


def _shard_grid(layout: ArrayLayout) -> tuple[int, int]:
    """Inner chunks of a file along the images and along the views."""
    assert layout.shard is not None, "a file of several chunks"
    counts = [whole // part for whole, part in zip(layout.shard, layout.chunk, strict=True)]
    assert all(count == 1 for count in counts[2:]), "only images and planes are apart"
    return counts[0], counts[1]


def index_bytes(chunks: int) -> int:
    """Size of the index of a shard of that many chunks."""
    return chunks * ENTRY_BYTES + CRC_BYTES


def parse_index(data: bytes, chunks: int, file_bytes: int) -> npt.NDArray[np.uint64]:
    """(offset, length) of every chunk, u8 [chunks, 2]; `ABSENT` twice where there is none.

    Raises:
        ValueError: its checksum differs, or a chunk lies outside the file.
    """
    if len(data) != index_bytes(chunks):
        raise ValueError(f"the shard's index has {len(data)} bytes, not {index_bytes(chunks)}")
    body, crc = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")
    if google_crc32c.value(body) != crc:
        raise ValueError("the checksum of the shard's index differs")
    index = np.frombuffer(body, "<u8").reshape(chunks, 2)
    for offset, length in index.tolist():
        if offset == ABSENT and length == ABSENT:
            continue
        if offset + length > file_bytes - len(data):
            raise ValueError("a chunk lies outside the shard")
    return index
