"""The index of a shard file (Zarr v3 `sharding_indexed`): where its inner chunks lie.

The index is the end of the file: 16 bytes a chunk (offset, length; both all ones where a chunk
is absent), then a CRC-32C of those.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
import numpy.typing as npt

from storage.layout import ArrayLayout

ABSENT = 2**64 - 1
ENTRY_BYTES = 16
CRC_BYTES = 4


def chunks_per_shard(layout: ArrayLayout) -> int:
    """Inner chunks of one file of `layout`, planes in order; 1 where files hold one chunk."""
    if layout.shard is None:
        return 1
    counts = [whole // part for whole, part in zip(layout.shard, layout.chunk, strict=True)]
    assert counts[0] == 1 and all(count == 1 for count in counts[2:]), "only planes are apart"
    return counts[1]


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
