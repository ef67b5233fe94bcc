"""The top-k codec: soft labels as small integers, with a stated error.

A label is the k most probable classes (falling, equal ones by class id), a value code for each
and one tail code:

    code = rint(-log p / step), 0 .. 254      log-probabilities on a grid of `step` nats
    tail = rint(254 * asin(sqrt(t)) / (pi/2)) the mass t of all other classes, on an angle scale
    decoded p = exp(-step * code), scaled so that the k of them sum to 1 - t

FKD's label types (Shen & Xing 2022, "label quantization") are decodings of these labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import FormatVersion, UsageError
from storage.typed import check_types

CODEC_VERSION = 1
MAX_CODE = 254
NO_INDEX = 65_535  # fill values: no label has been written
NO_CODE = 255
LABEL_TYPES = ("hard", "smoothing", "marginal_smoothing", "marginal_renorm")

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TopKLabels:
    """Encoded labels of any leading shape.

    index: uint16 [..., k], classes in falling probability.
    code: uint8 [..., k], never falling along k.
    tail: uint8 [...].
    """

    index: npt.NDArray[np.uint16]
    code: npt.NDArray[np.uint8]
    tail: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SoftLabels:
    """Decoded labels: `probs` of the classes `index`, `rest` spread evenly over all others.

    index: uint16 [..., k]; probs: float32 [..., k]; rest: float32 [...].
    """

    index: npt.NDArray[np.uint16]
    probs: Float32
    rest: Float32


@dataclass(frozen=True, kw_only=True)
class TopKCodec:
    """k kept classes of `num_classes`, log-probabilities in steps of `step` nats."""

    num_classes: int
    top_k: int = 10
    step: float = 0.25

    def __post_init__(self) -> None:
        check_types(self)
        if not 2 <= self.num_classes <= NO_INDEX:
            raise UsageError(f"{self.num_classes} classes; expected 2 to {NO_INDEX}")
        if not 1 <= self.top_k <= self.num_classes:
            raise UsageError(
                f"top-k is {self.top_k}; expected 1 to the teacher's {self.num_classes} classes"
            )
        if not 0.05 <= self.step <= 1:
            raise UsageError(f"codec step is {self.step} nats; expected 0.05 to 1")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {
            "kind": "top-k",
            "version": CODEC_VERSION,
            "num_classes": self.num_classes,
            "top_k": self.top_k,
            "step": self.step,
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> TopKCodec:
        """The codec that `to_json` described.

        Raises:
            FormatVersion: another kind or version of codec.
        """
        if values.get("kind") != "top-k" or values.get("version") != CODEC_VERSION:
            raise FormatVersion(
                f"label codec {values.get('kind')!r} version {values.get('version')!r}; this "
                f"release knows top-k version {CODEC_VERSION}: install a newer teachonce"
            )
        return TopKCodec(
            num_classes=values["num_classes"], top_k=values["top_k"], step=values["step"]
        )

    def encode(self, log_probs: Floats) -> TopKLabels:
        """Encode dense log-probabilities [..., C]; the definition that faster paths must equal.

        Raises:
            UsageError: the last axis isn't C long, or a value is NaN or +inf.
        """
        log_probs = np.asarray(log_probs)
        if log_probs.shape[-1:] != (self.num_classes,):
            raise UsageError(
                f"log-probabilities of shape {log_probs.shape}; expected [..., {self.num_classes}]"
            )
        # a stable sort leaves equal classes in order of their id
        index = np.argsort(-log_probs, axis=-1, kind="stable")[..., : self.top_k]
        kept = np.take_along_axis(log_probs, index, axis=-1).astype(np.float64)
        return self.encode_topk(kept, index, self._tail_mass(log_probs, index))

    def encode_topk(
        self, log_prob: Floats, index: npt.NDArray[np.integer[Any]], tail: Floats
    ) -> TopKLabels:
        """Encode the k most probable classes, already found and sorted by the device.

        Args:
            log_prob: [..., k] natural logarithms, falling along k.
            index: [..., k] their classes.
            tail: [...], 1 - sum of the k probabilities; rounding noise outside 0..1 is clipped.
        Raises:
            UsageError: a shape differs, or a value is NaN or +inf.
        """
        logs = np.asarray(log_prob, np.float64)
        tail, shape = np.asarray(tail, np.float64), logs.shape
        if shape[-1:] != (self.top_k,) or np.shape(index) != shape or tail.shape != shape[:-1]:
            raise UsageError(
                f"top-k labels of shapes {shape}, {np.shape(index)} and {tail.shape}; expected "
                f"[..., {self.top_k}], the same and [...]"
            )
        if np.isnan(logs).any() or np.isposinf(logs).any() or not np.isfinite(tail).all():
            raise UsageError("log-probabilities hold NaN or +inf: the teacher's output is broken")
        code = np.clip(self._value_codes(logs), 0, MAX_CODE).astype(np.uint8)
        if self.top_k == self.num_classes:
            tail = np.zeros_like(tail)  # no other class is left
        tail_code = self.tail_codes(np.clip(tail, 0, 1))
        return TopKLabels(np.asarray(index).astype(np.uint16), code, tail_code)

    def decode(self, labels: TopKLabels) -> tuple[Float32, Float32]:
        """Probabilities float32 [..., k] and tail mass float32 [...], summing to 1.

        Fill values (rows of masked or unwritten images) decode to NaN: absence is no label.
        """
        # "clip" spares a look at every code (there are 256 of each), einsum short inner loops
        probs = np.take(self.value_table(), labels.code, mode="clip")
        tail = np.take(self.tail_table(), labels.tail, mode="clip")
        probs *= ((1 - tail) / np.einsum("...k->...", probs))[..., None]
        return probs, tail

    def soft(
        self,
        labels: TopKLabels,
        label_type: str = "marginal_smoothing",
        top_k: int | None = None,
    ) -> SoftLabels:
        """Decode as one of FKD's label types.

        Args:
            label_type: `hard` (all mass on the first class), `smoothing` (the first keeps its p,
                the rest is spread evenly), `marginal_smoothing` (the first `top_k` keep theirs, the
                rest is spread evenly) or `marginal_renorm` (the first `top_k` scaled to sum 1).
            top_k: classes used by the marginal types; all that are stored where None.
        Raises:
            UsageError: an unknown label type, or more classes than are stored.
        """
        if label_type not in LABEL_TYPES:
            raise UsageError(f"label type {label_type!r}; expected one of {', '.join(LABEL_TYPES)}")
        kept = self.top_k if top_k is None else top_k
        if not 1 <= kept <= self.top_k:
            raise UsageError(f"top-k is {kept}; the store keeps 1 to {self.top_k} classes a label")
        probs, tail = self.decode(labels)
        if label_type in ("hard", "smoothing"):
            kept = 1
        dropped = probs[..., kept:].sum(axis=-1) + tail
        index, probs = labels.index[..., :kept], np.ascontiguousarray(probs[..., :kept])
        if label_type == "hard":
            return SoftLabels(index, probs / probs, dropped * 0)  # NaN stays NaN for fills
        if label_type == "marginal_renorm":
            total = np.maximum(probs.sum(axis=-1, keepdims=True), np.float32(1e-12))
            return SoftLabels(index, probs / total, dropped * 0)
        return SoftLabels(index, probs, dropped)

    def dense(self, labels: TopKLabels | SoftLabels) -> Float32:
        """All C probabilities, float32 [..., C]; the tail is spread evenly."""
        soft = self.soft(labels) if isinstance(labels, TopKLabels) else labels
        others = self.num_classes - soft.index.shape[-1]
        share = soft.rest / max(others, 1)
        dense = np.repeat(share[..., None], self.num_classes, axis=-1).astype(np.float32)
        written = np.minimum(soft.index, self.num_classes - 1)  # fills stay NaN wherever they go
        np.put_along_axis(dense, written.astype(np.intp), soft.probs, axis=-1)
        return dense

    @property
    def max_error(self) -> float:
        """Upper bound on |decoded p - p| of a kept class, and on |decoded t - t|.

        Codes round log p by at most step/2 either way, so the kept classes' shares move by at
        most tanh(step/4) (the steepest two-class case); the tail's angle moves by at most
        pi/1016, and t = sin^2 has slope at most 1. Codes clamp at 254: classes below
        exp(-254 * step) are read as that. float32 arithmetic adds less than 1e-6.
        """
        clamp = math.exp(-MAX_CODE * self.step) * self.top_k
        return math.tanh(self.step / 4) + math.pi / (4 * MAX_CODE) + clamp + 1e-6

    @property
    def max_tail_code(self) -> int:
        """The largest tail code there is."""
        return MAX_CODE

    def _tail_mass(self, log_probs: Floats, index: npt.NDArray[np.integer[Any]]) -> Floats:
        kept = np.take_along_axis(log_probs, index, axis=-1).astype(np.float64)
        return np.asarray(1 - np.exp(kept).sum(axis=-1))

    def _value_codes(self, log_prob: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.rint(-log_prob / self.step)

    def tail_codes(self, mass: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Codes uint8 [...] of tail masses 0 to 1."""
        angle = np.arcsin(np.sqrt(mass))
        return np.rint(angle * (MAX_CODE / (math.pi / 2))).astype(np.uint8)

    def tail_table(self) -> Float32:
        """Tail mass of every code, float32 [256]; NaN where a code is none."""
        table: npt.NDArray[np.float64] = np.sin(np.arange(256) * (math.pi / 2 / MAX_CODE)) ** 2
        table[NO_CODE] = np.nan
        return np.asarray(table, np.float32)

    def value_table(self) -> Float32:
        """Weight among the kept classes of every value code, float32 [256]; NaN for `NO_CODE`."""
        table: npt.NDArray[np.float64] = np.exp(-self.step * np.arange(256))
        table[NO_CODE] = np.nan
        # float32 has no room for exp(-254): keep the smallest normal number instead of zero, so
        # that k = 1 with a tiny code-254 value still renormalises
        floor = float(np.finfo(np.float32).tiny)
        return np.asarray(np.maximum(table, floor), np.float32)


def gaps_from_codes(code: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """How a store keeps codes [..., k]: the first, then each one's increase over the one before.

    A third fewer bytes on disk than the codes themselves (docs/format.md).
    """
    gap = code.copy()
    gap[..., 1:] -= code[..., :-1]
    gap[code[..., 0] == NO_CODE] = NO_CODE
    return gap


def codes_from_gaps(gap: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The codes [..., k] of `gaps_from_codes`; fills stay fills."""
    code = gap.copy()
    for rank in range(1, code.shape[-1]):
        code[..., rank] += code[..., rank - 1]
    code[gap[..., 0] == NO_CODE] = NO_CODE
    return code
