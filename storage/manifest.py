"""Sealing: every file's size and SHA-256, one Merkle root over them, and what was measured.

The root is a tree hash as in RFC 6962 (leaf SHA-256(0x00 || line), node SHA-256(0x01 || left ||
right), split at the largest power of two below n) over the sorted lines "path size sha256", so a
part of a store can be proven against the root of the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage import receipts
from storage.atomic import remove_leftovers, write_atomic
from storage.certificate import summarise_sample
from storage.errors import CorruptStore, FormatVersion, IncompleteStore
from storage.format import ATTRIBUTE, dataset_fingerprint, json_bytes
from storage.layout import array_layouts, group_metadata, group_paths
from storage.local import LOCAL
from storage.measure import summarise
from storage.store import MANIFEST, ROOT_METADATA, LabelStore
from storage.threads import decoders, for_each

MANIFEST_VERSION = 1
CARD = ("README.md", "croissant.json", "manifest.json.sig")  # written about a store, once sealed
CHUNKS = "chunks.json"  # digests of chunks, which `push` adds (storage/remote/digests.py)
HASH_CHUNK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a sealed store consists of.

    objects: (bytes, hex SHA-256) of every file by its path, without the manifest and local files.
    provenance: software, devices and counts; informative, not under the root.
    """

    objects: dict[str, tuple[int, str]]
    provenance: dict[str, Any]

    @property
    def root(self) -> str:
        """Hex Merkle root."""
        return merkle_root(
            [f"{name} {size} {digest}" for name, (size, digest) in sorted(self.objects.items())]
        )

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: size for name, (size, _) in self.objects.items()}

    def to_bytes(self) -> bytes:
        """The manifest's file; its own checksum covers what the root does not."""
        values = {
            "manifest_version": MANIFEST_VERSION,
            "root": self.root,
            "objects": {name: list(entry) for name, entry in self.objects.items()},
            "provenance": self.provenance,
        }
        values["checksum"] = hashlib.sha256(json_bytes(values)).hexdigest()
        return json_bytes(values)


def merkle_root(lines: Sequence[str]) -> str:
    """Hex root of the RFC 6962 tree over `lines`, which the caller has sorted."""
    return _tree_hash([hashlib.sha256(b"\0" + line.encode()).digest() for line in lines]).hex()


def _tree_hash(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + _tree_hash(leaves[:split]) + _tree_hash(leaves[split:])).digest()


def read_manifest(store: Path) -> Manifest:
    """A sealed store's manifest.

    Raises:
        FormatVersion: written by a newer release.
        CorruptStore: not the bytes that `seal` wrote, or it names files outside the store.
    """
    path = store / MANIFEST
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The manifest that a file's bytes hold; `path` names the file in errors.

    Raises:
        FormatVersion, CorruptStore: as `read_manifest`.
    """
    try:
        values = json.loads(data)
        version = values["manifest_version"]
        if version != MANIFEST_VERSION and _checksum_holds(values):
            raise FormatVersion(
                f"{path} has version {version!r}; this release reads {MANIFEST_VERSION}: "
                "install a newer teachonce"
            )
        objects = {str(n): (int(size), str(digest)) for n, (size, digest) in
                   values["objects"].items()}  # fmt: skip
        manifest = Manifest(objects, values["provenance"])
        whole = manifest.to_bytes() == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptStore(f"{path} can't be read ({error!r}): fetch the store again") from error
    if not whole:
        raise CorruptStore(f"{path} is damaged (its checksum differs): fetch the store again")
    for name in objects:
        if not is_safe_name(name):
            raise CorruptStore(f"{path} names {name!r}, which is no file of a store")
    return manifest


def is_safe_name(name: str) -> bool:
    """Whether a manifest may name this file: relative, inside the store, not a local one."""
    parts = name.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and "\\" not in name
        and name.isprintable()
        and not is_local(name)
    )


def is_local(name: str) -> bool:
    """Files of a store folder that are not part of the store itself."""
    return name in (MANIFEST, LOCAL, CHUNKS, *CARD) or name.split("/")[0] == receipts.FOLDER


def expected_objects(store: LabelStore) -> list[str]:
    """Paths of all files that the store's settings ask for, sorted."""
    nodes = ["", *group_paths(store.spec), *array_layouts(store.spec)]
    names = [f"{node}/{ROOT_METADATA}" if node else ROOT_METADATA for node in nodes]
    for block in range(store.blocks):
        names += store.block_objects(block)
    return sorted(names)


def files_on_disk(root: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of every file and link below a store, local ones excepted; no link followed."""
    found: list[str] = []

    def walk(folder: Path | str, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    walk(entry.path, f"{name}/")
                elif not is_local(name):
                    found.append(name)

    walk(root, "")
    for name in sorted(found):
        yield name, root / name


def file_entry(path: Path) -> tuple[int, str]:
    """(bytes, hex SHA-256) of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def file_entries(root: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """`file_entry` of files by name, hashed on all cores; lost files and links are left out."""
    found: dict[str, tuple[int, str]] = {}

    def work(name: str) -> None:
        path = root / name
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                found[name] = file_entry(path)

    for_each(names, work, decoders())
    return found


def seal(store: LabelStore) -> Manifest:
    """Close a complete store: measure it, hash every file and write the manifest.

    Sealing again gives the same bytes. No writer may be at work.

    Raises:
        IncompleteStore: blocks are missing.
        CorruptStore: a file isn't what its receipt (or the manifest) says, or doesn't belong.
    """
    missing = store.missing_blocks()
    if missing:
        raise IncompleteStore(
            f"{store.path}: {len(missing)} of {store.blocks} blocks are missing (first: "
            f"{missing[0]}): run the same `labelgen run` again to finish the store"
        )
    remove_leftovers(store.path)
    _refuse_foreign(store)
    if store.is_sealed:
        manifest = read_manifest(store.path)
        _check_entries(store.path, manifest.objects)
        return manifest
    found = [receipts.read_receipt(store.path, block) for block in range(store.blocks)]
    blocks = [receipt for receipt in found if receipt is not None]
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


def _refuse_foreign(store: LabelStore) -> None:
    expected = set(expected_objects(store))
    for name, path in files_on_disk(store.path):
        if name not in expected:
            raise CorruptStore(f"{path} does not belong to the store: move it away, then seal")
        if path.is_symlink():
            raise CorruptStore(f"{path} is a link: a store holds plain files only")


def _check_entries(root: Path, entries: Mapping[str, tuple[int, str]]) -> None:
    found = file_entries(root, entries)
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
    store.attributes["measured"] = {
        "dataset_fingerprint": dataset_fingerprint(store.read_images().digest),
        "masked_images": int(np.count_nonzero(store.read_status())),
        "teachers": {
            name: summarise(receipt.sums[name] for receipt in blocks)
            for name in sorted(store.spec.teachers)
        },
    }
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


def _checksum_holds(values: dict[str, Any]) -> bool:
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return values.get("checksum") == hashlib.sha256(json_bytes(rest)).hexdigest()
