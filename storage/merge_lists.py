"""Lists of classes (codec top-k-dictionary) of the same images in stores of different views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.codecs import NO_INDEX
from storage.dictionary import DictionaryCodec
from storage.lists import Dictionaries, build_dictionaries, mean_tails, places_from_index
from storage.parents import Parent

Uint16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class MergedLists:
    """One list for each of n images, that all parents' labels can name classes in.

    classes: uint16 [n, C]; spread: uint8 [n, C], None without mean tails.
    holds: for each parent, whether its places count in these lists as they stand (its own lists
        are beginnings of them).
    same: whether lists and mean tails are those of every parent.
    """

    classes: Uint16
    spread: npt.NDArray[np.uint8] | None
    holds: tuple[bool, ...]
    same: bool


def merge_lists(
    codec: DictionaryCodec, name: str, parents: Sequence[Parent], rows: npt.NDArray[np.int64]
) -> MergedLists:
    """Lists of some images: the first parent's, then the classes that only later ones list.

    Parts of one store have the same lists, a store that continues another goes on with its lists:
    both stay as they are. Mean tails that differ become their mean, weighed by tail mass.
    """
    path = f"labels/{name}"
    lists = [parent.gather(f"{path}/classes", rows, 0, 0) for parent in parents]
    merged = lists[0].copy()
    for other in lists[1:]:
        for row in np.flatnonzero((merged != other).any(axis=1)).tolist():
            mine, more = (part[row][part[row] != NO_INDEX] for part in (merged, other))
            joined = np.concatenate([mine, more[~np.isin(more, mine)]])
            merged[row, : len(joined)] = joined
    holds = tuple(bool(((own == NO_INDEX) | (own == merged)).all()) for own in lists)
    same = all(np.array_equal(own, merged) for own in lists)
    if not codec.spread_classes:
        return MergedLists(merged, None, holds, same)
    spreads = [parent.gather(f"{path}/spread", rows, 0, 0) for parent in parents]
    if same and all(np.array_equal(spreads[0], other) for other in spreads[1:]):
        return MergedLists(merged, spreads[0], holds, same)
    mass = np.zeros((len(rows), codec.num_classes))
    for parent, own, spread in zip(parents, lists, spreads, strict=True):
        tails = mean_tails(codec, own, spread)
        stored = parent.gather(f"{path}/tail", rows, 0, parent.spec.num_views)
        total = np.nan_to_num(codec.tail_table()[stored]).sum(axis=1)
        where = (np.arange(len(rows))[:, None], tails.index.astype(np.intp))
        np.add.at(mass, where, tails.share * total[:, None])
    no_views = np.empty((len(rows), 0, codec.top_k), np.uint16)
    classes, codes = build_dictionaries(codec, no_views, mass, first=merged)
    return MergedLists(classes, codes, holds, same=False)


def move_places(place: Uint16, own: Uint16, merged: Uint16) -> Uint16:
    """Places [n, M, k] in the lists `own` as places in the lists `merged`; fills stay fills."""
    return places_from_index(Dictionaries.pack(own).index(place), merged)
