"""All labels of one teacher, a small part at a time: for what looks at every label once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.codecs import NO_CODE, TopKLabels
from storage.dictionary import DictionaryCodec
from storage.errors import CorruptStore, UsageError
from storage.images import ImageStatus
from storage.label_arrays import from_arrays, label_parts
from storage.lists import Dictionaries
from storage.store import LabelStore
from storage.view_arrays import box_paths, from_view_arrays
from storage.views import Views

PART_LABELS = 1 << 16


@dataclass(frozen=True)
class LabelPart:
    """Labels of n readable images in V consecutive views.

    block: whose images these are. row: int64 [n], rows of the store. first_view: of the V views.
    labels: [n, V, ...]; box: uint16 [n, V, 4]; flip: uint8 [n, V].
    """

    block: int
    row: npt.NDArray[np.int64]
    first_view: int
    labels: TopKLabels
    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]


def label_stream(
    store: LabelStore, teacher: str, num_views: int | None = None
) -> Iterator[LabelPart]:
    """The labels of all readable images: block by block, within one segment by segment.

    In memory are at most one block's arrays of one segment and the block's lists of classes,
    however many images the store has.

    Args:
        num_views: the first views only; all where None.
    Raises:
        UsageError: a teacher that the store doesn't have.
        IncompleteStore: a block has not been written yet.
        CorruptStore: a file is missing or doesn't decode, or a readable image has no labels.
    """
    spec = store.spec
    if teacher not in spec.teachers:
        raise UsageError(
            f"{store.path} has no labels of teacher {teacher!r}; it has "
            f"{', '.join(sorted(spec.teachers)) or 'none'}"
        )
    views = min(num_views or spec.num_views, spec.num_views)
    status = store.read_status()
    for block in range(store.blocks):
        rows = store.block_rows(block)
        readable = status[rows.start : rows.stop] == ImageStatus.OK
        if not readable.any():
            continue
        lists = _lists(store, teacher, slice(rows.start, rows.stop))
        for first in range(0, views, spec.segment_views):
            span = slice(first, min(first + spec.segment_views, views))
            yield from _segment(store, teacher, block, readable, span, lists)


def row_labels(
    store: LabelStore, teacher: str, row: int, num_views: int
) -> tuple[Views, TopKLabels]:
    """The first views of one image and their labels [V, ...].

    Only the chunks that hold them are read.

    Raises:
        IncompleteStore, CorruptStore: as `label_stream`.
    """
    where, views, spec = slice(row, row + 1), slice(0, num_views), store.spec
    box, flip, *found = _read(store, teacher, where, views)
    labels = _decode(store, teacher, found, _lists(store, teacher, where))
    draw = store.read_array("views/draw", where, views)[0] if spec.augment else None
    picked = TopKLabels(labels.index[0], labels.code[0], labels.tail[0])
    return Views(box[0], flip[0], draw), picked


def _parts(store: LabelStore, teacher: str) -> list[str]:
    """Arrays of labels with a view axis."""
    codec = store.spec.teachers[teacher].codec
    return [part for part in label_parts(codec) if part not in ("classes", "spread")]


def _read(store: LabelStore, teacher: str, rows: slice, views: slice) -> list[Array]:
    """Boxes, flips, and the arrays that `_parts` names."""
    kept = box_paths(store.spec)
    labels = [f"labels/{teacher}/{part}" for part in _parts(store, teacher)]
    found = store.read_arrays([*kept, *labels], rows, views)
    arrays = dict(zip(kept, found, strict=False))
    box, flip = from_view_arrays(store.spec, arrays, store.read_array("images/size", rows))
    return [box, flip, *found[len(kept) :]]


def _decode(
    store: LabelStore,
    teacher: str,
    arrays: Sequence[Array],
    lists: Dictionaries | None,
    first: int = 0,
) -> TopKLabels:
    """Labels [n, V, ...] from the arrays that `_parts` names."""
    found = dict(zip(_parts(store, teacher), arrays, strict=True))
    try:
        return from_arrays(store.spec.teachers[teacher].codec, found, lists, first)
    except ValueError as error:
        raise CorruptStore(
            f"{store.path / 'labels' / teacher}: {error}: run `labelstore verify --full`"
        ) from error


def _lists(store: LabelStore, teacher: str, rows: slice) -> Dictionaries | None:
    if not isinstance(store.spec.teachers[teacher].codec, DictionaryCodec):
        return None
    return Dictionaries.pack(store.read_array(f"labels/{teacher}/classes", rows))


def _segment(
    store: LabelStore,
    teacher: str,
    block: int,
    readable: npt.NDArray[np.bool_],
    views: slice,
    lists: Dictionaries | None,
) -> Iterator[LabelPart]:
    rows = store.block_rows(block)
    box, flip, *found = _read(store, teacher, slice(rows.start, rows.stop), views)
    step = max(1, PART_LABELS // (views.stop - views.start))
    for low in range(0, len(rows), step):
        part = slice(low, min(low + step, len(rows)))
        good = readable[part]
        labels = _decode(store, teacher, [values[part] for values in found], lists, low)
        labels = TopKLabels(labels.index[good], labels.code[good], labels.tail[good])
        row = rows.start + low + np.flatnonzero(good)
        empty = (labels.code == NO_CODE).any(axis=(1, 2)) | (labels.tail == NO_CODE).any(axis=1)
        if empty.any():
            raise CorruptStore(
                f"{store.path / 'labels' / teacher}: image {row[empty][0]} counts as labelled but "
                "has no labels: run `labelstore verify --full`"
            )
        yield LabelPart(block, row, views.start, labels, box[part][good], flip[part][good])
