"""Receipts: which files of a block are whole. Local bookkeeping, outside the Merkle root."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.atomic import write_atomic
from storage.canaries import Canary
from storage.errors import UsageError
from storage.format import json_bytes
from storage.images import ImageStatus
from storage.json_files import read_json
from storage.typed import check_types

FOLDER = "receipts"
RECEIPT_VERSION = 1
_NAME = re.compile(r"[0-9]{6,12}\.json")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One finished block.

    objects: (bytes, hex SHA-256) of each file by its path in the store.
    masked: row, key and status of every image without labels.
    sums: what `measure_block` found, by teacher.
    samples: what `measure_sample` found, by teacher.
    canaries: `storage.canaries.Canary` values of crops of this block.
    process: id of the process that wrote it, on its machine; 0 where that is not known.
    """

    block: int
    objects: dict[str, tuple[int, str]]
    masked: list[dict[str, Any]]
    sums: dict[str, dict[str, float]]
    device: str
    software: dict[str, str]
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    canaries: list[dict[str, Any]] = field(default_factory=list)
    written: str = field(default_factory=lambda: _now())
    process: int = field(default_factory=os.getpid)
    version: int = RECEIPT_VERSION

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: size for name, (size, _) in self.objects.items()}


@dataclass(frozen=True, kw_only=True)
class _Masked:
    """An image without labels, as receipts and manifests list it."""

    row: int
    key: str
    status: str


def write_receipt(store: Path, receipt: Receipt) -> None:
    """The last act of writing a block."""
    write_atomic(_path(store, receipt.block), json_bytes(asdict(receipt)))


def read_receipt(store: Path, block: int) -> Receipt | None:
    """A block's receipt; None where there is none that makes sense (the block is then missing)."""
    try:
        values = read_json(_path(store, block))
        if values["version"] != RECEIPT_VERSION or values["block"] != block:
            return None
        values["objects"] = {
            str(name): (int(size), str(digest))
            for name, (size, digest) in values["objects"].items()
        }
        receipt = Receipt(**{"process": 0} | values)
        check_types(replace(receipt, objects={}))  # which are made of the right types above
        for row in receipt.masked:
            check_types(_Masked(**row))
        for canary in receipt.canaries:
            Canary(**canary)
        return receipt
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, UsageError):
        return None


def read_receipts(store: Path, blocks: int) -> dict[int, Receipt]:
    """All receipts of a store by block; files that aren't one's are passed over."""
    numbers = sorted(block for block in receipt_numbers(store) if block < blocks)
    found = {block: read_receipt(store, block) for block in numbers}
    return {block: receipt for block, receipt in found.items() if receipt is not None}


def receipt_numbers(store: Path) -> set[int]:
    """Blocks that have a receipt, going by its file's name alone."""
    try:
        names = [entry.name for entry in os.scandir(store / FOLDER)]
    except OSError:
        return set()
    return {int(name[:-5]) for name in names if _NAME.fullmatch(name)}


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
