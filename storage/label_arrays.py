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
) -> TopKLabels:
    """Labels [n, M, ...] from the arrays of n images; fills stay fills.

    Args:
        lists: the images' lists, where they are packed already; `first`: which of them is the
            first image's.
    Raises:
        ValueError: a label names a class beyond its image's list.
    """
    if not isinstance(codec, DictionaryCodec):
        return TopKLabels(parts["index"], codes_from_gaps(parts["gap"]), parts["tail"])
    lists = lists or Dictionaries.pack(parts["classes"])
    index = lists.index(parts["place"], first)
    return TopKLabels(index, codes_from_falls(codec.top_k, parts["fall"]), parts["tail"])


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
        faults = list(_dictionary_faults(codec, parts, ok))
        yield from faults
        sound = not any(where.any() for _, where, _ in faults)
        index = Dictionaries.pack(parts["classes"]).index(parts["place"]) if sound else None
        named = "place"
    else:
        index, named = parts["index"], "index"
    if index is not None:
        beyond = (index >= codec.num_classes).any(axis=-1) & readable
        yield named, beyond, "has a class that the teacher doesn't have"
        yield named, np.asarray(_repeats(index) & readable), "has the same class twice in a label"
    steps = parts[values]
    no_code = (steps == NO_CODE).any(axis=-1) | (steps.sum(axis=-1, dtype=np.int64) > MAX_CODE)
    yield values, no_code & readable, "has no code"
    yield "tail", (parts["tail"] > codec.max_tail_code) & readable, "has no tail"
    for part, array in parts.items():
        filled = (array == fills.get(part, NO_CODE)).reshape(len(ok), -1).all(axis=1)
        yield part, ~filled & ~ok, "is masked but has labels"


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
    beyond = (place.astype(np.int64) >= left[:, None]).any(axis=(1, 2))
    yield "place", beyond & ok, "names a class beyond its list"
    if codec.spread_classes:
        spread = parts["spread"]
        uneven = (spread == NO_CODE) == listed
        many = (spread < NOT_IN_TAIL).sum(axis=1) > codec.spread_classes
        yield "spread", (uneven.any(axis=1) | many) & ok, "has a mean tail that is not its list's"


def _repeats(index: Array) -> Bools:
    ranked = np.sort(index, axis=-1)
    return np.asarray((ranked[..., 1:] == ranked[..., :-1]).any(axis=-1))


def _fill(arrays: dict[str, Array], masked: Bools) -> dict[str, Array]:
    if masked.any():
        for values in arrays.values():
            values[masked] = np.iinfo(values.dtype).max
    return arrays
