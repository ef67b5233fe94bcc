"""Stored labels at a temperature other than the one they were made with.

A label gives p for k classes and the mass t of all others. At temperature T every class weighs
p ** (1 / T); how the tail's mass lies over its classes decides what it weighs, and that isn't
stored. Spread evenly it weighs (C - k) ** (1 - 1/T) * t ** (1/T).

Error of a kept class beside rounding, for T > 1: x ** (1/T) is concave and no tail class exceeds
the last kept one, so the true tail weighs at most as much as an even one and at least
t * p_k ** (1/T - 1). The kept classes' share is thus known between two numbers, and a kept class
errs by at most their difference (for T < 1 the two change places).
"""

from __future__ import annotations

import numpy as np

from storage.codecs import Float32, Floats, SoftLabels, TopKCodec, TopKLabels
from storage.errors import UsageError


def soften(codec: TopKCodec, labels: TopKLabels, temperature: float) -> SoftLabels:
    """Labels at `temperature`, the tail spread evenly; sums to 1, NaN for fills.

    Raises:
        UsageError: a temperature that isn't positive.
    """
    kept, even, _ = _weights(codec, labels, temperature)
    total = kept.sum(axis=-1) + even
    probs = (kept / total[..., None]).astype(np.float32)
    return SoftLabels(labels.index, probs, (even / total).astype(np.float32))


def temperature_error(codec: TopKCodec, labels: TopKLabels, temperature: float) -> Float32:
    """Largest error [...] of a kept class in `soften`, beside what rounding adds.

    Rounding adds at most tanh(step / (4 T)) for the shares among the kept classes, and for the odds
    of the tail (codec top-k-dictionary, tails up to 1/2), which err by at most 0.25 + 2 step in
    log over T, a quarter of that.
    """
    kept, even, steep = _weights(codec, labels, temperature)
    total = kept.sum(axis=-1)
    error = np.abs(total / (total + even) - total / (total + steep))
    return np.asarray(error, np.float32)


def soften_dense(probs: Floats, temperature: float) -> Floats:
    """Dense distributions [..., C] at `temperature`."""
    _check(temperature)
    with np.errstate(divide="ignore"):
        logs = np.log(probs) / temperature
    weights = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _weights(
    codec: TopKCodec, labels: TopKLabels, temperature: float
) -> tuple[Floats, Floats, Floats]:
    """Weights at T, float64: kept [..., k]; of an even tail [...]; of the steepest one [...]."""
    _check(temperature)
    probs, tail = (values.astype(np.float64) for values in codec.decode(labels))
    power, others = 1 / temperature, codec.num_classes - codec.top_k
    kept = np.maximum(probs, 1e-300) ** power
    kept[np.isnan(probs)] = np.nan
    even = max(others, 1) ** (1 - power) * tail**power * (others > 0)
    steep = tail * np.maximum(probs[..., -1], 1e-300) ** (power - 1) * (others > 0)
    return kept, even, steep


def _check(temperature: float) -> None:
    if not 0 < temperature < np.inf:
        raise UsageError(f"temperature is {temperature}; expected a positive number")
