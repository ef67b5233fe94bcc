"""Is this store whole and unchanged? Names every file that isn't.

Fast: structure, presence and sizes of all files, foreign files and links. Full: also every
SHA-256, every chunk's checksum, the range of every value, and what was measured.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage import receipts
from storage.atomic import TEMPORARY
from storage.block import block_problems
from storage.errors import CorruptStore, FormatVersion, StoreError
from storage.format import dataset_fingerprint
from storage.layout import array_layouts, group_metadata, group_paths
from storage.manifest import (
    Manifest,
    expected_objects,
    file_entries,
    file_entry,
    files_on_disk,
    read_manifest,
)
from storage.measure import measure_block, summarise
from storage.store import MANIFEST, ROOT_METADATA, LabelStore

Progress = Callable[[int, int], None]
ROUNDING = 2e-6  # measured values are rounded to 1e-6; other machines' exp may differ in the last


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a store.

    path: file (or array) relative to the store.
    kind: missing, size, hash, damaged, values, foreign, link, manifest or measured.
    """

    path: str
    kind: str
    detail: str


@dataclass
class VerifyReport:
    """What `verify` found. `root` is the Merkle root of a sealed store."""

    path: str
    full: bool
    sealed: bool = False
    root: str | None = None
    blocks: int = 0
    missing_blocks: list[int] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 whole, 1 problems, 3 not finished yet."""
        return 1 if self.problems else 3 if self.missing_blocks else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `labelstore verify --json`."""
        return {**asdict(self), "ok": self.exit_code == 0}


def verify(path: Path | str, full: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Check a store on disk; problems are collected, not raised.

    Args:
        full: read and check every byte and value.
        progress: called with (blocks done, blocks) during a full check.
    Raises:
        StoreError: the path is no store at all.
        FormatVersion: an undamaged store of a newer format.
    """
    path = Path(path)
    if not (path / ROOT_METADATA).exists() and not (path / MANIFEST).exists():
        LabelStore.open(path)  # says what is wrong
    report = VerifyReport(path=str(path), full=full)
    damaged: set[str] = set()

    def note(name: str, kind: str, detail: str) -> None:
        if name not in damaged:
            report.problems.append(Problem(name, kind, detail))
            damaged.add(name)

    manifest = _read_manifest(path, report, note)
    entries = dict(manifest.objects) if manifest else {}
    if manifest:
        _check_entries(path, entries, full, note)
    store = _open(path, ROOT_METADATA in damaged, entries.get(ROOT_METADATA), note)
    if store is None:
        return report
    report.blocks = store.blocks
    if not report.sealed:
        entries = _receipt_entries(store, report)
        _check_entries(path, entries, full, note)
    _check_files(store, manifest, report, note)
    _check_metadata(store, note)
    report.objects = len(entries)
    report.bytes = sum(size for size, _ in entries.values())
    if full:
        _check_values(store, report, damaged, note, progress)
    return report


Note = Callable[[str, str, str], None]


def _read_manifest(path: Path, report: VerifyReport, note: Note) -> Manifest | None:
    report.sealed = (path / MANIFEST).is_file()
    if not report.sealed:
        return None
    try:
        manifest = read_manifest(path)
    except CorruptStore as error:
        note(MANIFEST, "manifest", str(error))
        return None
    report.root = manifest.root
    return manifest


def _open(
    path: Path, damaged: bool, entry: tuple[int, str] | None, note: Note
) -> LabelStore | None:
    try:
        return LabelStore.open(path)
    except FormatVersion:
        # a version that a damaged byte made up is damage, not a newer format
        if not damaged and entry in (None, file_entry(path / ROOT_METADATA)):
            raise
        note(ROOT_METADATA, "damaged", "its bytes are not those of the manifest")
    except StoreError as error:
        note(ROOT_METADATA, "damaged", str(error))
    return None


def _check_entries(root: Path, entries: dict[str, tuple[int, str]], full: bool, note: Note) -> None:
    hashed = file_entries(root, entries) if full else {}
    folder = str(root)
    for name, entry in sorted(entries.items()):
        try:
            status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - ten thousand times
        except OSError:
            note(name, "missing", "expected a file")
            continue
        if not stat.S_ISREG(status.st_mode):
            link = stat.S_ISLNK(status.st_mode)
            note(name, "link" if link else "missing", "expected a file")
        elif status.st_size != entry[0]:
            note(name, "size", f"has {status.st_size} bytes, expected {entry[0]}")
        elif full and hashed.get(name) != entry:
            note(name, "hash", f"SHA-256 is not {entry[1]}")


def _receipt_entries(store: LabelStore, report: VerifyReport) -> dict[str, tuple[int, str]]:
    """Files by the receipts of an unfinished store; blocks without a receipt are missing."""
    entries: dict[str, tuple[int, str]] = {}
    for block in range(store.blocks):
        receipt = receipts.read_receipt(store.path, block)
        names = store.block_objects(block)
        if receipt is None or sorted(receipt.objects) != sorted(names):
            report.missing_blocks.append(block)
        else:
            entries |= receipt.objects
    return entries


def _check_files(
    store: LabelStore, manifest: Manifest | None, report: VerifyReport, note: Note
) -> None:
    expected = set(expected_objects(store))
    if manifest:
        for name in sorted(expected - set(manifest.objects)):
            note(name, "manifest", "is not in the manifest")
        for name in sorted(set(manifest.objects) - expected):
            note(name, "manifest", "is in the manifest, but not in the store's settings")
    for name, path in files_on_disk(store.path):
        leftover = path.name.startswith(TEMPORARY)
        if path.is_symlink():
            note(name, "link", "a store holds plain files only")
        elif name not in expected and not (leftover and not report.sealed):
            note(name, "foreign", "does not belong to the store")


def _check_metadata(store: LabelStore, note: Note) -> None:
    """Group and array metadata say what the settings ask for."""
    wanted = {name: group_metadata({}) for name in group_paths(store.spec)}
    wanted |= {path: layout.metadata() for path, layout in array_layouts(store.spec).items()}
    for node, metadata in wanted.items():
        name = f"{node}/{ROOT_METADATA}"
        try:
            found = json.loads((store.path / name).read_bytes())
        except FileNotFoundError:
            note(name, "missing", "expected a file")
            continue
        except (OSError, ValueError) as error:
            note(name, "damaged", f"can't be read: {error}")
            continue
        if found != metadata:
            note(name, "damaged", "does not describe the array that the settings ask for")


def _check_values(
    store: LabelStore,
    report: VerifyReport,
    damaged: set[str],
    note: Note,
    progress: Progress | None,
) -> None:
    layouts = array_layouts(store.spec)
    broken = {path for path in layouts if f"{path}/{ROOT_METADATA}" in damaged}
    digests, sums = [], []
    for block in range(store.blocks):
        rows = store.block_rows(block)
        names = set(store.block_objects(block))
        if block not in report.missing_blocks and not (names & damaged) and not broken:
            where = slice(rows.start, rows.stop)
            views = slice(0, store.spec.num_views)
            try:
                arrays = {
                    path: store.read_array(path, where, views if layout.shard else None)
                    for path, layout in layouts.items()
                }
            except StoreError as error:
                note(f"block {block}", "damaged", str(error))
                continue
            for path, row, what in block_problems(store.spec, arrays):
                note(f"{path}/c/{block}", "values", f"image {rows.start + row} {what}")
            digests.append(arrays["images/digest"])
            sums.append(measure_block(store.spec, arrays))
        if progress:
            progress(block + 1, store.blocks)
    if report.sealed and len(digests) == store.blocks and not report.problems:
        _check_measured(store, digests, sums, note)


def _check_measured(
    store: LabelStore, digests: list[Any], sums: list[dict[str, dict[str, float]]], note: Note
) -> None:
    measured = store.attributes.get("measured", {})
    if measured.get("dataset_fingerprint") != dataset_fingerprint(np.concatenate(digests)):
        note(ROOT_METADATA, "measured", "dataset fingerprint differs from the images' digests")
    for name in store.spec.teachers:
        found = summarise(block[name] for block in sums)
        stated = measured.get("teachers", {}).get(name, {})
        for key, value in found.items():
            if not _agrees(value, stated.get(key)):
                note(ROOT_METADATA, "measured",
                     f"{name}: {key} is stated as {stated.get(key)}, measured {value}")  # fmt: skip


def _agrees(found: float | None, stated: object) -> bool:
    if found is None or not isinstance(stated, int | float):
        return found is None and stated is None
    return math.isclose(found, stated, rel_tol=0, abs_tol=ROUNDING)
