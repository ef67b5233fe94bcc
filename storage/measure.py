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
from storage.codecs import TopKLabels
from storage.format import StoreSpec, TeacherRecord
from storage.images import ImageStatus
from storage.label_arrays import from_arrays, label_parts

Array = npt.NDArray[Any]

SUMS = ("labels", "top1_prob", "tail", "entropy", "compared", "agreed")
SLICE_LABELS = 1 << 16


def measure_block(spec: StoreSpec, arrays: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Sums over the labels of a block's readable images, by teacher.

    Args:
        arrays: the block's part of every array, by array path.
    """
    readable = arrays["images/status"] == ImageStatus.OK
    target = arrays["images/target"][readable]
    return {
        name: _measure_labels(
            spec,
            record,
            from_arrays(
                record.codec,
                {p: arrays[f"labels/{name}/{p}"][readable] for p in label_parts(record.codec)},
            ),
            target,
        )
        for name, record in sorted(spec.teachers.items())
    }


def _measure_labels(
    spec: StoreSpec, record: TeacherRecord, labels: TopKLabels, target: npt.NDArray[np.int32]
) -> dict[str, float]:
    """In slices of images, whose float64 values stay within some tens of megabytes."""
    step = max(1, SLICE_LABELS // spec.num_views)
    slices = [slice(first, first + step) for first in range(0, len(target), step)]
    found = [
        _measure_slice(
            spec, record,
            TopKLabels(labels.index[rows], labels.code[rows], labels.tail[rows]), target[rows],
        )
        for rows in slices
    ]  # fmt: skip
    return {name: math.fsum(sums[name] for sums in found) for name in SUMS}


def _measure_slice(
    spec: StoreSpec, record: TeacherRecord, labels: TopKLabels, target: npt.NDArray[np.int32]
) -> dict[str, float]:
    probs, tail = (values.astype(np.float64) for values in record.codec.decode(labels))
    others = max(record.num_classes - record.codec.top_k, 1)
    entropy = -(probs * _log(probs)).sum(axis=-1) - tail * _log(tail / others)
    sums = {
        "labels": float(tail.size),
        "top1_prob": float(probs[..., 0].sum()),
        "tail": float(tail.sum()),
        "entropy": float(entropy.sum()),
        "compared": 0.0,
        "agreed": 0.0,
    }
    mapped = map_classes(spec.dataset.get("classes") or (), record.classes)
    if mapped is not None:
        known = target >= 0
        top1 = labels.index[known][..., 0]
        sums["compared"] = float(top1.size)
        sums["agreed"] = float((top1 == mapped[target[known]][:, None]).sum())
    return sums


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
