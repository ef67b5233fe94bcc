"""What a store says about its labels: sums a block leaves behind, and their summary.

Entropies are in nats and take the tail as spread evenly over the classes that aren't kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.classes import map_classes
from storage.codecs import TopKCodec
from storage.format import StoreSpec
from storage.images import ImageStatus
from storage.label_arrays import label_parts, ranked_codes
from storage.teacher_record import TeacherRecord

Array = npt.NDArray[Any]

SUMS = ("labels", "top1_prob", "tail", "entropy", "compared", "agreed")
SLICE_LABELS = 1 << 14


def measure_block(
    spec: StoreSpec,
    arrays: Mapping[str, Array],
    teachers: Mapping[str, TeacherRecord] | None = None,
) -> dict[str, dict[str, float]]:
    """Sums over the labels of a block's readable images, by teacher.

    Args:
        arrays: the block's part of every array, by array path.
        teachers: whose labels; None: of all that the settings name.
    """
    readable = arrays["images/status"] == ImageStatus.OK
    target = arrays["images/target"][readable]
    return {
        name: _measure_labels(
            spec,
            record,
            {p: arrays[f"labels/{name}/{p}"][readable] for p in label_parts(record.codec)},
            target,
        )
        for name, record in sorted((spec.teachers if teachers is None else teachers).items())
    }


def _measure_labels(
    spec: StoreSpec,
    record: TeacherRecord,
    parts: Mapping[str, Array],
    target: npt.NDArray[np.int32],
) -> dict[str, float]:
    """In slices of images, whose float64 values stay in the processor's cache."""
    step = max(1, SLICE_LABELS // spec.num_views)
    slices = [slice(first, first + step) for first in range(0, len(target), step)]
    found = [
        _measure_slice(spec, record, {p: v[rows] for p, v in parts.items()}, target[rows])
        for rows in slices
    ]
    return {name: math.fsum(sums[name] for sums in found) for name in SUMS}


def _measure_slice(
    spec: StoreSpec,
    record: TeacherRecord,
    parts: Mapping[str, Array],
    target: npt.NDArray[np.int32],
) -> dict[str, float]:
    """`decoded_entropy` and the like of `TopKCodec.decode`, without decoding every class.

    With weights w of the kept classes, W their sum and s = 1 - t, p = s w / W and so
    sum of p ln p = s (ln s + sum of w ln w / W - ln W): one logarithm a label, the rest by table.
    """
    code, top1 = ranked_codes(record.codec, parts)
    weight = record.codec.value_table().astype(np.float64)
    tail = record.codec.tail_table().astype(np.float64)
    kept, others = 1 - tail, max(record.num_classes - record.codec.top_k, 1)
    total, spread = np.zeros(top1.shape), np.zeros(top1.shape)
    log_weight = weight * _log(weight)
    for rank in code:
        total += weight[rank]
        spread += log_weight[rank]
    inner = kept[parts["tail"]] * (spread / total - np.log(total))
    outer = kept * _log(kept) + tail * _log(tail / others)
    sums = {
        "labels": float(top1.size),
        "top1_prob": float((kept[parts["tail"]] * weight[code[0]] / total).sum()),
        "tail": float(tail[parts["tail"]].sum()),
        "entropy": float(-(inner + outer[parts["tail"]]).sum()),
        "compared": 0.0,
        "agreed": 0.0,
    }
    mapped = map_classes(spec.dataset.get("classes") or (), record.classes)
    if mapped is not None:
        known = target >= 0
        found = top1[known]
        sums["compared"] = float(found.size)
        sums["agreed"] = float((found == mapped[target[known]][:, None]).sum())
    return sums


def decoded_entropy(
    codec: TopKCodec, probs: npt.NDArray[np.float64], tail: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Entropy [...] in nats of decoded labels [..., k] and [...], the tail spread evenly."""
    others = max(codec.num_classes - codec.top_k, 1)
    return np.asarray(-(probs * _log(probs)).sum(axis=-1) - tail * _log(tail / others))


def summarise(blocks: Iterable[dict[str, float]]) -> dict[str, Any]:
    """The store's measured summary from the sums of all its blocks."""
    blocks = list(blocks)
    total = {name: math.fsum(block[name] for block in blocks) for name in SUMS}
    labels = max(total["labels"], 1)
    agreement = round(total["agreed"] / total["compared"], 6) if total["compared"] else None
    return {
        "labels": int(total["labels"]),
        "top1_agreement": agreement,
        "mean_top1_prob": round(total["top1_prob"] / labels, 6),
        "mean_tail": round(total["tail"] / labels, 6),
        "mean_entropy_nats": round(total["entropy"] / labels, 6),
    }


def _log(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(values, 1e-300))
