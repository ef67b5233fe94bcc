"""More labels and targets of the views that a sealed store has: a new store beside the old one.

Nothing is rewritten. The new store's folder holds the parent's files themselves (hard links, or
copies on another disk), its settings name the parent's teachers and targets and the new ones, and
the record of its origin proves the old files against the parent's Merkle root. A block's receipt
comes when what is added to it is whole, so an interrupted addition goes on block by block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import make_folder, sync_folder, write_atomic
from storage.block_values import AddedBlock, value_arrays, value_problems
from storage.block_writer import encode_arrays, measure_samples, put_block
from storage.canaries import ATTRIBUTE as CANARIES
from storage.errors import CorruptStore, StoreError, UsageError
from storage.format import ORIGIN, StoreSpec, json_bytes
from storage.images import ImageStatus
from storage.json_files import MOST_MANIFEST, read_json
from storage.local import read_local
from storage.manifest import file_entry, read_manifest
from storage.origin import check_origin, origin_record
from storage.parents import FIRST_VIEW, Parent
from storage.receipts import FOLDER
from storage.rewrite import begin_store
from storage.store import ROOT_METADATA, LabelStore
from storage.targets.record import TargetRecord
from storage.teacher_record import TeacherRecord

__all__ = ["AddedBlock", "added_names", "begin_addition", "origin_problems", "put_added"]

ADD = "add"  # kind of such an origin
KEPT = "parent.json"  # among the receipts: sizes and hashes of the parent's files


@dataclass(frozen=True)
class Added:
    """What of a store was added to it: the part of its settings that `value_arrays` takes."""

    num_views: int
    teachers: dict[str, TeacherRecord]
    targets: dict[str, TargetRecord]

    @staticmethod
    def of(store: LabelStore) -> Added:
        """Of a store that `begin_addition` started.

        Raises:
            UsageError: it isn't one.
        """
        names = added_names(store)
        if names is None:
            raise UsageError(f"{store.path} was not begun by `begin_addition`: write whole blocks")
        spec = store.spec
        return Added(
            num_views=spec.num_views,
            teachers={name: spec.teachers[name] for name in names["labels"]},
            targets={path: spec.targets[path] for path in names["targets"]},
        )

    def holds(self, path: str) -> bool:
        """Whether an array, or a file of the store, is among what was added."""
        folder, _, rest = path.partition("/")
        name = rest.split("/")[0]
        if folder == "labels":
            return name in self.teachers
        kinds = {target.kind for target in self.targets.values()}
        return f"{folder}/{name}" in self.targets or (name == ROOT_METADATA and folder in kinds)


def begin_addition(
    parent: LabelStore | Path | str,
    out: Path | str,
    teachers: Mapping[str, TeacherRecord] | None = None,
    targets: Mapping[str, TargetRecord] | None = None,
) -> LabelStore:
    """Start (or go on with) a store that has more labels or targets of a sealed store's views.

    The writer gives each missing block to `put_added`, the new targets' constants to
    `write_constants`, and seals.

    Args:
        parent: of one that lies elsewhere all files are fetched.
        teachers: further teachers by name. targets: further targets by path.
    Raises:
        UsageError: nothing to add, or what the store has already.
        IncompleteStore: the parent isn't sealed. CorruptStore: one of its files is missing.
        StoreError, StoreMismatch: `out` is something else, or was begun for something else.
    """
    source = Parent.open(parent)
    out = Path(out)
    spec = _widened(source, teachers or {}, targets or {})
    kept = {n: entry for n, entry in source.manifest.objects.items() if n != ROOT_METADATA}
    attributes = _attributes(source, kept, teachers or {}, targets or {})
    if (out / ROOT_METADATA).exists():
        begin_store(out, spec, attributes)  # refuses another store before a file is put into it
    else:
        LabelStore.refuse_foreign(out, spec)
    _link_files(source, out, kept)
    write_atomic(out / FOLDER / KEPT, json_bytes({"root": source.root, "objects": kept}))
    store = begin_store(out, spec, attributes)
    if not store.is_sealed:
        run = {"command": ADD, "parents": [source.root]}
        store.write_local(read_local(source.store.path), run)
    return store


def put_added(store: LabelStore, block: int, data: AddedBlock, device: str) -> None:
    """`LabelStore.put_added`: write the new arrays of a block, then its receipt."""
    added, rows = Added.of(store), store.block_rows(block)
    where = slice(rows.start, rows.stop)
    about = {
        f"images/{name}": store.read_array(f"images/{name}", where)
        for name in ("key", "status", "target")
    }
    ok = np.asarray(about["images/status"] == ImageStatus.OK)
    arrays = value_arrays(added, rows, data, ~ok)
    for path, row, what in value_problems(added, arrays, ok):
        raise UsageError(f"{path}: row {rows.start + row} {what}")
    layouts = {path: layout for path, layout in store.layouts.items() if added.holds(path)}
    entries = _kept_entries(store)
    put_block(
        store,
        block,
        encode_arrays(layouts, rows, arrays),
        about | arrays,
        device,
        measure_samples(store, data, arrays),
        kept={
            name: entries[name]
            for path, layout in store.layouts.items()
            if path not in layouts
            for name in layout.block_objects(block)
        },
    )


def added_names(store: LabelStore) -> dict[str, list[str]] | None:
    """Teachers ("labels") and target paths ("targets") that were added; None: of another kind."""
    record = store.attributes.get(ORIGIN, {})
    if record.get("kind") != ADD:
        return None
    try:
        added = record["added"]
        names = {kind: list(added[kind]) for kind in ("labels", "targets")}
        lost = {*names["labels"]} - {*store.spec.teachers}
        lost |= {*names["targets"]} - {*store.spec.targets}
    except (KeyError, TypeError) as error:
        raise CorruptStore(f"{store.path}: its origin can't be read ({error!r})") from error
    if lost:
        raise CorruptStore(
            f"{store.path}: its origin names {min(lost)!r}, which its settings don't"
        )
    return names


def _widened(
    source: Parent, teachers: Mapping[str, TeacherRecord], targets: Mapping[str, TargetRecord]
) -> StoreSpec:
    spec, where = source.spec, source.store.path
    if not teachers and not targets:
        raise UsageError("nothing to add: give teachers or targets")
    for name in [*teachers, *targets]:
        if name in spec.teachers or name in spec.targets:
            raise UsageError(f"{where} has {name} already: add what it doesn't have")
    return dataclasses.replace(
        spec,
        teachers={**spec.teachers, **teachers},
        targets={**spec.targets, **targets},
    )


def _attributes(
    source: Parent,
    kept: Mapping[str, tuple[int, str]],
    teachers: Mapping[str, TeacherRecord],
    targets: Mapping[str, TargetRecord],
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "added": {"labels": sorted(teachers), "targets": sorted(targets)},
        "measured": {name: t.measured for name, t in sorted(source.spec.teachers.items())},
    }
    canaries = source.store.attributes.get("measured", {}).get(CANARIES)
    if canaries:
        details[CANARIES] = canaries
    copied = {name: (0, name) for name in kept}
    attributes: dict[str, Any] = {ORIGIN: origin_record(ADD, [source], copied, details)}
    if source.first_view:
        attributes[FIRST_VIEW] = source.first_view
    # as a store gives it back
    plain: dict[str, Any] = json.loads(json_bytes(attributes))
    return plain


def _link_files(source: Parent, out: Path, kept: Mapping[str, tuple[int, str]]) -> None:
    """Put the parent's files into the new folder, without copying bytes where the disk allows."""
    source.store.fetch_files(list(kept))
    folders = {(out / name).parent for name in kept}
    for folder in sorted(folders):
        make_folder(folder)
    for name, entry in kept.items():
        theirs, ours = source.store.path / name, out / name
        try:
            _link(theirs, ours, entry)
        except FileNotFoundError:
            raise CorruptStore(f"{theirs} is missing: fetch the store again") from None
    for folder in sorted(folders):
        sync_folder(folder)


def _link(theirs: Path, ours: Path, entry: tuple[int, str]) -> None:
    """Sealing compares every byte with the parent's hashes, so only what differs here is looked
    at closely."""
    if ours.exists():
        if ours.samefile(theirs) or file_entry(ours) == entry:
            return
        ours.unlink()  # cut short by a crash
    try:
        os.link(theirs, ours)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        write_atomic(ours, theirs.read_bytes())


def _kept_entries(store: LabelStore) -> dict[str, tuple[int, str]]:
    """Sizes and hashes of the parent's files, from its manifest."""
    path = store.path / FOLDER / KEPT
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        values = read_json(path, MOST_MANIFEST)
        if values["root"] == store.attributes[ORIGIN]["parents"][0]["root"]:
            return {str(n): (int(size), str(h)) for n, (size, h) in values["objects"].items()}
    raise UsageError(f"{path} can't be read: begin the same addition again, which writes it")


def origin_problems(store: LabelStore) -> list[str]:
    """What doesn't hold of a sealed store's origin: proofs, and for an addition that every file
    which it didn't write is proven to be its parent's."""
    record = store.attributes.get(ORIGIN)
    if record is None:
        return []
    found = list(check_origin(store).problems)
    try:
        added = Added.of(store) if added_names(store) is not None else None
        proven = {own for _, own, _ in record["ancestors"][0]["objects"]} if added else set()
    except (StoreError, KeyError, IndexError, TypeError, ValueError) as error:
        return [*found, f"the store's record of its origin can't be read ({error!r})"]
    if added is None:
        return found
    names = (name for name in read_manifest(store.path).objects if name != ROOT_METADATA)
    old = {name for name in names if not added.holds(name)}
    return found + [f"{name} is not proven to be the parent's" for name in sorted(old - proven)]
