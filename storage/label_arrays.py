"""Labels of one teacher as the arrays of a store, for each kind of codec.

top-k keeps `index`, `gap` and `tail`; top-k-dictionary `classes`, `place`, `fall`, `tail` and,
with mean tails, `spread`. docs/format.md section 3 says what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import (
    MAX_CODE,
    NO_CODE,
    NO_INDEX,
    TopKCodec,
    TopKLabels,
    codes_from_gaps,
    gaps_from_codes,
)
from storage.dictionary import DictionaryCodec
from storage.errors import UsageError
from storage.lists import NOT_IN_TAIL, Dictionaries, build_dictionaries, places_from_index

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
MOST_PAIRED = 24  # ranks up to which comparing all pairs beats sorting each label
Fault = tuple[str, Array, str]  # (part, bool [n, ...] where, what is wrong)


def label_parts(codec: TopKCodec) -> tuple[str, ...]:
    """Names of the arrays of labels of this codec."""
    if not isinstance(codec, DictionaryCodec):
        return ("index", "gap", "tail")
    mean_tail = ("spread",) if codec.spread_classes else ()
    return ("classes", "place", "fall", "tail", *mean_tail)


def to_arrays(
    codec: TopKCodec, labels: TopKLabels, readable: Bools, tail_mass: Array | None = None
) -> dict[str, Array]:
    """Arrays of a block's labels [n, M, ...] by part; fill values where not readable, bool [n].

    Args:
        tail_mass: see `build_dictionaries`; for codecs with mean tails.
    Raises:
        UsageError: classes that don't exist, or mean tails without what they are made from.
    """
    if not isinstance(codec, DictionaryCodec):
        arrays: dict[str, Array] = {
            "index": labels.index.copy(), "gap": gaps_from_codes(labels.code),
            "tail": labels.tail.copy(),
        }  # fmt: skip
        return _fill(arrays, ~readable)
    index = labels.index[readable]
    if (index >= codec.num_classes).any() or _repeats(index).any():
        raise UsageError("index: has a class that the teacher doesn't have, or one class twice")
    if codec.spread_classes and (
        tail_mass is None or tail_mass.shape != (len(readable), codec.num_classes)
    ):
        raise UsageError(
            f"tail mass of shape {None if tail_mass is None else tail_mass.shape}; a codec with "
            f"mean tails needs [{len(readable)}, {codec.num_classes}]"
        )
    mass = tail_mass[readable] if tail_mass is not None and codec.spread_classes else None
    listed, codes = build_dictionaries(codec, index, mass)
    return dictionary_arrays(codec, labels, readable, listed, codes)


def dictionary_arrays(
    codec: DictionaryCodec,
    labels: TopKLabels,
    readable: Bools,
    listed: npt.NDArray[np.uint16],
    spread: npt.NDArray[np.uint8],
) -> dict[str, Array]:
    """`to_arrays` with given lists and spread codes [readable images, C]."""
    n, C = len(readable), codec.num_classes
    classes = np.full((n, C), NO_INDEX, np.uint16)
    classes[readable] = listed
    place = np.full(labels.index.shape, NO_INDEX, np.uint16)
    place[readable] = places_from_index(labels.index[readable], listed)
    fall = np.zeros((*labels.tail.shape, max(codec.top_k - 1, 1)), np.uint8)
    if codec.top_k > 1:
        fall = labels.code[..., 1:] - labels.code[..., :-1]
    arrays: dict[str, Array] = {
        "classes": classes, "place": place, "fall": fall, "tail": labels.tail.copy()
    }  # fmt: skip
    if codec.spread_classes:
        codes = np.full((n, C), NO_CODE, np.uint8)
        codes[readable] = spread
        arrays["spread"] = codes
    return _fill(arrays, ~readable)


def from_arrays(
    codec: TopKCodec,
    parts: Mapping[str, Array],
    lists: Dictionaries | None = None,
    first: int = 0,
    in_place: bool = False,
) -> TopKLabels:
    """Labels [n, M, ...] from the arrays of n images; fills stay fills.

    Args:
        lists: the images' lists, where they are packed already; `first`: which of them is the
            first image's. in_place: ids may go where the places are.
    Raises:
        ValueError: a label names a class beyond its image's list.
    """
    if not isinstance(codec, DictionaryCodec):
        return TopKLabels(parts["index"], codes_from_gaps(parts["gap"]), parts["tail"])
    lists = lists or Dictionaries.pack(parts["classes"])
    index = lists.index(parts["place"], first, parts["place"] if in_place else None)
    return TopKLabels(index, codes_from_falls(codec.top_k, parts["fall"]), parts["tail"])


def ranked_codes(
    codec: TopKCodec, parts: Mapping[str, Array]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Value codes [k, n, M] and first classes [n, M] of n images, all of them labelled.

    What sums over labels need, at a fraction of the cost of `from_arrays`.
    """
    if not isinstance(codec, DictionaryCodec):
        code = _by_rank(parts["gap"])
        first = parts["index"][..., 0]
    else:
        code = np.zeros((codec.top_k, *parts["tail"].shape), np.uint8)
        code[1:] = np.moveaxis(parts["fall"][..., : codec.top_k - 1], -1, 0)
        first = np.take_along_axis(parts["classes"], parts["place"][..., 0].astype(np.intp), axis=1)
    for rank in range(1, codec.top_k):
        code[rank] += code[rank - 1]
    return code, first


def codes_from_falls(top_k: int, fall: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Value codes [..., k]: 0 for the first class, then the sums of the falls."""
    code = np.zeros((*fall.shape[:-1], top_k), np.uint8)
    for rank in range(1, top_k):
        np.add(code[..., rank - 1], fall[..., rank - 1], out=code[..., rank])
    code[fall[..., 0] == NO_CODE] = NO_CODE
    return code


def label_faults(codec: TopKCodec, parts: Mapping[str, Array], ok: Bools) -> Iterator[Fault]:
    """What is wrong with the arrays of a block's labels, whose images `ok` [n] are readable."""
    readable, fills = ok[:, None], {"index": NO_INDEX, "place": NO_INDEX, "classes": NO_INDEX}
    values = "fall" if isinstance(codec, DictionaryCodec) else "gap"
    if isinstance(codec, DictionaryCodec):
        # places within a list without repeats never name a class twice, or one of another teacher
        yield from _dictionary_faults(codec, parts, ok)
    else:
        index = parts["index"]
        beyond = _by_rank(index).max(axis=0) >= codec.num_classes
        yield "index", beyond & readable, "has a class that the teacher doesn't have"
        yield "index", _repeats(index) & readable, "has the same class twice in a label"
    steps = _by_rank(parts[values])
    no_code = (steps.max(axis=0) == NO_CODE) | (steps.sum(axis=0, dtype=np.uint32) > MAX_CODE)
    yield values, no_code & readable, "has no code"
    yield "tail", (parts["tail"] > codec.max_tail_code) & readable, "has no tail"
    for part, array in parts.items():
        labelled = np.zeros(len(ok), bool)
        inner = tuple(range(1, array.ndim))
        labelled[~ok] = (array[~ok] != fills.get(part, NO_CODE)).any(axis=inner)
        yield part, labelled, "is masked but has labels"


def _dictionary_faults(
    codec: DictionaryCodec, parts: Mapping[str, Array], ok: Bools
) -> Iterator[Fault]:
    classes, place = parts["classes"], parts["place"]
    listed = classes != NO_INDEX
    gap = listed[:, 1:] & ~listed[:, :-1]
    yield "classes", gap.any(axis=1), "has a gap in its list of classes"
    known = np.where(listed, classes, 0) < codec.num_classes
    yield "classes", np.asarray(~known.all(axis=1)), "lists a class that the teacher doesn't have"
    ranked = np.sort(classes, axis=1)
    twice = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != NO_INDEX)
    yield "classes", twice.any(axis=1), "lists a class twice"
    # the r-th place counts what r classes before it leave
    left = listed.sum(axis=1)[:, None] - np.arange(codec.top_k)
    beyond = (place.max(axis=1, initial=0).astype(np.int64) >= left).any(axis=1)
    yield "place", beyond & ok, "names a class beyond its list"
    if codec.spread_classes:
        spread = parts["spread"]
        uneven = (spread == NO_CODE) == listed
        many = (spread < NOT_IN_TAIL).sum(axis=1) > codec.spread_classes
        yield "spread", (uneven.any(axis=1) | many) & ok, "has a mean tail that is not its list's"


def _by_rank(values: Array) -> Array:
    """[..., k] as a copy [k, ...]: what runs along ranks then runs over whole rows."""
    return np.moveaxis(values, -1, 0).copy()


def _repeats(index: Array) -> Bools:
    """Which labels [...] of [..., k] name a class twice."""
    if index.shape[-1] > MOST_PAIRED:
        ranked = np.sort(index, axis=-1)
        return np.asarray((ranked[..., 1:] == ranked[..., :-1]).any(axis=-1))
    ranks = _by_rank(index)
    found = np.zeros(index.shape[:-1], bool)
    for rank in range(1, len(ranks)):
        for before in range(rank):
            found |= ranks[rank] == ranks[before]
    return found


def _fill(arrays: dict[str, Array], masked: Bools) -> dict[str, Array]:
    if masked.any():
        for values in arrays.values():
            values[masked] = np.iinfo(values.dtype).max
    return arrays
