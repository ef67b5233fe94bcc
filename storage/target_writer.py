"""Writing what a target shares: constants and files, once for the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from storage.atomic import write_atomic
from storage.chunks import Array, encode_block
from storage.errors import StoreError, UsageError
from storage.layout import constant_layouts
from storage.targets.constants import constant_problems
from storage.targets.record import TargetRecord

if TYPE_CHECKING:
    from storage.store import LabelStore


def write_constants(
    store: LabelStore,
    record: TargetRecord,
    constants: Mapping[str, Array],
    files: Mapping[str, bytes],
) -> None:
    """Put a target's constants and files in place; those that are there with these bytes stay.

    Raises:
        UsageError: others than the settings name, or values that the kind can't use.
        StoreError: a sealed store, and its bytes would change.
    """
    _expect_names(record, "constants", constants, record.constants)
    _expect_names(record, "files", files, record.files)
    for name, values in constants.items():
        if not record.constants[name].holds(np.asarray(values)):
            raise UsageError(f"{record.path}/{name} is not the constant that the settings name")
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != record.files[name]:
            raise UsageError(f"{record.path}/{name} is not the file that the settings name")
    for name, what in constant_problems(record, constants):
        raise UsageError(f"{record.path}/{name} {what}")
    layouts = constant_layouts(store.spec)
    objects = {f"{record.path}/{name}": data for name, data in files.items()}
    for name, values in constants.items():
        layout = layouts[f"{record.path}/{name}"]
        objects |= encode_block(layout, range(layout.shape[0]), np.asarray(values))
    for name, content in objects.items():
        path = store.path / name
        if path.is_file() and path.read_bytes() == content:
            continue
        if store.is_sealed:
            _check_repair(store, name, content)
        write_atomic(path, content)


def _check_repair(store: LabelStore, name: str, content: bytes) -> None:
    """A sealed store gets back only what it had."""
    from storage.manifest import read_manifest

    entry = len(content), hashlib.sha256(content).hexdigest()
    if read_manifest(store.path).objects.get(name) != entry:
        raise StoreError(
            f"{store.path} is sealed, and {name} would change: write a new store with another --out"
        )


def _expect_names(
    record: TargetRecord, what: str, given: Iterable[str], wanted: Iterable[str]
) -> None:
    if sorted(given) != sorted(wanted):
        raise UsageError(f"{record.path}: {what} {sorted(given)}; expected {sorted(wanted)}")
