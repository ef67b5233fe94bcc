"""Is this store whole and unchanged? Names every file that isn't.

Three depths. Fast: structure, presence and sizes of all files, foreign files and links. Hashes:
also every SHA-256. Full: also every chunk's checksum, the range of every value, what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage import receipts
from storage.adding import origin_problems
from storage.atomic import TEMPORARY
from storage.errors import CorruptStore, FormatVersion, IncompleteStore, StoreError
from storage.json_files import read_json
from storage.layout import array_layouts, node_metadata
from storage.limits import object_count
from storage.listing import FILE, LINK, Found, list_folder, look
from storage.manifest import (
    Manifest,
    expected_objects,
    file_entries,
    file_entry,
    foreign_objects,
    read_manifest,
)
from storage.store import MANIFEST, ROOT_METADATA, LabelStore
from storage.targets.constants import constant_problems
from storage.verify_values import Progress, check_blocks, check_measured

Entries = dict[str, tuple[int, str]]
Note = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a store.

    path: file (or array) relative to the store.
    kind: missing, size, hash, damaged, values, foreign, link, manifest, measured, origin or
        changed.
    """

    path: str
    kind: str
    detail: str


@dataclass
class VerifyReport:
    """What `verify` found. `root` is the Merkle root of a sealed store."""

    path: str
    full: bool
    hashes: bool = False
    sealed: bool = False
    root: str | None = None
    blocks: int = 0
    missing_blocks: list[int] = field(default_factory=list)
    missing_constants: list[str] = field(default_factory=list)  # targets that lack some
    objects: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 whole, 1 problems, 3 not finished yet."""
        return 1 if self.problems else 3 if self.missing_blocks or self.missing_constants else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `labelstore verify --json`."""
        return {**asdict(self), "ok": self.exit_code == 0}


def verify(
    path: Path | str,
    full: bool = False,
    progress: Progress | None = None,
    hashes: bool = False,
) -> VerifyReport:
    """Check a store on disk; problems are collected, not raised.

    Args:
        full: read and check every byte and value.
        progress: called with (blocks done, blocks) during a full check.
        hashes: compare every byte with its SHA-256, but don't decode; `full` does so too.
    Raises:
        StoreError: the path is no store at all.
        FormatVersion: an undamaged store of a newer format.
    """
    path = Path(path)
    if not (path / ROOT_METADATA).exists() and not (path / MANIFEST).exists():
        LabelStore.open(path)  # says what is wrong
    report = VerifyReport(path=str(path), full=full, hashes=hashes or full)
    damaged: set[str] = set()

    def note(name: str, kind: str, detail: str) -> None:
        if name not in damaged:
            report.problems.append(Problem(name, kind, detail))
            damaged.add(name)

    seal_before = look(path / MANIFEST)
    found = list_folder(path)
    manifest = _read_manifest(path, report, note)
    entries = dict(manifest.objects) if manifest else {}
    if manifest:
        _check_entries(path, found, entries, report.hashes, note)
    store = _open(path, ROOT_METADATA in damaged, entries.get(ROOT_METADATA), note)
    if store is None or (manifest and _asks_for_more(store, manifest, note)):
        return report
    report.blocks = store.blocks
    if not report.sealed:
        entries = _receipt_entries(store, report)
        report.missing_constants = store.missing_constants()
        _check_entries(path, found, entries, report.hashes, note)
    _check_names(store, manifest, found, report, note)
    _check_metadata(store, note)
    report.objects = len(entries)
    report.bytes = sum(size for size, _ in entries.values())
    if full:
        _check_values(store, report, damaged, note, progress)
        _check_constants(store, damaged, note)
        if report.sealed:
            for problem in origin_problems(store):
                note(ROOT_METADATA, "origin", problem)
    if report.hashes:
        _check_unchanged(path, found, entries, note)
    if look(path / MANIFEST) != seal_before:
        note(MANIFEST, "changed", "was replaced while the store was being checked")
    return report


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


def _asks_for_more(store: LabelStore, manifest: Manifest, note: Note) -> bool:
    """Whether the settings ask for more files than the manifest has; they aren't listed then."""
    wanted = object_count(array_layouts(store.spec))
    if wanted <= len(manifest.objects):
        return False
    note(ROOT_METADATA, "damaged",
         f"asks for {wanted:,} files, the manifest names {len(manifest.objects):,}")  # fmt: skip
    return True


def _check_entries(
    root: Path, found: dict[str, Found], entries: Entries, hashes: bool, note: Note
) -> None:
    """Compare files with their entries; only what the walk came upon is opened."""
    there = [name for name in entries if name in found and found[name].kind == FILE]
    fits = [name for name in there if found[name].size == entries[name][0]]
    fits.sort(key=lambda name: -entries[name][0])  # the largest first, so that no core waits long
    hashed = file_entries(root, fits) if hashes else {}
    for name, entry in sorted(entries.items()):
        item = found.get(name)
        if item is None or item.kind != FILE:
            link = item is not None and item.kind == LINK
            note(name, "link" if link else "missing", "expected a file")
        elif item.size != entry[0]:
            note(name, "size", f"has {item.size} bytes, expected {entry[0]}")
        elif hashes and name not in hashed:
            note(name, "damaged", "can't be read")
        elif hashes and hashed[name] != entry:
            note(name, "hash", f"SHA-256 is not {entry[1]}")


def _receipt_entries(store: LabelStore, report: VerifyReport) -> Entries:
    """Files by the receipts of an unfinished store; blocks without a receipt are missing."""
    entries: Entries = {}
    written = receipts.read_receipts(store.path, store.blocks)
    for block in range(store.blocks):
        receipt = written.get(block)
        if receipt is None or sorted(receipt.objects) != sorted(store.block_objects(block)):
            report.missing_blocks.append(block)
        else:
            entries |= receipt.objects
    return entries


def _check_names(
    store: LabelStore,
    manifest: Manifest | None,
    found: dict[str, Found],
    report: VerifyReport,
    note: Note,
) -> None:
    """The manifest, the settings and the folder name the same files."""
    expected = set(expected_objects(store))
    if manifest:
        for name in sorted(expected - set(manifest.objects)):
            note(name, "manifest", "is not in the manifest")
        for name in sorted(set(manifest.objects) - expected):
            note(name, "manifest", "is in the manifest, but not in the store's settings")
    for name, what in foreign_objects(expected, found):
        link = found[name.rstrip("/")].kind == LINK
        leftover = name.rpartition("/")[2].startswith(TEMPORARY)
        if link or not leftover or report.sealed:
            note(name, "link" if link else "foreign", what)


def _check_metadata(store: LabelStore, note: Note) -> None:
    """Group and array metadata say what the settings ask for."""
    for node, metadata in node_metadata(store.spec).items():
        name = f"{node}/{ROOT_METADATA}"
        try:
            found = read_json(store.path / name)
        except FileNotFoundError:
            note(name, "missing", "expected a file")
            continue
        except (OSError, ValueError) as error:
            note(name, "damaged", f"can't be read: {error}")
            continue
        if found != metadata:
            note(name, "damaged", "does not describe the array that the settings ask for")


def _check_constants(store: LabelStore, damaged: set[str], note: Note) -> None:
    """Constants and files of targets are those of the settings, and what their kinds can use."""
    for path, target in store.spec.targets.items():
        constants = {}
        for name in [*target.constants, *target.files]:
            if any(found.startswith(f"{path}/{name}/") for found in damaged):
                continue
            try:
                if name in target.files:
                    store.target_file(path, name)
                else:
                    constants[name] = store.read_constant(path, name)
            except IncompleteStore:
                continue
            except StoreError as error:
                note(f"{path}/{name}", "damaged", str(error))
        for name, what in constant_problems(target, constants):
            note(f"{path}/{name}", "values", what)


def _check_values(
    store: LabelStore,
    report: VerifyReport,
    damaged: set[str],
    note: Note,
    progress: Progress | None,
) -> None:
    layouts = array_layouts(store.spec)
    broken = any(f"{path}/{ROOT_METADATA}" in damaged for path in layouts)
    lost = set(report.missing_blocks)
    sound = [
        block
        for block in range(store.blocks)
        if block not in lost and not broken and damaged.isdisjoint(store.block_objects(block))
    ]
    done = store.blocks - len(sound)

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, store.blocks)

    found = check_blocks(store, sound, layouts, advance)
    for _, block in sorted(found.items()):
        for problem in block.problems:
            note(*problem)
    if report.sealed and len(found) == store.blocks and not report.problems:
        check_measured(
            store.spec,
            store.attributes.get("measured", {}),
            [block for _, block in sorted(found.items())],
            lambda detail: note(ROOT_METADATA, "measured", detail),
        )


def _check_unchanged(path: Path, before: dict[str, Found], entries: Entries, note: Note) -> None:
    """No file was replaced or written to between its checks."""
    after = list_folder(path)
    for name in sorted(entries):
        if name in before and after.get(name) != before[name]:
            note(name, "changed", "changed while the store was being checked")
