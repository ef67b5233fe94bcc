"""Stores of the same images, side by side, as the contents of a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.dictionary import DictionaryCodec
from storage.format import StoreSpec
from storage.layout import ArrayLayout, array_layouts
from storage.merge_lists import MergedLists, merge_lists, move_places
from storage.parents import Parent
from storage.rows_source import moved_segment, same_files


@dataclass(frozen=True)
class Piece:
    """Views of a parent: its number, and the place of its first view in the new store."""

    parent: int
    start: int


@dataclass(frozen=True, kw_only=True)
class AlignedSource:
    """All parents have the same images in the same order.

    pieces: for each array but those of `images/`, where its views come from, in order; arrays of
        images are the first parent's.
    """

    parents: Sequence[Parent]
    spec: StoreSpec
    first_view: int
    pieces: Mapping[str, Sequence[Piece]]
    _places: dict[tuple[str, int], tuple[tuple[bool, ...], bool]] = field(default_factory=dict)

    def read(self, block: int) -> dict[str, Array]:
        """The new block's part of every array, by array path."""
        rows = np.asarray(self.spec.block_rows(block), np.int64)
        lists = {name: self._lists(name, rows) for name in self._joined()}
        found: dict[str, Array] = {}
        for path, layout in array_layouts(self.spec).items():
            folder, name, part = path.split("/")[0], path.split("/")[1], path.split("/")[-1]
            if folder == "labels" and name in lists and part in ("classes", "spread"):
                values = lists[name].classes if part == "classes" else lists[name].spread
                assert values is not None, "a codec with mean tails has them"
                found[path] = values
            elif not layout.shard:
                found[path] = self._image_array(path, layout, rows)
            else:
                parts = [self._views(path, piece, rows, lists) for piece in self.pieces[path]]
                found[path] = np.concatenate(parts, axis=1)
        return found

    def whole_file(self, path: str, block: int, segment: int) -> tuple[int, str] | None:
        """(number of the parent, its file) that holds exactly this file's values, if one does."""
        ours = array_layouts(self.spec)[path]
        pieces = self.pieces.get(path, (Piece(0, 0),))
        begin = segment * ours.shard[1] if ours.shard else 0
        for piece in pieces:
            parent = self.parents[piece.parent]
            theirs = array_layouts(parent.spec).get(path)
            if (
                theirs is None
                or not same_files(ours, theirs)
                or not self._keeps(path, block, piece.parent)
            ):
                continue
            if not ours.shard:
                return piece.parent, theirs.object_paths(block)[0]
            if piece.start <= begin < piece.start + parent.spec.num_views:
                there = moved_segment(ours, theirs, segment, -piece.start)
                if there is not None:
                    return piece.parent, theirs.object_paths(block, [there])[0]
        return None

    def _image_array(self, path: str, layout: ArrayLayout, rows: npt.NDArray[np.int64]) -> Array:
        number = self.pieces.get(path, (Piece(0, 0),))[0].parent
        values = self.parents[number].gather(path, rows, 0, 0)
        wide = np.zeros((len(rows), *layout.shape[1:]), layout.dtype)
        wide[tuple(slice(size) for size in values.shape)] = values  # keys may get more room
        return wide

    def _views(
        self, path: str, piece: Piece, rows: npt.NDArray[np.int64], lists: dict[str, MergedLists]
    ) -> Array:
        parent = self.parents[piece.parent]
        layout = array_layouts(parent.spec).get(path)  # none: boxes in the other view codec
        views = layout.shape[1] if layout and layout.shard else parent.spec.num_views
        values = parent.gather(path, rows, 0, views)
        folder, name, *rest = path.split("/")
        if (
            folder == "labels"
            and name in lists
            and rest == ["place"]
            and not lists[name].holds[piece.parent]
        ):
            own = parent.gather(f"labels/{name}/classes", rows, 0, 0)
            return move_places(values, own, lists[name].classes)
        return values

    def _joined(self) -> list[str]:
        """Teachers whose labels come from several parents, each with lists of its own."""
        return [
            name
            for name, record in self.spec.teachers.items()
            if isinstance(record.codec, DictionaryCodec)
            and len(self.pieces[f"labels/{name}/place"]) > 1
        ]

    def _lists(self, name: str, rows: npt.NDArray[np.int64]) -> MergedLists:
        codec = self.spec.teachers[name].codec
        assert isinstance(codec, DictionaryCodec), "only these have lists"
        return merge_lists(codec, name, self.parents, rows)

    def _keeps(self, path: str, block: int, number: int) -> bool:
        """Whether a parent's values of a block can stay as they are."""
        folder, name, *rest = path.split("/")
        if (
            folder != "labels"
            or rest not in (["place"], ["classes"], ["spread"])
            or name not in self._joined()
        ):
            return True
        if (name, block) not in self._places:
            rows = np.asarray(self.spec.block_rows(block), np.int64)
            lists = self._lists(name, rows)
            self._places[name, block] = lists.holds, lists.same
        holds, same = self._places[name, block]
        return holds[number] if rest == ["place"] else same
