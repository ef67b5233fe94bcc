"""Zarr at arm's length: blocks become file bytes in memory, files become arrays.

Writing goes through a memory store, so that this package alone decides when bytes reach the
disk (atomically, flushed, hashed). Reading goes through `decode.py`, or Zarr after a check that
every file is there: Zarr takes a missing file for fill values. No reader meets metadata that says
anything else than the store's settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.decode import is_known
from storage.errors import CorruptStore
from storage.format import json_bytes
from storage.json_files import read_json
from storage.layout import ArrayLayout

Array = npt.NDArray[Any]


def encode_block(layout: ArrayLayout, rows: range, values: Array) -> dict[str, bytes]:
    """File bytes of one block of one array, by path relative to the store.

    Args:
        rows: the block's rows.
        values: [len(rows), ...] in the layout's shape and dtype.
    """
    import zarr
    from zarr.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    objects: dict[str, Any] = {"zarr.json": Buffer.from_bytes(json_bytes(layout.metadata()))}
    opened: Any = zarr.open_array(MemoryStore(objects), mode="r+")
    # chunks that hold only fill values (masked images) are written too: absent means lost
    array: Any = zarr.Array(
        zarr.AsyncArray(
            metadata=opened.metadata,
            store_path=opened.store_path,
            config={"write_empty_chunks": True},
        )
    )
    array[rows.start : rows.stop] = values
    return {
        f"{layout.path}/{key}": value.to_bytes()
        for key, value in sorted(objects.items())
        if key != "zarr.json"
    }


class ArrayReader:
    """Reads one array of a store on disk; the metadata is parsed and compared once.

    `decode.py` decodes it where it knows the codecs, Zarr elsewhere.

    Raises:
        CorruptStore: the metadata isn't what the store's settings ask for. Whatever shape, type
            or codec it names instead, nothing is allocated or run for it.
    """

    def __init__(self, root: Path, layout: ArrayLayout) -> None:
        self._layout = layout
        self._folder = root / layout.path
        self._array: Any = None  # opened where Zarr has to read
        try:
            found = read_json(self._folder / "zarr.json")
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if found != layout.metadata():
            raise CorruptStore(
                f"{self._folder / 'zarr.json'} does not describe the array that the store's "
                "settings ask for: fetch the store again"
            )
        if not is_known(layout):
            self._array = self._open()

    def _open(self) -> Any:
        import zarr
        from zarr.storage import LocalStore

        try:
            return zarr.open_array(
                LocalStore(self._folder, read_only=True), mode="r", zarr_format=3
            )
        except Exception as error:  # codecs raise many types
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> CorruptStore:
        return CorruptStore(
            f"{self._folder / 'zarr.json'} can't be read ({first_line(error)}): "
            "fetch the store again, or label again into a new one"
        )

    @property
    def is_direct(self) -> bool:
        """Whether `decode.read_parts` reads this array."""
        return self._array is None

    def read(self, rows: slice, views: slice | None = None) -> Array:
        """A part of the array by Zarr. The caller has checked that its files exist.

        Raises:
            CorruptStore: a chunk doesn't decode (its checksum differs).
        """
        try:
            return np.asarray(self._array[rows if views is None else (rows, views)])
        except Exception as error:  # RuntimeError, ValueError, ...: any codec's own
            raise CorruptStore(
                f"{self._folder}: a chunk can't be decoded ({first_line(error)}): run "
                f"`labelstore verify --full` to find the damaged file"
            ) from error


def first_line(error: BaseException) -> str:
    """An exception's text in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
