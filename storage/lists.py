"""Images' lists of classes: making them, naming classes by their places in them, mean tails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.codecs import NO_CODE, NO_INDEX, Floats
from storage.dictionary import DictionaryCodec, ImageTail
from storage.threads import decoders, for_each

NOT_IN_TAIL = 254  # spread code of a class that the mean tail leaves out
SPREAD_STEP = 0.5  # nats a spread code
SLICE_LABELS = 1 << 14  # labels decoded at once: their places stay in the cache

Uint16 = npt.NDArray[np.uint16]
Uint8 = npt.NDArray[np.uint8]


def build_dictionaries(
    codec: DictionaryCodec,
    index: Uint16,
    tail_mass: Floats | None = None,
    first: Uint16 | None = None,
) -> tuple[Uint16, Uint8]:
    """Lists of classes of n images, and the mean tails on them.

    A list has the classes of `first` as they stand, then those kept by any view, by falling sum
    over the views of k - rank (equal ones by id), then those of the mean tail that are left, by
    falling mass.

    Args:
        index: [n, M, k] kept classes.
        tail_mass: float [n, C], summed over the views, of the classes each label doesn't keep; None
            without mean tails.
        first: uint16 [n, C] lists to go on with (`NO_INDEX` after their ends).
    Returns:
        classes uint16 [n, C], `NO_INDEX` after a list's end; spread codes uint8 [n, C], `NO_CODE`
        after it.
    """
    n, C, k = len(index), codec.num_classes, codec.top_k
    classes = np.full((n, C), NO_INDEX, np.uint16)
    spread = np.full((n, C), NO_CODE, np.uint8)
    weight = np.tile(np.arange(k, 0, -1), index.shape[1])
    for i in range(n):
        score = np.bincount(index[i].ravel(), weight, minlength=C).astype(np.float64)
        mass = np.zeros(C) if tail_mass is None else np.asarray(tail_mass[i], np.float64)
        in_tail = _falling(mass)[: codec.spread_classes]
        listed = [] if first is None else [first[i][first[i] != NO_INDEX].astype(np.intp)]
        for more in (_falling(score), in_tail):
            known = np.zeros(C, bool)
            for part in listed:
                known[part] = True
            listed.append(more[~known[more]])
        order = np.concatenate(listed)
        classes[i, : len(order)] = order
        spread[i, : len(order)] = NOT_IN_TAIL
        if len(in_tail):
            place = np.empty(C, np.intp)
            place[order] = np.arange(len(order))
            fall = np.log(mass[in_tail[0]] / mass[in_tail])
            spread[i, place[in_tail]] = np.minimum(np.rint(fall / SPREAD_STEP), NOT_IN_TAIL - 1)
    return classes, spread


def _falling(values: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Positions of the positive values, largest first, equal ones in their order."""
    positive = np.flatnonzero(values > 0)
    return positive[np.argsort(-values[positive], kind="stable")]


def mean_tails(codec: DictionaryCodec, classes: Uint16, spread: Uint8) -> ImageTail:
    """Decode mean tails of n images: share = exp(-SPREAD_STEP * code), scaled to sum 1."""
    order = np.argsort(spread, axis=-1, kind="stable")[:, : codec.spread_classes]
    code = np.take_along_axis(spread, order, axis=-1)
    used = code < NOT_IN_TAIL
    share = np.where(used, np.exp(-SPREAD_STEP * code.astype(np.float64)), 0)
    share /= np.maximum(share.sum(axis=-1, keepdims=True), 1e-300)
    index = np.take_along_axis(classes, order, axis=-1)
    return ImageTail(np.where(used, index, 0).astype(np.uint16), share.astype(np.float32))


def places_from_index(index: Uint16, classes: Uint16) -> Uint16:
    """Places [n, M, k] of kept classes in their images' lists [n, C].

    A place counts only the classes of the list that the label has not named before.
    """
    n, _, k = index.shape
    local = np.empty(index.shape, np.uint16)
    lookup = np.empty(int(NO_INDEX) + 1, np.uint16)
    for i in range(n):
        row = classes[i]
        row = row[row != NO_INDEX]
        lookup[:] = NO_INDEX
        lookup[row] = np.arange(len(row), dtype=np.uint16)
        local[i] = lookup[index[i]]
    place = local.copy()
    for rank in range(1, k):
        before = local[..., :rank] < local[..., rank : rank + 1]
        place[..., rank] -= before.sum(axis=-1, dtype=np.uint16)
    return place


def positions_from_places(place: Uint16) -> Uint16:
    """Positions [k, n] in the whole list of places [n, k]: the classes a label has named before
    are put back one by one, the last one first."""
    rank_major = np.ascontiguousarray(place.T)
    position = rank_major.copy()
    for rank in range(len(place.T) - 2, -1, -1):
        later = position[rank + 1 :]
        later += later >= rank_major[rank]
    return position


@dataclass(frozen=True)
class Dictionaries:
    """Lists of classes of N images, end to end.

    flat: uint16 [total]; start: int64 [N + 1].
    """

    flat: Uint16
    start: npt.NDArray[np.int64]

    @staticmethod
    def pack(classes: Uint16) -> Dictionaries:
        """From the array on disk, [n, C]."""
        used = classes != NO_INDEX
        start = np.zeros(len(classes) + 1, np.int64)
        np.cumsum(used.sum(axis=1), out=start[1:])
        return Dictionaries(classes[used], start)

    @staticmethod
    def join(parts: list[Dictionaries]) -> Dictionaries:
        """Images of several after one another."""
        sizes = np.concatenate([np.diff(part.start) for part in parts])
        start = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=start[1:])
        return Dictionaries(np.concatenate([part.flat for part in parts]), start)

    def index(self, place: Uint16, first: int = 0, out: Uint16 | None = None) -> Uint16:
        """Class ids [n, V, k] of places of the images from `first` on; fills stay fills.

        Args:
            out: where they go, `place` itself if it isn't needed any more.
        Raises:
            ValueError: a place beyond the image's list.
        """
        n, V, _ = place.shape
        found = np.empty(place.shape, np.uint16) if out is None else out
        step = max(1, SLICE_LABELS // max(V, 1))

        def decode(begin: int) -> None:
            part = slice(begin, min(begin + step, n))
            self._index_of(place[part], first + begin, found[part])

        for_each(range(0, n, step), decode, decoders())
        return found

    def _index_of(self, place: Uint16, first: int, out: Uint16) -> None:
        n, V, k = place.shape
        labels = place.reshape(-1, k)
        position = positions_from_places(labels)  # [k, n * V]
        start = self.start[first : first + n]
        size = np.repeat((self.start[first + 1 : first + n + 1] - start).astype(np.int64), V)
        absent = labels[:, 0] == NO_INDEX
        if ((position >= size) & ~absent).any():
            raise ValueError("a label names a class beyond its image's list")
        where = np.repeat(start, V) + position
        if len(self.flat):  # "clip" reaches no label that was refused above
            position = np.take(self.flat, where, mode="clip")
        if absent.any():
            position[:, absent] = NO_INDEX
        out.reshape(-1, k)[:] = position.T
