"""What two label stores have in common and where they differ, value by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.compare_targets import common_targets, compare_target
from storage.format import StoreSpec, differences
from storage.images import ImageStatus
from storage.label_arrays import from_arrays, label_parts
from storage.layout import array_layouts
from storage.manifest import read_manifest
from storage.parents import first_view
from storage.store import LabelStore
from storage.tables import ImageTable

Progress = Callable[[int, int], None]
Rows = npt.NDArray[np.int64]


@dataclass
class DiffReport:
    """What `diff` found; counts are of images, views or labels, examples are keys.

    settings: every setting that differs, with both values.
    images: by kind ("only_a", "only_b", "changed", "renamed", "target", "status") the keys.
    views: compared ones, and how many have another box, flip or draw.
    labels: for each teacher that both have: compared, and how many differ in ids, values, tail.
    targets: for each that both keep alike: compared views, and how many have other vectors.
    """

    same_root: bool = False
    settings: list[str] = field(default_factory=list)
    images: dict[str, list[str]] = field(default_factory=dict)
    common_images: int = 0
    common_views: tuple[int, int] = (0, 0)
    only_a: dict[str, Any] = field(default_factory=dict)
    only_b: dict[str, Any] = field(default_factory=dict)
    views: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    first_label: dict[str, str] = field(default_factory=dict)
    targets: dict[str, dict[str, int]] = field(default_factory=dict)
    first_target: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Same settings, images, views and labels (bytes and origin may differ)."""
        different = (
            *self.images.values(), self.settings, self.only_a, self.only_b,
            self.views.get("different", 0),
            *(counts["different"] for counts in self.labels.values()),
            *(counts["different"] for counts in self.targets.values()),
        )  # fmt: skip
        return not any(different)

    def to_json(self, examples: int) -> dict[str, Any]:
        """Plain values; lists of images are cut."""
        return {
            "equal": self.equal,
            "same_root": self.same_root,
            "settings": self.settings,
            "images": {
                kind: {"count": len(keys), "examples": keys[:examples]}
                for kind, keys in self.images.items()
            },
            "common_images": self.common_images,
            "common_views": list(self.common_views),
            "only_a": self.only_a,
            "only_b": self.only_b,
            "views": self.views,
            "labels": self.labels,
            "first_label": self.first_label,
            "targets": self.targets,
            "first_target": self.first_target,
        }


def diff(a: LabelStore, b: LabelStore, progress: Progress | None = None) -> DiffReport:
    """Compare two complete stores; images are paired by content, then by key.

    Stores sealed under one Merkle root are equal and aren't read (`verify --full` says whether the
    disk still holds what was sealed).

    Raises:
        IncompleteStore, CorruptStore: a store can't be read.
    """
    report = DiffReport()
    if a.is_sealed and b.is_sealed:
        report.same_root = read_manifest(a.path).root == read_manifest(b.path).root
    if report.same_root:
        report.common_images = a.spec.num_images
        report.common_views = (first_view(a), first_view(a) + a.spec.num_views)
        return report
    report.settings = differences(_settings(a.spec), _settings(b.spec))
    ours, theirs = a.read_images(), b.read_images()
    pairs = _compare_images(report, ours, theirs)
    _compare_extent(report, a, b)
    first, last = report.common_views
    if len(pairs) and last > first:
        _compare_values(report, a, b, pairs, ours.key, progress)
    return report


def _settings(spec: StoreSpec) -> dict[str, Any]:
    """What a store's numbers mean; extent and teachers are compared on their own."""
    values = spec.settings()
    for name in ("num_images", "num_views", "teachers", "targets", "view_codec"):
        values.pop(name, None)
    for name in ("num_images", "keys_hash"):
        values["dataset"].pop(name, None)
    return values


def _compare_images(report: DiffReport, ours: ImageTable, theirs: ImageTable) -> Rows:
    """Pairs [P, 2] of rows with one content, ascending in ours."""
    row_of = {key: row for row, key in enumerate(theirs.key)}
    same: dict[bytes, list[int]] = {}
    for row, digest in enumerate(theirs.digest):
        same.setdefault(digest.tobytes(), []).append(row)
    kinds: dict[str, list[str]] = {
        kind: [] for kind in ("only_a", "only_b", "changed", "renamed", "target", "status")
    }
    pairs, met = [], set()
    for row, key in enumerate(ours.key):
        namesake = row_of.get(key)
        copies = same.get(ours.digest[row].tobytes(), [])
        if namesake is not None and namesake in copies:
            other = namesake
        elif namesake is not None:
            kinds["changed"].append(key)
            met.add(namesake)
            continue
        elif copies and ours.digest[row].any():
            other = next((copy for copy in copies if copy not in met), copies[0])
            kinds["renamed"].append(key)
        else:
            kinds["only_a"].append(key)
            continue
        met.add(other)
        pairs.append((row, other))
        if ours.target[row] != theirs.target[other]:
            kinds["target"].append(key)
        if ours.status[row] != theirs.status[other]:
            kinds["status"].append(key)
    kinds["only_b"] = [key for row, key in enumerate(theirs.key) if row not in met]
    report.images = kinds
    report.common_images = len(pairs)
    found = np.array(pairs, np.int64).reshape(-1, 2)
    both = (np.asarray(ours.status)[found[:, 0]] == ImageStatus.OK) & (
        np.asarray(theirs.status)[found[:, 1]] == ImageStatus.OK
    )
    readable: Rows = found[both]
    return readable


def _compare_extent(report: DiffReport, a: LabelStore, b: LabelStore) -> None:
    """Views (by their number in the sampler's stream) and teachers that one store lacks."""
    spans = [(first_view(s), first_view(s) + s.spec.num_views) for s in (a, b)]
    first, last = max(s[0] for s in spans), min(s[1] for s in spans)
    report.common_views = (first, max(first, last))
    teachers = (a.spec.teachers, b.spec.teachers)
    for number, only in enumerate((report.only_a, report.only_b)):
        if spans[0] != spans[1]:
            only["views"] = list(spans[number])
        names = sorted(set(teachers[number]) - set(teachers[1 - number]))
        if names:
            only["labels"] = names
        paths = sorted({*(a, b)[number].spec.targets} - {*(a, b)[1 - number].spec.targets})
        if paths:
            only["targets"] = paths
    for name in sorted(set(teachers[0]) & set(teachers[1])):
        report.settings += differences(
            teachers[0][name].to_json(), teachers[1][name].to_json(), f"teachers.{name}."
        )
        report.labels[name] = dict.fromkeys(("compared", "different", "ids", "values", "tail"), 0)
    for path in sorted({*a.spec.targets} & {*b.spec.targets}):
        mine, other = (store.spec.targets[path].to_json() for store in (a, b))
        report.settings += differences(mine, other, f"targets.{path}.")


def _compare_values(
    report: DiffReport,
    a: LabelStore,
    b: LabelStore,
    pairs: Rows,
    keys: list[str],
    progress: Progress | None,
) -> None:
    """One block of `a` at a time, and the rows of `b` that are paired with it."""
    first, last = report.common_views
    targets = common_targets(a.spec, b.spec, (first_view(a), first_view(b)))
    compared = different = 0
    blocks = np.unique(pairs[:, 0] // a.spec.block_images).tolist()
    for done, block in enumerate(blocks):
        ours, theirs = pairs[pairs[:, 0] // a.spec.block_images == block].T

        def read(path: str, side: int, rows: tuple[Rows, Rows] = (ours, theirs)) -> Array:
            return read_views(path, side, first, last - first, rows)

        def read_views(
            path: str, side: int, begin: int, count: int, rows: tuple[Rows, Rows] = (ours, theirs)
        ) -> Array:
            store = (a, b)[side]
            return _gather(store, path, rows[side], begin - first_view(store), count)

        box, flip = ([read(path, side) for side in (0, 1)] for path in ("views/box", "views/flip"))
        wrong = (box[0] != box[1]).any(axis=-1) | (flip[0] != flip[1])
        if a.spec.augment is not None and a.spec.augment == b.spec.augment:
            wrong |= (read("views/draw", 0) != read("views/draw", 1)).any(axis=-1)
        compared, different = compared + wrong.size, different + int(wrong.sum())
        for name, counts in report.labels.items():
            example = _compare_labels(counts, a.spec, b.spec, name, read)
            if example is not None and name not in report.first_label:
                report.first_label[name] = f"{keys[ours[example[0]]]} view {first + example[1]}"
        for path, views in targets.items():
            counts = report.targets.setdefault(path, {"compared": 0, "different": 0})
            example = compare_target(counts, a.spec, path, views, read_views)
            if example is not None and path not in report.first_target:
                report.first_target[path] = f"{keys[ours[example[0]]]} view {example[1]}"
        if progress:
            progress(done + 1, len(blocks))
    report.views = {"compared": compared, "different": different}


def _compare_labels(
    counts: dict[str, int],
    ours: StoreSpec,
    theirs: StoreSpec,
    name: str,
    read: Callable[[str, int], Array],
) -> tuple[int, int] | None:
    """Count differing labels [n, V]; where the first one is. Of labels that keep unequally many
    classes the common ones are compared, and no tail."""
    codecs = [spec.teachers[name].codec for spec in (ours, theirs)]
    k = min(codec.top_k for codec in codecs)
    mine, other = (
        from_arrays(
            codec, {part: read(f"labels/{name}/{part}", side) for part in label_parts(codec)}
        )
        for side, codec in enumerate(codecs)
    )
    wrong = {
        "ids": (mine.index[..., :k] != other.index[..., :k]).any(axis=-1),
        "values": (mine.code[..., :k] != other.code[..., :k]).any(axis=-1),
    }
    if codecs[0].top_k == codecs[1].top_k:
        wrong["tail"] = mine.tail != other.tail
    total = np.logical_or.reduce(list(wrong.values()))
    for part, where in wrong.items():
        counts[part] += int(where.sum())
    counts["compared"] += total.size
    counts["different"] += int(total.sum())
    if not total.any():
        return None
    row, view = np.argwhere(total)[0].tolist()
    return row, view


def _gather(store: LabelStore, path: str, rows: Rows, first: int, count: int) -> Array:
    """Rows of one array in any order, one block at a time."""
    size = store.spec.block_images
    layout = array_layouts(store.spec).get(path)  # none: views in the other codec's arrays
    views = slice(first, first + count) if layout is None or layout.shard else None
    found: Array | None = None
    for block in np.unique(rows // size).tolist():
        inside = np.flatnonzero(rows // size == block)
        low, high = int(rows[inside].min()), int(rows[inside].max()) + 1
        values = store.read_array(path, slice(low, high), views)
        if found is None:
            found = np.empty((len(rows), *values.shape[1:]), values.dtype)
        found[inside] = values[rows[inside] - low]
    assert found is not None, "called with rows only"
    return found
