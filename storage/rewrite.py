"""A new store from sealed ones: whole files copied where they can be, the rest encoded again.

The store grows in `<out>.partial` and gets its name when it is sealed, so nothing half made is ever
taken for a store; the same command run again goes on where it was interrupted. One block is in
memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from storage.atomic import sync_folder, write_atomic
from storage.block import block_problems
from storage.chunks import encode_block
from storage.errors import CorruptStore, StoreError, StoreMismatch
from storage.format import ATTRIBUTE, ORIGIN, StoreSpec, json_bytes
from storage.layout import (
    ArrayLayout,
    array_layouts,
    constant_objects,
    group_metadata,
    node_metadata,
)
from storage.local import read_local
from storage.manifest import Manifest
from storage.origin import origin_record
from storage.parents import FIRST_VIEW, Parent
from storage.sealing import seal
from storage.store import ROOT_METADATA, LabelStore

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]


class Source(Protocol):
    """What a new store is made of."""

    @property
    def parents(self) -> Sequence[Parent]:
        """Sealed stores."""

    @property
    def spec(self) -> StoreSpec:
        """Settings of the new store."""

    @property
    def first_view(self) -> int:
        """Number of its first view in the sampler's stream."""

    def read(self, block: int) -> dict[str, Array]:
        """The new block's part of every array, by array path."""

    def whole_file(self, path: str, block: int, segment: int) -> tuple[int, str] | None:
        """(number of the parent, its file) that holds exactly this file's values, if one does."""


def write_store(
    out: Path | str,
    source: Source,
    kind: str,
    details: dict[str, Any],
    progress: Progress | None = None,
) -> Manifest:
    """Make, seal and name the store.

    Args:
        kind, details: for the record of its origin.
        progress: called with (blocks done, blocks).
    Raises:
        StoreError: `out` exists.
        StoreMismatch: `<out>.partial` was begun with something else.
        CorruptStore: a parent's file isn't what its manifest says.
    """
    out = Path(out)
    refuse_existing(out)
    copied = copied_files(source)
    attributes: dict[str, Any] = {ORIGIN: origin_record(kind, source.parents, copied, details)}
    if source.first_view:
        attributes[FIRST_VIEW] = source.first_view
    store = begin_store(partial_path(out), source.spec, attributes)
    for name in shared_files(source):
        number, theirs = copied[name]
        write_atomic(store.path / name, source.parents[number].content(theirs))
    missing = store.missing_blocks()
    for done, block in enumerate(missing, store.blocks - len(missing)):
        _write_block(store, source, block, copied)
        if progress:
            progress(done + 1, store.blocks)
    data = next(filter(None, (read_local(parent.store.path) for parent in source.parents)), None)
    store.write_local(data, {"command": kind, "parents": [p.root for p in source.parents]})
    manifest = seal(store)
    publish(store.path, out)
    return manifest


def partial_path(out: Path) -> Path:
    """Where a store grows until it is whole."""
    return out.with_name(f"{out.name}.partial")


def refuse_existing(out: Path) -> None:
    """Nothing is ever overwritten.

    Raises:
        StoreError: there is something.
    """
    if out.exists() or out.is_symlink():
        raise StoreError(f"{out} exists: choose another --out, or move it away")


def publish(partial: Path, out: Path) -> None:
    """Give a finished store its name."""
    refuse_existing(out)
    partial.rename(out)
    sync_folder(out.parent)


def begin_store(path: Path, spec: StoreSpec, attributes: dict[str, Any]) -> LabelStore:
    """Start a store with further root attributes, or open it where it was begun with the same.

    Raises:
        StoreMismatch: begun with other settings or other parents.
    """
    try:
        store = LabelStore.open_or_create(path, spec)
    except StoreMismatch as error:
        raise _begun_with_others(path) from error
    if any(store.attributes.get(name) != value for name, value in attributes.items()):
        if len(store.missing_blocks()) < store.blocks:
            raise _begun_with_others(path)
        store.attributes.update(attributes)
        root = json_bytes(group_metadata({ATTRIBUTE: store.attributes}))
        write_atomic(path / ROOT_METADATA, root)
    return store


def _begun_with_others(path: Path) -> StoreMismatch:
    return StoreMismatch(
        f"{path} was begun by another command (other settings, selection or parents): finish that "
        "one with the same command, delete the folder, or choose another --out"
    )


def copied_files(source: Source) -> dict[str, tuple[int, str]]:
    """Files of the new store that a parent already has, byte for byte, and where."""
    found: dict[str, tuple[int, str]] = {}
    for path, layout in array_layouts(source.spec).items():
        for block in range(source.spec.num_blocks):
            for segment in range(layout.num_segments):
                name = layout.object_paths(block, [segment])[0]
                theirs = source.whole_file(path, block, segment)
                if theirs is not None:
                    found[name] = theirs
    found |= shared_files(source)
    for path, values in node_metadata(source.spec).items():
        name = f"{path}/{ROOT_METADATA}"
        content = json_bytes(values)
        for number, parent in enumerate(source.parents):
            if name in parent.manifest.objects and parent.content(name) == content:
                found[name] = (number, name)
                break
    return found


def shared_files(source: Source) -> dict[str, tuple[int, str]]:
    """Constants and files of targets, and which parent has them; its record is the same."""
    found: dict[str, tuple[int, str]] = {}
    for path, target in source.spec.targets.items():
        for name in constant_objects(target):
            holders = (n for n, p in enumerate(source.parents) if path in p.spec.targets)
            found[name] = next(holders), name
    return found


def _write_block(
    store: LabelStore, source: Source, block: int, copied: dict[str, tuple[int, str]]
) -> None:
    arrays = source.read(block)
    for path, row, what in block_problems(store.spec, arrays):
        raise CorruptStore(f"{path}: image {row} of block {block} {what}: verify the parents")
    objects: dict[str, bytes] = {}
    for path, layout in array_layouts(store.spec).items():
        for segment in range(layout.num_segments):
            name = layout.object_paths(block, [segment])[0]
            if name in copied:
                number, theirs = copied[name]
                objects[name] = source.parents[number].content(theirs)
            else:
                objects[name] = encode_file(layout, arrays[path], segment)
    devices = {d for p in source.parents for d in p.manifest.provenance.get("devices", [])}
    store.put_block(block, objects, arrays, device=", ".join(sorted(devices)) or "unknown")


def encode_file(layout: ArrayLayout, values: Array, segment: int) -> bytes:
    """Bytes of one file: a block's values [n, M, ...] of one segment, or [n, ...] of them all.

    The same as `encode_block` gives for it: a chunk's bytes don't depend on its place.
    """
    if layout.shard:
        views = layout.shard[1]
        values = values[:, segment * views : (segment + 1) * views]
    alone = dataclasses.replace(layout, shape=values.shape)
    (content,) = encode_block(alone, range(len(values)), values).values()
    return content
