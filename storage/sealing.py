"""Closing a finished store: it is measured, every file hashed, and the manifest written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storage import receipts
from storage.atomic import TEMPORARY, write_atomic
from storage.canaries import ATTRIBUTE as CANARIES
from storage.canaries import gather_canaries
from storage.certificate import summarise_sample
from storage.errors import CorruptStore, IncompleteStore
from storage.format import ATTRIBUTE, ORIGIN, dataset_fingerprint, json_bytes
from storage.layout import group_metadata
from storage.listing import FOLDER, list_folder
from storage.locks import locked
from storage.manifest import (
    Manifest,
    expected_objects,
    file_entries,
    file_entry,
    foreign_objects,
    read_manifest,
)
from storage.measure import summarise
from storage.store import MANIFEST, ROOT_METADATA, LabelStore


def seal(store: LabelStore) -> Manifest:
    """Close a complete store: measure it, hash every file and write the manifest.

    Sealing again gives the same bytes. No writer may be at work.

    Raises:
        IncompleteStore: blocks are missing.
        CorruptStore: a file isn't what its receipt (or the manifest) says, or doesn't belong.
    """
    with locked(store.path):
        return _seal(store)


def _seal(store: LabelStore) -> Manifest:
    written = {} if store.is_sealed else receipts.read_receipts(store.path, store.blocks)
    missing = store.missing_blocks(written)
    if missing:
        raise IncompleteStore(
            f"{store.path}: {len(missing)} of {store.blocks} blocks are missing (first: "
            f"{missing[0]}): run the same `labelgen run` again to finish the store"
        )
    _sweep(store)
    if store.is_sealed:
        manifest = read_manifest(store.path)
        _check_entries(store.path, manifest.objects)
        return manifest
    _check_constants(store)
    blocks = [receipt for _, receipt in sorted(written.items())]
    objects = {
        name: receipt.objects[name]
        for receipt in blocks
        for name in store.block_objects(receipt.block)
    }
    _check_entries(store.path, objects)
    _write_measured(store, blocks, {name: size for name, (size, _) in objects.items()})
    for name in expected_objects(store):
        if name not in objects:
            objects[name] = file_entry(store.path / name)
    manifest = Manifest(objects, _provenance(blocks))
    write_atomic(store.path / MANIFEST, manifest.to_bytes())
    return manifest


def _check_constants(store: LabelStore) -> None:
    """What targets share is there, and is what the settings name."""
    missing = store.missing_constants()
    if missing:
        raise IncompleteStore(
            f"{store.path}: what {', '.join(missing)} shares has not been written: run the same "
            "`labelgen` command again to finish the store"
        )
    for path, target in store.spec.targets.items():
        for name in target.constants:
            store.read_constant(path, name)
        for name in target.files:
            store.target_file(path, name)


def _sweep(store: LabelStore) -> None:
    """Delete what killed writers left behind and refuse all else that isn't the store's."""
    found = list_folder(store.path)
    left = [name for name in found if name.rpartition("/")[2].startswith(TEMPORARY)]
    for name in left:
        if found.pop(name).kind != FOLDER:
            (store.path / name).unlink(missing_ok=True)
    for name, what in foreign_objects(expected_objects(store), found):
        raise CorruptStore(f"{store.path / name} {what}: move it away, then seal")


def _check_entries(root: Path, entries: Mapping[str, tuple[int, str]]) -> None:
    largest_first = sorted(entries, key=lambda name: -entries[name][0])
    found = file_entries(root, largest_first)
    for name, entry in entries.items():
        if found.get(name) != entry:
            raise CorruptStore(
                f"{root / name} is not what was written (size or SHA-256 differs): delete it and "
                "run the same `labelgen run` again"
            )


def _write_measured(
    store: LabelStore, blocks: list[receipts.Receipt], sizes: dict[str, int]
) -> None:
    """Put the measured summary and the certificate into the root group's attributes."""
    crops = store.spec.num_images * store.spec.num_views
    digests = store.read_array("images/digest", slice(None))
    # of labels that came with the store's parent: they are its very files
    kept = store.attributes.get(ORIGIN, {}).get("measured", {})
    store.attributes["measured"] = {
        "dataset_fingerprint": dataset_fingerprint(digests),
        "masked_images": int(np.count_nonzero(store.read_status())),
        "teachers": {
            name: dict(kept[name])
            if name in kept
            else summarise(receipt.sums[name] for receipt in blocks)
            for name in sorted(store.spec.teachers)
        },
    }
    # those of a store that was added to are of its views and images, which are these
    canaries = gather_canaries(receipt.canaries for receipt in blocks)
    canaries = canaries or store.attributes.get(ORIGIN, {}).get(CANARIES)
    if canaries:
        store.attributes["measured"][CANARIES] = canaries
    for name, measured in store.attributes["measured"]["teachers"].items():
        samples = [r.samples[name] for r in blocks if name in r.samples]
        certificate = summarise_sample(samples, sizes, name, crops)
        if certificate:
            measured["certificate"] = certificate
    for name, record in store.spec.teachers.items():
        record.measured.update(store.attributes["measured"]["teachers"][name])
    root = group_metadata({ATTRIBUTE: store.attributes})
    write_atomic(store.path / ROOT_METADATA, json_bytes(root))


def _provenance(blocks: list[receipts.Receipt]) -> dict[str, Any]:
    versions: dict[str, set[str]] = {}
    for receipt in blocks:
        for name, version in receipt.software.items():
            versions.setdefault(name, set()).add(version)
    return {
        "software": {name: sorted(found) for name, found in sorted(versions.items())},
        "devices": sorted({receipt.device for receipt in blocks}),
        "masked": [row for receipt in blocks for row in receipt.masked],
    }
