"""FFCV's file layout (`storage.beton`) written sequentially: the same images give the same bytes.

FFCV's own DatasetWriter lets workers race for pages (no two runs alike) and waits for ever
when one dies.

Nothing of a row crosses a page boundary; a row larger than the page doubles the page, which
breaks no earlier row because the borders of larger pages are a subset of those of smaller ones.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from storage.beton import (
    FILE_VERSION,
    HEADER,
    REENCODED_ROW,
    ROW,
    field_descriptors,
)
from storage.errors import StoreError
from trainer.replay.encode import EncodedImage

FIRST_PAGE_SIZE = 1 << 23  # FFCV's default, 8 MiB
MAX_PAGE_SIZE = 1 << 31  # the header holds it in 32 bits


# `ROW` as bytes: filling NumPy records field by field takes longer than hashing a photo
_ROW_BYTES = struct.Struct("<BBBHHQQ32sxqQQ")
_ORIGIN_BYTES = struct.Struct("<QQ")


class BetonWriter:
    """Writes rows in order to an open file; `finish` writes header and metadata.

    Memory: the metadata of all rows (about 90 bytes each) and one row's payload.

    Args:
        reencoded: rows have the digest of the file that they were made from, too.
    """

    def __init__(self, file: BinaryIO, num_rows: int, reencoded: bool = False) -> None:
        self._file, self._reencoded = file.fileno(), reencoded
        self._rows = np.zeros(num_rows, REENCODED_ROW if reencoded else ROW)
        self._row_bytes = self._rows.view(np.uint8).data
        self._next = 0
        self._page_size = FIRST_PAGE_SIZE
        self._descriptors = field_descriptors(reencoded)
        self._metadata_start = HEADER.itemsize + self._descriptors.nbytes
        self._end = _round_up(self._metadata_start + self._rows.nbytes, FIRST_PAGE_SIZE)
        self._allocations = array("Q")  # row, pointer, size of every part

    def add(self, image: EncodedImage, label: int, key: str) -> None:
        """Append one row.

        Raises:
            StoreError: the row is larger than any page.
            OSError: the file can't be written.
        """
        key_bytes = key.encode("utf-8", "surrogateescape")
        origin = image.origin if self._reencoded else b""
        parts = (image.payload, key_bytes, origin)
        self._start_row(sum(map(len, parts)), key)
        start, places = self._end, []
        for part in parts:
            places.append(self._end if part else 0)
            if part:
                self._allocations.extend((self._next, self._end, len(part)))
            self._end += len(part)
        self._write(start, parts)
        offset = self._next * self._rows.itemsize
        _ROW_BYTES.pack_into(
            self._row_bytes, offset, image.mode, image.status, image.warns, image.height,
            image.width, places[0], len(image.payload), image.digest, label, places[1],
            len(key_bytes),
        )  # fmt: skip
        if self._reencoded:
            _ORIGIN_BYTES.pack_into(
                self._row_bytes, offset + _ROW_BYTES.size, places[2], len(origin)
            )
        self._next += 1

    def _start_row(self, size: int, key: str) -> None:
        while size > self._page_size:
            if self._page_size >= MAX_PAGE_SIZE:
                raise StoreError(
                    f"{key} needs {size} bytes in the beton, more than {MAX_PAGE_SIZE}: "
                    "re-encode it as JPEG or leave it out"
                )
            self._page_size *= 2
        if self._end % self._page_size + size > self._page_size:
            self._end = _round_up(self._end, self._page_size)

    def _write(self, start: int, parts: Sequence[bytes]) -> None:
        done = os.pwritev(self._file, parts, start)
        data = b"" if done == sum(map(len, parts)) else b"".join(parts)
        while done < len(data):  # the system may take less than it is given
            done += os.pwrite(self._file, data[done:], start + done)

    def finish(self) -> np.ndarray:
        """Complete the file.

        Returns:
            The metadata of all rows, `ROW` or `REENCODED_ROW` [num_rows].
        """
        if self._next != len(self._rows):
            raise ValueError(f"{self._next} of {len(self._rows)} rows were written")
        table_start = _round_up(self._end, self._page_size)
        self._write(table_start, [self._allocations.tobytes()])
        header = np.zeros(1, HEADER)[0]
        header["version"] = FILE_VERSION
        header["num_fields"] = len(self._descriptors)
        header["page_size"] = self._page_size
        header["num_samples"] = len(self._rows)
        header["alloc_table_ptr"] = table_start
        self._write(0, [header.tobytes(), self._descriptors.tobytes(), self._rows.tobytes()])
        return self._rows


def _round_up(position: int, step: int) -> int:
    return -(-position // step) * step
