"""Several label stores as one: blocks of one run, other images, further views, other teachers.

Which of these it is is found by looking at the stores. What doesn't go together is refused, with
every difference named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreMismatch, UsageError
from storage.extend import extension_differences
from storage.format import StoreSpec, keys_hash
from storage.images import ImageStatus
from storage.layout import array_layouts, view_paths
from storage.manifest import Manifest
from storage.merge_blocks import merge_blocks
from storage.merge_sources import AlignedSource, Piece
from storage.merge_targets import joined_targets, refuse_other_targets, target_homes
from storage.parents import Parent
from storage.remote.opening import as_store
from storage.rewrite import Progress, Source, refuse_existing, write_store
from storage.rows_source import RowsSource
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord

IMAGE_PARTS = ("digest", "size", "target", "status")


def merge_stores(
    paths: Sequence[LabelStore | Path | str],
    out: Path | str,
    allow_licence_mix: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the union of stores to a new, sealed store.

    Args:
        paths: at least two stores; all sealed, or unfinished parts of one run.
        allow_licence_mix: put labels of teachers with different licences together.
    Raises:
        UsageError: fewer than two stores, or one twice.
        StoreMismatch: they don't go together; the message says why.
        StoreError: `out` exists. CorruptStore: one of the stores is damaged.
    """
    refuse_existing(Path(out))
    stores = [as_store(path) for path in paths]
    if len({store.path.resolve() for store in stores}) < max(2, len(stores)):
        raise UsageError("give at least two stores to merge, each once")
    if not all(store.is_sealed for store in stores):
        return merge_blocks(stores, Path(out), progress)
    parents = [Parent.open(store) for store in stores]
    if all(_same_images(parents[0], parent) for parent in parents[1:]):
        spans = {(parent.first_view, parent.spec.num_views) for parent in parents}
        kind, source = _teachers(parents) if len(spans) == 1 else _views(parents)
    else:
        kind, source = _images(parents)
    details = {"licences": _licences(source.spec, source.parents, allow_licence_mix)}
    return write_store(out, source, kind, details, progress)


def _same_images(ours: Parent, theirs: Parent) -> bool:
    mine, other = ours.images(), theirs.images()
    return mine.key == other.key and np.array_equal(mine.digest, other.digest)


def _images(parents: list[Parent]) -> tuple[str, Source]:
    """Stores of different images with the same settings; rows in the order of their keys."""
    first = parents[0]
    _refuse_differences(parents, extent=True)
    spans = [(parent.first_view, parent.spec.num_views) for parent in parents]
    if len(set(spans)) > 1:
        raise StoreMismatch(
            f"the stores have different images and different views ({_spans(spans)}): cut them to "
            "the same views with `labelstore subset --views`"
        )
    where: dict[str, tuple[int, int]] = {}
    shared = []
    for number, parent in enumerate(parents):
        for row, key in enumerate(parent.images().key):
            if key in where:
                shared.append(key)
            where[key] = number, row
    if shared:
        raise StoreMismatch(
            f"{len(shared)} image keys are in more than one store, such as {shared[0]!r}, and the "
            "stores don't have the same images: leave them out of one with `labelstore subset "
            "--images`"
        )
    keys = sorted(where)
    order = np.array([where[key] for key in keys], np.int64)
    dataset = first.spec.dataset | {"num_images": len(keys), "keys_hash": keys_hash(keys)}
    refuse_other_targets(parents)
    spec = _merged_spec(parents, num_images=len(keys), dataset=dataset)
    return "merge-images", RowsSource(
        parents=parents, spec=spec, first_view=first.first_view,
        owner=order[:, 0], row=order[:, 1],
    )  # fmt: skip


def _views(parents: list[Parent]) -> tuple[str, Source]:
    """Stores of following views of the same images, in the order of their views."""
    parents = sorted(parents, key=lambda parent: parent.first_view)
    _refuse_differences(parents)
    _refuse_other_rows(parents)
    pieces, start = [], 0
    for number, parent in enumerate(parents):
        if parent.first_view != parents[0].first_view + start:
            spans = [(parent.first_view, parent.spec.num_views) for parent in parents]
            raise StoreMismatch(
                f"the stores have the same images, but their views ({_spans(spans)}) neither are "
                "the same nor follow each other: cut them with `labelstore subset --views`"
            )
        _refuse_strange_views(parent)
        pieces.append(Piece(number, start))
        start += parent.spec.num_views
    targets = joined_targets(parents)
    spec = _merged_spec(
        parents,
        num_views=start,
        targets={
            path: dataclasses.replace(
                parents[0].spec.targets[path],
                views=sum(parents[n].spec.targets[path].views for n in range(count)),
            )
            for path, count in targets.items()
        },
    )
    found = {}
    for path in array_layouts(spec):
        target = "/".join(path.split("/")[:2])
        if not path.startswith("images/"):
            found[path] = pieces[: targets.get(target, len(pieces))]
    return "merge-views", AlignedSource(
        parents=parents, spec=spec, first_view=parents[0].first_view, pieces=found
    )


def _teachers(parents: list[Parent]) -> tuple[str, Source]:
    """Stores of other teachers' labels of the very same views."""
    _refuse_differences(parents, teachers=True)
    _refuse_other_rows(parents)
    home: dict[str, int] = {}
    for number, parent in enumerate(parents):
        for name in parent.spec.teachers:
            if name in home:
                raise StoreMismatch(
                    f"{parents[home[name]].store.path} and {parent.store.path} both have labels of "
                    f"{name} for the same views: leave one out with `labelstore subset --labels`"
                )
            home[name] = number
    places = target_homes(parents)
    for parent in parents[1:]:
        _refuse_other_views(parents[0], parent)
    teachers = {name: parents[number].spec.teachers[name] for name, number in home.items()}
    targets = {path: parents[number].spec.targets[path] for path, number in places.items()}
    spec = dataclasses.replace(
        parents[0].spec,
        teachers=dict(sorted(teachers.items())),
        targets=dict(sorted(targets.items())),
    )
    pieces = {path: [Piece(0, 0)] for path in view_paths(spec)}
    for path in array_layouts(spec):
        if path.startswith("labels/"):
            pieces[path] = [Piece(home[path.split("/")[1]], 0)]
        target = "/".join(path.split("/")[:2])
        if target in places:
            pieces[path] = [Piece(places[target], 0)]
    return "merge-teachers", AlignedSource(
        parents=parents, spec=spec, first_view=parents[0].first_view, pieces=pieces
    )


def _merged_spec(parents: Sequence[Parent], **changes: Any) -> StoreSpec:
    """The first store's settings, wide enough for all keys; licences put together."""
    spec = parents[0].spec
    return dataclasses.replace(
        spec,
        key_bytes=max(parent.spec.key_bytes for parent in parents),
        teachers={name: _one_record(name, parents) for name in spec.teachers},
        **changes,
    )


def _one_record(name: str, parents: Sequence[Parent]) -> TeacherRecord:
    records = [parent.spec.teachers[name] for parent in parents]
    licences = sorted({record.licence for record in records})
    return dataclasses.replace(records[0], licence=" AND ".join(licences), measured={})


def _refuse_differences(
    parents: Sequence[Parent], extent: bool = False, teachers: bool = False
) -> None:
    """All settings agree but the number of views, how files are cut, and licences.

    Args:
        extent: the images may differ too. teachers: the teachers may.
    """
    for parent in parents[1:]:
        found = extension_differences(
            *(_comparable(p.spec, extent, teachers) for p in (parents[0], parent))
        )
        if found:
            raise StoreMismatch(
                f"{parents[0].store.path} and {parent.store.path} don't go together: "
                f"{'; '.join(found)}"
            )


def _comparable(spec: StoreSpec, extent: bool, teachers: bool) -> StoreSpec:
    dataset = dict(spec.dataset)
    if extent:
        for name in ("num_images", "keys_hash"):
            dataset.pop(name, None)
    records = {name: dataclasses.replace(t, licence="") for name, t in spec.teachers.items()}
    return dataclasses.replace(
        spec,
        num_images=1 if extent else spec.num_images,
        dataset=dataset,
        teachers={} if teachers else records,
        targets={} if teachers or extent else spec.targets,
    )


def _refuse_other_rows(parents: Sequence[Parent]) -> None:
    """Size, class and status of every image are the same."""
    ours = parents[0].images()
    for parent in parents[1:]:
        theirs = parent.images()
        for part in IMAGE_PARTS:
            mine, other = getattr(ours, part), getattr(theirs, part)
            wrong = np.flatnonzero((mine != other).reshape(len(mine), -1).any(axis=1))
            if wrong.size:
                raise StoreMismatch(
                    f"{parent.store.path}: {wrong.size} images have another {part} than in "
                    f"{parents[0].store.path}, such as {ours.key[wrong[0]]}"
                )


def _refuse_other_views(ours: Parent, theirs: Parent) -> None:
    """Boxes, flips and draws are the same, row by row."""
    for block in range(ours.spec.num_blocks):
        rows = np.asarray(ours.spec.block_rows(block), np.int64)
        for path in view_paths(ours.spec):
            mine, other = (p.gather(path, rows, 0, p.spec.num_views) for p in (ours, theirs))
            wrong = np.flatnonzero((mine != other).reshape(len(rows), -1).any(axis=1))
            if wrong.size:
                raise StoreMismatch(
                    f"{theirs.store.path}: {path} of {ours.images().key[rows[wrong[0]]]} is not "
                    f"that of {ours.store.path}: the teachers didn't see the same views"
                )


def _refuse_strange_views(parent: Parent) -> None:
    """The views are those that the settings draw: looked at for one image of every block."""
    spec, table = parent.spec, parent.images()
    for block in range(spec.num_blocks):
        rows = spec.block_rows(block)
        readable = [row for row in rows if table.status[row] == ImageStatus.OK]
        if not readable:
            continue
        row = np.array(readable[:1], np.int64)
        height, width = (int(side) for side in table.size[row[0]])
        drawn = spec.sampler.draw(
            spec.seed, table.digest[row[0]].tobytes(), height, width,
            parent.first_view, spec.num_views,
        )  # fmt: skip
        box, flip = (parent.gather(f"views/{n}", row, 0, spec.num_views) for n in ("box", "flip"))
        strange = (box[0] != drawn.box).any() or (flip[0] != drawn.flip).any()
        if spec.augment is not None:
            digest = table.digest[row[0]].tobytes()
            draw = spec.augment.draw(spec.seed, digest, parent.first_view, spec.num_views)
            strange |= (parent.gather("views/draw", row, 0, spec.num_views)[0] != draw).any()
        if strange:
            raise StoreMismatch(
                f"{parent.store.path}: the views of {table.key[row[0]]} are not views "
                f"{parent.first_view} onwards of its settings: it can't be continued"
            )


def _licences(spec: StoreSpec, parents: Sequence[Parent], allow_mix: bool) -> dict[str, list[str]]:
    """Licences of every teacher's labels in the parents.

    Raises:
        StoreMismatch: several, and mixing them was not allowed.
    """
    found: dict[str, set[str]] = {name: set() for name in sorted(spec.teachers)}
    for parent in parents:
        for name, record in parent.spec.teachers.items():
            found[name].add(record.licence)
    if len(set().union(*found.values())) > 1 and not allow_mix:
        listed = "; ".join(
            f"{name}: {', '.join(sorted(text or 'none' for text in licences))}"
            for name, licences in found.items()
        )
        raise StoreMismatch(
            f"the teachers' licences differ ({listed}): read them, then allow the mixture with "
            "--allow-licence-mix"
        )
    return {name: sorted(licences) for name, licences in found.items()}


def _spans(spans: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{first}:{first + count}" for first, count in spans)
