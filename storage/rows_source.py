"""Rows of sealed stores as the contents of a new one: chosen images, views, labels and classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.format import StoreSpec
from storage.label_arrays import label_parts
from storage.layout import ArrayLayout, array_layouts
from storage.parents import Parent
from storage.select_topk import cut_arrays


@dataclass(frozen=True, kw_only=True)
class RowsSource:
    """The new store's images are rows of its parents; each has all its data from one parent.

    owner: int64 [N], number of the parent of each image; row: int64 [N], its row there.
    offset: place in the parents of the new store's first view.
    """

    parents: Sequence[Parent]
    spec: StoreSpec
    first_view: int
    owner: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    offset: int = 0

    def read(self, block: int) -> dict[str, Array]:
        """The new block's part of every array, by array path."""
        rows = self.spec.block_rows(block)
        owner, row = self.owner[rows.start : rows.stop], self.row[rows.start : rows.stop]
        found: dict[str, Array] = {}
        for path, layout in array_layouts(self.spec).items():
            pieces = [
                (owner == number, parent.gather(path, row[owner == number], self.offset,
                                                layout.shape[1] if layout.shard else 0))
                for number, parent in enumerate(self.parents) if (owner == number).any()
            ]  # fmt: skip
            # labels may have more classes than are kept, keys fewer bytes than there is room
            inner = pieces[0][1].shape[1:] if layout.shard else layout.shape[1:]
            values = np.zeros((len(rows), *inner), layout.dtype)
            for where, piece in pieces:
                values[(where, *map(slice, piece.shape[1:]))] = piece
            found[path] = values
        for name in self._cut():
            self._cut_labels(name, found)
        return found

    def whole_file(self, path: str, block: int, segment: int) -> tuple[int, str] | None:
        """(number of the parent, its file) that holds exactly this file's values, if one does."""
        rows = self.spec.block_rows(block)
        number, first = int(self.owner[rows.start]), int(self.row[rows.start])
        parent = self.parents[number]
        theirs = array_layouts(parent.spec).get(path)
        ours = array_layouts(self.spec)[path]
        if theirs is None or not same_files(ours, theirs) or self._is_cut(path):
            return None
        wanted = np.arange(first, first + len(rows))
        if first % parent.spec.block_images or (
            (self.owner[rows.start : rows.stop] != number).any()
            or (self.row[rows.start : rows.stop] != wanted).any()
            or len(parent.spec.block_rows(first // parent.spec.block_images)) != len(rows)
        ):
            return None
        there = 0
        if ours.shard:
            found = moved_segment(ours, theirs, segment, self.offset)
            if found is None:
                return None
            there = found
        return number, theirs.object_paths(first // parent.spec.block_images, [there])[0]

    def _cut(self) -> Mapping[str, int]:
        """Labels that keep fewer classes than the parent has (all parents have as many)."""
        before = self.parents[0].spec.teachers
        return {
            name: record.codec.top_k
            for name, record in self.spec.teachers.items()
            if record.codec.top_k < before[name].codec.top_k
        }

    def _is_cut(self, path: str) -> bool:
        folder, name, *_ = path.split("/")
        return folder == "labels" and name in self._cut()

    def _cut_labels(self, name: str, arrays: dict[str, Array]) -> None:
        before = self.parents[0].spec.teachers[name].codec
        parts = {part: arrays[f"labels/{name}/{part}"] for part in label_parts(before)}
        cut = cut_arrays(before, parts, self.spec.teachers[name].codec.top_k)
        arrays.update({f"labels/{name}/{part}": values for part, values in cut.items()})


def same_files(ours: ArrayLayout, theirs: ArrayLayout) -> bool:
    """Whether equal values have equal bytes in two arrays: everything but the shape is the same."""
    return dataclasses.replace(ours, shape=()) == dataclasses.replace(theirs, shape=())


def moved_segment(ours: ArrayLayout, theirs: ArrayLayout, segment: int, offset: int) -> int | None:
    """The parent's segment with exactly the views of ours, which begin at its view `offset`."""
    assert ours.shard is not None and theirs.shard is not None, "arrays with views"
    views = ours.shard[1]
    if views != theirs.shard[1] or offset % views:
        return None
    there = segment + offset // views
    mine = min(views, ours.shape[1] - segment * views)
    return there if mine == min(views, theirs.shape[1] - there * views) else None
