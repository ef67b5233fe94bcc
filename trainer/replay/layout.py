"""FFCV's file layout, written sequentially: the same images give the same bytes.

    header · field descriptors · metadata of all rows · [pages of data] · allocation table

FFCV's own DatasetWriter lets workers race for pages (no two runs alike) and waits for ever
when one dies. The types are those of `ffcv/types.py` 1.0.2 (file version 2), repeated here so
that betons can be written and read where FFCV can't be built; a test compares the two.

Nothing of a row crosses a page boundary; a row larger than the page doubles the page, which
breaks no earlier row because the borders of larger pages are a subset of those of smaller ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from storage.errors import StoreError
from trainer.replay.encode import EncodedImage

FILE_VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
DESCRIPTOR = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE_RECORD = np.dtype(
    [
        ("mode", "<u1"),
        ("status", "<u1"),
        ("warns", "<u1"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("ptr", "<u8"),
        ("size", "<u8"),
        ("digest", "<u1", (32,)),
    ]
)
KEY_RECORD = np.dtype([("ptr", "<u8"), ("size", "<u8")])
# name -> FFCV's type id (255: custom, 1: IntField, 3: BytesField)
FIELDS = {"image": 255, "label": 1, "key": 3}
# members f0 (image), f1 (label), f2 (key)
ROW = np.dtype([("", IMAGE_RECORD), ("", "<i8"), ("", KEY_RECORD)], align=True)
FIRST_PAGE_SIZE = 1 << 23  # FFCV's default, 8 MiB
MAX_PAGE_SIZE = 1 << 31  # the header holds it in 32 bits


def fill_image_record(record: Any, image: EncodedImage, pointer: int) -> None:
    """One row's image record; `pointer` is where its payload lies in the file."""
    for name in ("mode", "status", "warns", "height", "width"):
        record[name] = getattr(image, name)
    record["digest"] = np.frombuffer(image.digest, np.uint8)
    record["ptr"], record["size"] = pointer, len(image.payload)


class BetonWriter:
    """Writes rows in order to an open file; `finish` writes header and metadata.

    Memory: the metadata of all rows (about 90 bytes each) and one row's payload.
    """

    def __init__(self, file: BinaryIO, num_rows: int) -> None:
        self._file = file
        self._rows = np.zeros(num_rows, ROW)
        self._next = 0
        self._page_size = FIRST_PAGE_SIZE
        self._descriptors = _field_descriptors()
        self._metadata_start = HEADER.itemsize + self._descriptors.nbytes
        self._end = _round_up(self._metadata_start + self._rows.nbytes, FIRST_PAGE_SIZE)
        self._allocations: list[tuple[int, int, int]] = []

    def add(self, image: EncodedImage, label: int, key: str) -> None:
        """Append one row.

        Raises:
            StoreError: the row is larger than any page.
            OSError: the file can't be written.
        """
        key_bytes = key.encode("utf-8", "surrogateescape")
        self._start_row(len(image.payload) + len(key_bytes), key)
        row = self._rows[self._next]
        fill_image_record(row["f0"], image, self._append(image.payload))
        row["f1"] = label
        row["f2"] = (self._append(key_bytes), len(key_bytes))
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

    def _append(self, data: bytes) -> int:
        if not data:
            return 0
        pointer, self._end = self._end, self._end + len(data)
        self._allocations.append((self._next, pointer, len(data)))
        self._file.seek(pointer)
        self._file.write(data)
        return pointer

    def finish(self) -> np.ndarray:
        """Complete the file.

        Returns:
            The metadata of all rows, `ROW` [num_rows].
        """
        if self._next != len(self._rows):
            raise ValueError(f"{self._next} of {len(self._rows)} rows were written")
        table = np.array(self._allocations, dtype=ALLOCATION)
        table_start = _round_up(self._end, self._page_size)
        self._file.seek(table_start)
        self._file.write(table.tobytes())
        header = np.zeros(1, HEADER)[0]
        header["version"] = FILE_VERSION
        header["num_fields"] = len(FIELDS)
        header["page_size"] = self._page_size
        header["num_samples"] = len(self._rows)
        header["alloc_table_ptr"] = table_start
        self._file.seek(0)
        self._file.write(header.tobytes() + self._descriptors.tobytes())
        self._file.write(self._rows.tobytes())
        return self._rows


def read_rows(path: Path) -> np.ndarray:
    """The metadata of all rows, `ROW` [N].

    Raises:
        ValueError: not a beton of this layout, or cut short.
    """
    header = np.fromfile(path, HEADER, count=1)
    if not header.size or int(header[0]["version"]) != FILE_VERSION:
        raise ValueError("no FFCV header")
    descriptors = _field_descriptors()
    found = np.fromfile(path, DESCRIPTOR, count=len(FIELDS), offset=HEADER.itemsize)
    if header[0]["num_fields"] != len(FIELDS) or found.tobytes() != descriptors.tobytes():
        raise ValueError("other fields than trainer pack writes")
    offset = HEADER.itemsize + descriptors.nbytes
    rows = np.fromfile(path, ROW, count=int(header[0]["num_samples"]), offset=offset)
    table = np.fromfile(path, ALLOCATION, offset=int(header[0]["alloc_table_ptr"]))
    wanted = np.count_nonzero(rows["f0"]["size"]) + np.count_nonzero(rows["f2"]["size"])
    if len(rows) != header[0]["num_samples"] or len(table) != wanted:
        raise ValueError("the file is cut short")
    return rows


def _field_descriptors() -> np.ndarray:
    descriptors = np.zeros(len(FIELDS), DESCRIPTOR)
    for descriptor, (name, type_id) in zip(descriptors, FIELDS.items(), strict=True):
        encoded = np.frombuffer(name.encode("ascii"), np.uint8)
        descriptor["type_id"] = type_id
        descriptor["name"][: encoded.size] = encoded
    return descriptors


def _round_up(position: int, step: int) -> int:
    return -(-position // step) * step
