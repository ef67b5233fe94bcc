"""Fewer classes of stored labels: the integers stay, the mass that is cut off joins the tail."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.codecs import NO_CODE, NO_INDEX, TopKCodec, TopKLabels, gaps_from_codes
from storage.dictionary import DictionaryCodec, ImageTail
from storage.errors import UsageError
from storage.label_arrays import dictionary_arrays, from_arrays
from storage.lists import build_dictionaries, mean_tails


def tail_error(codec: TopKCodec) -> float:
    """Upper bound on what coding a tail mass anew adds to a label's probabilities.

    A mass is coded to within half of a step of its angle (or less): half of the largest gap
    between neighbouring masses, but for the bend of sin^2 within a step (below 0.1 %).
    """
    masses = codec.tail_table()[: codec.max_tail_code + 1].astype(np.float64)
    return float(np.diff(masses).max()) / 2 * 1.001


def cut_topk(codec: TopKCodec, labels: TopKLabels, top_k: int) -> tuple[TopKCodec, TopKLabels]:
    """Keep the first `top_k` classes of every label.

    Ids and value codes are the first `top_k` as they stand. The tail is coded anew: it is the
    decoded mass of all that isn't kept, on the codec's own scale. Decoded, each kept class and the
    tail differ from what the whole label decodes to by at most `tail_error`: the shares among the
    kept classes don't change, and their sum moves with the rounding of the tail alone.

    Args:
        labels: of any leading shape; fills stay fills.
    Raises:
        UsageError: more classes than are stored, or none.
    """
    if not 1 <= top_k <= codec.top_k:
        raise UsageError(f"top-k is {top_k}; the store keeps {codec.top_k} classes a label")
    cut = dataclasses.replace(codec, top_k=top_k)
    if top_k == codec.top_k:
        return cut, labels
    weight = np.exp(-codec.step * np.arange(256))[labels.code]
    tail = codec.tail_table().astype(np.float64)[labels.tail]
    kept = (1 - tail) * weight[..., :top_k].sum(axis=-1) / weight.sum(axis=-1)
    tail_code = cut.tail_codes(np.clip(np.nan_to_num(1 - kept), 0, 1))
    tail_code[labels.tail == NO_CODE] = NO_CODE
    index = np.ascontiguousarray(labels.index[..., :top_k])
    return cut, TopKLabels(index, np.ascontiguousarray(labels.code[..., :top_k]), tail_code)


def cut_arrays(codec: TopKCodec, parts: Mapping[str, Array], top_k: int) -> dict[str, Array]:
    """`cut_topk` on the arrays of n images' labels [n, M, ...], by part.

    Lists of classes stay as they are. Mean tails get the classes that are cut: their decoded mass
    over the stored views, beside what the old mean tail had.
    """
    labels = from_arrays(codec, parts)
    cut, kept = cut_topk(codec, labels, top_k)
    if not isinstance(codec, DictionaryCodec) or not isinstance(cut, DictionaryCodec):
        return {"index": kept.index, "gap": gaps_from_codes(kept.code), "tail": kept.tail}
    readable = parts["tail"][:, 0] != NO_CODE
    classes = parts["classes"][readable]
    spread = np.empty(classes.shape, np.uint8)
    if codec.spread_classes and readable.any():
        inside = TopKLabels(*(p[readable] for p in (labels.index, labels.code, labels.tail)))
        mass = _mass_beyond(
            codec, inside, mean_tails(codec, classes, parts["spread"][readable]), top_k
        )
        classes, spread = build_dictionaries(cut, kept.index[readable], mass, first=classes)
    return dictionary_arrays(cut, kept, readable, classes, spread)


def _mass_beyond(
    codec: DictionaryCodec, labels: TopKLabels, tails: ImageTail, top_k: int
) -> npt.NDArray[np.float64]:
    """Mass [n, C] of the classes beyond the first `top_k`, summed over the views of each image.

    The old tails lie as the images' mean tails, outside the classes that a label keeps.
    """
    found = np.zeros((len(labels.index), codec.num_classes))
    for image, mass in enumerate(found):
        index = labels.index[image].astype(np.intp)
        probs, rest = codec.decode(
            TopKLabels(labels.index[image], labels.code[image], labels.tail[image])
        )
        share = np.zeros(codec.num_classes)
        np.add.at(share, tails.index[image].astype(np.intp), tails.share[image])
        left = 1 - share[index].sum(axis=-1)
        scale = np.where(left > 1e-9, rest / np.maximum(left, 1e-9), 0)
        named = np.bincount(index.ravel(), np.repeat(scale, index.shape[1]), len(share))
        mass += np.maximum(share * (scale.sum() - named), 0)
        np.add.at(mass, index[:, top_k:], probs[:, top_k:])
    assert labels.index.size == 0 or labels.index.max() != NO_INDEX, "readable images only"
    return found
