"""JSON of other people's stores: of bounded size and depth, without the numbers JSON has not."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_METADATA = 64 << 20  # bytes of one zarr.json or receipt
MOST_MANIFEST = 1 << 30  # bytes of manifest.json: some ten million files


def read_json(path: Path, most: int = MOST_METADATA) -> Any:
    """A file's JSON value.

    Args:
        most: bytes the file may have; no more are read.
    Raises:
        ValueError: too long, no JSON, or nested too deeply; the text says which.
        OSError: the system's own.
    """
    return parse_json(read_bounded(path, most))


def read_bounded(path: Path, most: int) -> bytes:
    """A file's bytes, at most that many.

    Raises:
        ValueError: there are more.
        OSError: the system's own.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not keep us waiting
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        if status.st_size > most:
            raise ValueError(f"more than {most:,} bytes")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(status.st_size + 1)  # asking for `most` would allocate it
    finally:
        os.close(handle)


def parse_json(data: bytes) -> Any:
    """The value of JSON bytes.

    Raises:
        ValueError: no JSON, NaN or infinite numbers, or nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
