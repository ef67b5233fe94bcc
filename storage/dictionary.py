"""The dictionary codec: top-k labels whose class ids are places in a list of the image's own.

A crop's classes are mostly the same few for all views of an image. Each image has a list of them,
the likely ones first, and a label names each class by its place among those of the list that the
label hasn't named yet: small numbers, which compress to half the bytes of class ids (docs/codec.md
has the figures). Value codes are relative to the label's first class, which says all there is to
say beside the tail mass. Tail masses are coded by angle down to 0.01 and by logarithm below, so
that a temperature finds what is left of a small tail.

The list also carries the image's mean tail: how the mass beyond the k kept classes lies over
classes on average over all views. A tail decoded with it is nearer the teacher's than an even one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import (
    MAX_CODE,
    Float32,
    Floats,
    TopKCodec,
    TopKLabels,
)
from storage.errors import FormatVersion, UsageError

DICTIONARY_VERSION = 1
TAIL_CORNER = 0.01  # tail masses above lie on an angle scale, those below on a logarithmic one
LOG_CODES = 28  # codes of the logarithmic part, LOG_STEP nats each
LOG_STEP = 0.5
ANGLE_CODES = 60
MAX_TAIL_CODE = LOG_CODES + ANGLE_CODES
DEFAULT_STEP = 0.3
DEFAULT_SPREAD_CLASSES = 64
DEFAULT_SPREAD_WEIGHT = 0.5

Uint16 = npt.NDArray[np.uint16]
Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageTail:
    """Mean tails of n images.

    index: uint16 [n, S] classes, distinct in a row but for the unused ends of rows.
    share: float32 [n, S] their share of the image's mean tail; 0 where unused.
    """

    index: Uint16
    share: Float32


@dataclass(frozen=True, kw_only=True)
class DictionaryCodec(TopKCodec):
    """k kept classes of `num_classes`, named by their places in a list of each image's own.

    step: nats a value code.
    spread_classes: classes of the image's mean tail; 0 to keep none.
    spread_weight: share of a label's tail that follows the mean tail; the rest is spread evenly.
    """

    step: float = DEFAULT_STEP
    spread_classes: int = DEFAULT_SPREAD_CLASSES
    spread_weight: float = DEFAULT_SPREAD_WEIGHT

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.spread_classes <= self.num_classes:
            raise UsageError(
                f"mean tails of {self.spread_classes} classes; expected 0 to the teacher's "
                f"{self.num_classes}"
            )
        if not 0 <= self.spread_weight < 1:
            raise UsageError(
                f"weight of the mean tail is {self.spread_weight}; expected 0 to less than 1 "
                "(some of the tail must be spread evenly, or a class may get no mass at all)"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {
            **super().to_json(),
            "kind": "top-k-dictionary",
            "version": DICTIONARY_VERSION,
            "spread_classes": self.spread_classes,
            "spread_weight": self.spread_weight,
        }

    @property
    def max_error(self) -> float:
        """As `TopKCodec.max_error`; the tail's angle moves by at most half of its own step."""
        return super().max_error + _angle_step() / 2 - math.pi / (4 * MAX_CODE)

    def dense_with_tail(self, labels: TopKLabels, tail: ImageTail) -> Float32:
        """All C probabilities, float32 [n, V, C], the tail by the image's mean.

        Args:
            labels: [n, V, ...] of n images; tail: theirs.
        """
        soft = self.soft(labels)
        dense = self.dense(soft)
        mean = np.zeros((*labels.tail.shape[:1], self.num_classes), np.float32)
        rows = np.arange(len(mean))[:, None]
        np.add.at(mean, (rows, tail.index.astype(np.intp)), tail.share)
        spread = np.repeat(mean[:, None], labels.tail.shape[1], axis=1)
        written = np.minimum(soft.index, self.num_classes - 1).astype(np.intp)
        np.put_along_axis(spread, written, np.float32(0), axis=-1)
        total = spread.sum(axis=-1, keepdims=True)
        weight = np.where(total > 0, np.float32(self.spread_weight), 0).astype(np.float32)
        spread *= weight * soft.rest[..., None] / np.maximum(total, np.float32(1e-30))
        kept = np.take_along_axis(dense, written, axis=-1)
        dense *= 1 - weight
        dense += spread
        np.put_along_axis(dense, written, kept, axis=-1)
        return dense

    def _tail_mass(self, log_probs: Floats, index: npt.NDArray[np.integer[Any]]) -> Floats:
        others = np.exp(log_probs.astype(np.float64))  # 1 - sum of the kept loses small tails
        np.put_along_axis(others, index, 0.0, axis=-1)
        return np.asarray(others.sum(axis=-1))

    def _value_codes(self, log_prob: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            fall = log_prob[..., :1] - log_prob
        # -inf below -inf: a label without mass on any kept class, all of which count alike
        return np.rint(np.nan_to_num(fall, nan=0.0, posinf=np.inf) / self.step)

    def tail_codes(self, mass: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Codes uint8 [...] of tail masses 0 to 1."""
        angle = np.arcsin(np.sqrt(np.maximum(mass, TAIL_CORNER)))
        upper = (angle - math.asin(math.sqrt(TAIL_CORNER))) / _angle_step()
        lower = np.log(np.clip(mass, 1e-300, TAIL_CORNER) / TAIL_CORNER) / LOG_STEP
        code = np.maximum(np.rint(upper) + np.rint(lower) + LOG_CODES, 0)
        return np.asarray(code, np.uint8)

    def tail_table(self) -> Float32:
        """Tail mass of every code, float32 [256]; NaN where a code is none."""
        code = np.arange(256, dtype=np.float64)
        corner = math.asin(math.sqrt(TAIL_CORNER))
        upper = np.sin(corner + (code - LOG_CODES) * _angle_step()) ** 2
        lower = TAIL_CORNER * np.exp((code - LOG_CODES) * LOG_STEP)
        table = np.where(code < LOG_CODES, lower, upper)
        table[MAX_TAIL_CODE + 1 :] = np.nan
        if self.top_k == self.num_classes:
            table[0] = 0  # no other class is left
        return np.asarray(table, np.float32)

    @property
    def max_tail_code(self) -> int:
        """The largest tail code there is."""
        return MAX_TAIL_CODE


def default_codec(num_classes: int, top_k: int, num_views: int) -> DictionaryCodec:
    """What `labelgen run` uses: a mean tail of at most one class for two views, which keeps it
    below a byte a crop, and none where no classes are left for it."""
    left = num_classes - top_k
    spread = min(DEFAULT_SPREAD_CLASSES, num_views // 2, num_classes) if left > 1 else 0
    return DictionaryCodec(num_classes=num_classes, top_k=top_k, spread_classes=spread)


def codec_from_json(values: dict[str, Any]) -> TopKCodec:
    """The codec that `to_json` described.

    Raises:
        FormatVersion: another kind or version of codec.
    """
    if values.get("kind") != "top-k-dictionary":
        return TopKCodec.from_json(values)
    if values.get("version") != DICTIONARY_VERSION:
        raise FormatVersion(
            f"label codec 'top-k-dictionary' version {values.get('version')!r}; this release "
            f"knows version {DICTIONARY_VERSION}: install a newer teachonce"
        )
    names = ("num_classes", "top_k", "step", "spread_classes", "spread_weight")
    return DictionaryCodec(**{name: values[name] for name in names})


def _angle_step() -> float:
    return (math.pi / 2 - math.asin(math.sqrt(TAIL_CORNER))) / ANGLE_CODES
