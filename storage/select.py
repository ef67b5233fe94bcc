"""A part of a label store as a store of its own: fewer images, views, teachers or classes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import StoreMismatch, UsageError
from storage.format import StoreSpec, keys_hash
from storage.manifest import Manifest
from storage.parents import Parent
from storage.rewrite import Progress, refuse_existing, write_store
from storage.rows_source import RowsSource
from storage.select_topk import tail_error
from storage.store import LabelStore
from storage.targets.record import TargetRecord
from storage.teacher_record import TeacherRecord

DIGEST_LINE = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a store to keep; None: all.

    views: (first, last + 1) of the store's views.
    top_k: classes kept of every label that has more.
    images: keys of images, or `sha256:` and the hex digest of their file.
    classes: names of folder classes.
    labels: names of teachers; targets of others go with them.
    targets: paths such as "features/pooled"; none where empty.
    """

    views: tuple[int, int] | None = None
    top_k: int | None = None
    images: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = (getattr(self, field.name) for field in dataclasses.fields(self))
        if all(value is None for value in given):
            raise UsageError(
                "nothing to cut: give --views, --top-k, --images, --classes, --labels or --targets"
            )
        if self.images is not None and self.classes is not None:
            raise UsageError("give --images or --classes, not both")


def subset(
    path: LabelStore | Path | str,
    out: Path | str,
    selection: Selection,
    progress: Progress | None = None,
) -> Manifest:
    """Write the selected part of a sealed store to a new, sealed store.

    Files that don't change are copied byte for byte and proven against the parent's Merkle root
    (origin.py); the others are encoded again, with the same integers.

    Raises:
        UsageError: a selection that the store can't give.
        IncompleteStore: the store isn't sealed.
        StoreError: `out` exists. CorruptStore: the store is damaged.
    """
    refuse_existing(Path(out))
    parent = Parent.open(path)
    rows = _rows(parent, selection)
    first, last = _views(parent.spec, selection)
    teachers = _teachers(parent.spec, selection)
    targets = _targets(parent.spec, selection, teachers, first, last)
    spec = _spec(parent, rows, last - first, teachers, targets)
    source = RowsSource(
        parents=[parent], spec=spec, first_view=parent.first_view + first,
        owner=np.zeros(len(rows), np.int64), row=rows, offset=first,
    )  # fmt: skip
    return write_store(out, source, "subset", _details(parent, spec, first, last), progress)


def _views(spec: StoreSpec, selection: Selection) -> tuple[int, int]:
    first, last = selection.views or (0, spec.num_views)
    if not 0 <= first < last <= spec.num_views:
        raise UsageError(f"views {first}:{last}; the store has 0:{spec.num_views} (first:last + 1)")
    return first, last


def _teachers(spec: StoreSpec, selection: Selection) -> dict[str, TeacherRecord]:
    names = sorted(spec.teachers) if selection.labels is None else list(selection.labels)
    unknown = sorted(set(names) - set(spec.teachers))
    if unknown:
        raise UsageError(
            f"no labels of {', '.join(unknown)}; the store has "
            f"{', '.join(sorted(spec.teachers)) or 'none'}"
        )
    # what was measured on the whole is no measure of a part
    teachers = {n: dataclasses.replace(spec.teachers[n], measured={}) for n in sorted(set(names))}
    if selection.top_k is None:
        return teachers
    most = max((record.codec.top_k for record in teachers.values()), default=0)
    if not 1 <= selection.top_k <= most:
        raise UsageError(f"top-k is {selection.top_k}; the labels keep {most} classes at most")
    return {name: _cut_record(record, selection.top_k) for name, record in teachers.items()}


def _targets(
    spec: StoreSpec,
    selection: Selection,
    teachers: Mapping[str, TeacherRecord],
    first: int,
    last: int,
) -> dict[str, TargetRecord]:
    """Targets that are kept, with the views that are left of them."""
    wanted = selection.targets
    unknown = sorted(set(wanted or ()) - set(spec.targets))
    if unknown:
        raise UsageError(
            f"no target {', '.join(unknown)}; the store has "
            f"{', '.join(sorted(spec.targets)) or 'none'}"
        )
    kept = {}
    for path, record in sorted(spec.targets.items()):
        views = min(record.views, last) - first
        if (wanted is not None and path not in wanted) or (
            wanted is None and (views < 1 or record.teacher not in teachers)
        ):
            continue
        if record.teacher not in teachers:
            raise UsageError(
                f"{path} is of {record.teacher}, whose labels would be left out: keep them too"
            )
        if views < 1:
            raise UsageError(
                f"{path} has views 0:{record.views} only, and {first}:{last} has none of them"
            )
        kept[path] = dataclasses.replace(record, views=views)
    return kept


def _cut_record(record: TeacherRecord, top_k: int) -> TeacherRecord:
    kept = min(top_k, record.codec.top_k)
    return dataclasses.replace(record, codec=dataclasses.replace(record.codec, top_k=kept))


def _rows(parent: Parent, selection: Selection) -> npt.NDArray[np.int64]:
    """Selected rows of the parent, ascending."""
    if selection.classes is not None:
        return _rows_of_classes(parent, selection.classes)
    if selection.images is not None:
        return _rows_of_images(parent, selection.images)
    return np.arange(parent.spec.num_images)


def _rows_of_classes(parent: Parent, names: Sequence[str]) -> npt.NDArray[np.int64]:
    classes = list(parent.spec.dataset["classes"])
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise UsageError(
            f"{len(unknown)} classes are not in the store (first: {unknown[0]!r}); it has "
            f"{len(classes)}{f', such as {classes[0]!r}' if classes else ''}"
        )
    wanted = [classes.index(name) for name in names]
    rows = np.flatnonzero(np.isin(parent.images().target, wanted))
    if not len(rows):
        raise StoreMismatch(f"no image of the store is of class {', '.join(names)}")
    return rows


def _rows_of_images(parent: Parent, wanted: Sequence[str]) -> npt.NDArray[np.int64]:
    table = parent.images()
    row_of = {key: row for row, key in enumerate(table.key)}
    rows_of: dict[str, list[int]] = {}
    for row, digest in enumerate(table.digest):
        rows_of.setdefault(digest.tobytes().hex(), []).append(row)
    rows: set[int] = set()
    unknown = []
    for line in wanted:
        digest_line = DIGEST_LINE.fullmatch(line)
        if line in row_of:
            rows.add(row_of[line])
        elif digest_line and digest_line[1] in rows_of:
            rows.update(rows_of[digest_line[1]])
        else:
            unknown.append(line)
    if unknown or not rows:
        example = f" (first: {unknown[0]!r})" if unknown else ""
        raise UsageError(
            f"{len(unknown)} of {len(wanted)} listed images are not in the store{example}; "
            f"expected keys such as {table.key[0]!r}, or sha256:<hex digest of the file>"
        )
    return np.array(sorted(rows), np.int64)


def _spec(
    parent: Parent,
    rows: npt.NDArray[np.int64],
    num_views: int,
    teachers: dict[str, TeacherRecord],
    targets: dict[str, TargetRecord],
) -> StoreSpec:
    """Settings of the subset. Blocks, planes and files keep their sizes, so that they can be
    copied; classes keep their numbers."""
    dataset = dict(parent.spec.dataset)
    if len(rows) < parent.spec.num_images:
        key = parent.images().key
        dataset |= {"num_images": len(rows), "keys_hash": keys_hash(key[row] for row in rows)}
    return dataclasses.replace(
        parent.spec, num_images=len(rows), num_views=num_views, dataset=dataset,
        teachers=teachers, targets=targets,
    )  # fmt: skip


def _details(parent: Parent, spec: StoreSpec, first: int, last: int) -> dict[str, Any]:
    """The selection, and what it costs in exactness, for the record of the store's origin."""
    before = parent.spec.teachers
    cut = {
        name: [before[name].codec.top_k, record.codec.top_k]
        for name, record in spec.teachers.items()
        if record.codec.top_k < before[name].codec.top_k
    }
    selection: dict[str, Any] = {
        "views": [first, last],
        "images": [parent.spec.num_images, spec.num_images],
        "labels": sorted(spec.teachers),
        "top_k": cut,
    }
    if parent.spec.targets:
        selection["targets"] = {path: record.views for path, record in spec.targets.items()}
    error = {name: round(tail_error(before[name].codec), 6) for name in cut}
    return {"selection": selection, "max_added_error": error}
