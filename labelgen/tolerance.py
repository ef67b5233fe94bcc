"""How far a label may be from the teacher's output of today, and whether it is.

The same network gives other last bits on another device, in another batch, in another precision.
How much is measured on the spot: the crops of a first batch are forwarded in fp32, in the
precision of this run and in that of the store, and the largest differences of their
log-probabilities are taken twice. Beside them stands what fp32 alone may do:

    eps = FP32_ERROR max(1, range of the log-probabilities)
          + 2 (largest |here - fp32| + largest |store's precision - fp32|)

A CPU, which has no tf32 or fp16, uses a quarter of bf16's difference for them: they keep 3 bits
more, so an eighth is to be expected. A label is right if some log-probabilities within eps of
today's would have been coded as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import TopKCodec, TopKLabels
from storage.targets.record import VectorPart

FP32_ERROR = 2.0**-13  # of the range: 2^-24 a step, some thousand steps
BF16_SHARE = 0.25
SAFETY = 2.0
VECTOR_ERROR = 2.0**-11  # of a vector's largest value, where fp32 alone differs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """eps: of log-probabilities, in nats. vectors: of targets' values, by path and part."""

    eps: float
    vectors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def log_prob_tolerance(exact: Floats, others: Mapping[str, float]) -> float:
    """eps for log-probabilities [n, C] in fp32, given the largest difference of each precision."""
    reach = float(np.ptp(exact, axis=1).max()) if exact.size else 0.0
    return FP32_ERROR * max(1.0, reach) + SAFETY * sum(others.values())


def largest_difference(exact: Floats, other: Floats, kept: int) -> float:
    """Largest |difference| of log-probabilities [n, C] among the 2 `kept` likeliest classes."""
    count = min(2 * kept, exact.shape[1])
    likely = np.argsort(-exact, axis=1)[:, :count]
    away = np.take_along_axis(exact, likely, 1) - np.take_along_axis(other, likely, 1)
    return float(np.abs(away).max()) if away.size else 0.0


def label_fits(codec: TopKCodec, log_probs: Floats, labels: TopKLabels, eps: float) -> str | None:
    """What is wrong with one label [k], given today's log-probabilities [C]; None where nothing is.

    Returns:
        "classes" where others are kept, or in another order, "values" or "tail".
    """
    index = labels.index.astype(np.intp)
    if len(set(index.tolist())) < codec.top_k or index.max() >= codec.num_classes:
        return "classes"
    kept = log_probs[index]
    least = np.sort(log_probs)[-codec.top_k]
    if (kept < least - 2 * eps).any() or (kept[1:] > kept[:-1] + 2 * eps).any():
        return "classes"
    first = np.zeros(codec.top_k)
    first[0] = 1.0
    moves = (eps, -eps, eps * (2 * first - 1), eps * (1 - 2 * first))
    probs = np.exp(log_probs)
    probs[index] = 0
    rest = float(probs.sum())
    codes = [codec.encode_topk(kept + move, index, np.zeros(())).code for move in moves]
    if (labels.code < np.min(codes, axis=0)).any() or (labels.code > np.max(codes, axis=0)).any():
        return "values"
    tails = [
        int(codec.encode_topk(kept, index, np.array(min(rest * np.exp(move), 1.0))).tail)
        for move in (-eps, eps)
    ]
    return None if tails[0] <= int(labels.tail) <= tails[1] else "tail"


def vectors_fit(
    part: VectorPart, values: npt.NDArray[np.float32], stored: npt.NDArray[np.float32], eps: float
) -> bool:
    """Whether one view's stored vectors [*shape] are today's, but for their coding and `eps`."""
    away = np.abs(values.astype(np.float64) - stored)
    return bool((away <= coding_error(part, values) + eps + VECTOR_ERROR * _largest(values)).all())


def coding_error(part: VectorPart, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Largest error of a part's encoding, of its shape or one that broadcasts to it."""
    exact = values.astype(np.float64)
    if part.encoding == "fp32":
        return np.zeros_like(exact)
    if part.encoding == "fp16":
        return np.maximum(2.0**-11 * np.abs(exact), 2.0**-25)
    if part.encoding == "int8":
        largest: npt.NDArray[Any] = np.abs(exact).max(axis=-1, keepdims=True)
        scaled: npt.NDArray[Any] = 0.501 * largest / 127
        return scaled
    spread: npt.NDArray[Any] = np.ptp(exact, axis=-1, keepdims=True)
    reach: npt.NDArray[Any] = np.abs(exact).max(axis=-1, keepdims=True)
    error: npt.NDArray[Any] = 0.501 * spread / 255 + 2.0**-23 * reach
    return error


def _largest(values: npt.NDArray[np.float32]) -> float:
    return float(np.abs(values).max()) if values.size else 0.0
