"""Receipts: which files of a block are whole. Local bookkeeping, outside the Merkle root."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.atomic import write_atomic
from storage.format import json_bytes
from storage.images import ImageStatus

FOLDER = "receipts"
RECEIPT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One finished block.

    objects: (bytes, hex SHA-256) of each file by its path in the store.
    masked: row, key and status of every image without labels.
    sums: what `measure_block` found, by teacher.
    samples: what `measure_sample` found, by teacher.
    """

    block: int
    objects: dict[str, tuple[int, str]]
    masked: list[dict[str, Any]]
    sums: dict[str, dict[str, float]]
    device: str
    software: dict[str, str]
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    written: str = field(default_factory=lambda: _now())
    version: int = RECEIPT_VERSION

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: size for name, (size, _) in self.objects.items()}


def write_receipt(store: Path, receipt: Receipt) -> None:
    """The last act of writing a block."""
    write_atomic(_path(store, receipt.block), json_bytes(asdict(receipt)))


def read_receipt(store: Path, block: int) -> Receipt | None:
    """A block's receipt; None where there is none that makes sense (the block is then missing)."""
    try:
        values = json.loads(_path(store, block).read_bytes())
        if values["version"] != RECEIPT_VERSION or values["block"] != block:
            return None
        values["objects"] = {
            str(name): (int(size), str(digest))
            for name, (size, digest) in values["objects"].items()
        }
        return Receipt(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remove_receipt(store: Path, block: int) -> None:
    """A block that is about to be rewritten isn't whole."""
    with contextlib.suppress(FileNotFoundError):
        _path(store, block).unlink()


def masked_rows(
    rows: range, keys: list[str], status: npt.NDArray[np.uint8]
) -> list[dict[str, Any]]:
    """Row, key and status of the images without labels."""
    return [
        {"row": rows[i], "key": keys[i].encode("utf-8", "replace").decode(),
         "status": ImageStatus(status[i]).name}
        for i in np.flatnonzero(status != ImageStatus.OK)
    ]  # fmt: skip


@functools.cache
def software() -> dict[str, str]:
    """Versions of what shapes the bytes of a store."""
    versions = {"python": platform.python_version()}
    for name in ("teachonce", "numpy", "zarr", "numcodecs"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def _path(store: Path, block: int) -> Path:
    return store / FOLDER / f"{block:06d}.json"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
