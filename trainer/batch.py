"""What one step of training gets."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Counted(Protocol):
    """Any batch: what is asked for has an entry for each of its crops."""

    @property
    def target(self) -> Sized:
        """What is asked for."""


@dataclass(frozen=True)
class TopKTarget:
    """Decoded teacher labels of B crops; probs, tail and extra sum to 1."""

    index: Tensor  # int64 [B, k], falling probability
    probs: Tensor  # float32 [B, k]
    tail: Tensor  # float32 [B], spread evenly over the other classes
    extra_index: Tensor | None = None  # int64 [B, S], classes of the image's mean tail
    extra: Tensor | None = None  # float32 [B, S], what they have beside
    counts: Tensor | None = None  # float32 [B], 0 where a crop is left out; None: all count

    def take(self, rows: Tensor) -> TopKTarget:
        """Labels of other crops: row i is that of crop rows[i]."""
        others = (self.extra_index, self.extra, self.counts)
        return TopKTarget(
            self.index[rows],
            self.probs[rows],
            self.tail[rows],
            *(None if part is None else part[rows] for part in others),
        )


@dataclass(frozen=True)
class Batch:
    """B crops on the device: normalised images, hard targets, the teacher's labels."""

    images: Tensor  # float32 [B, 3, S, S], channels_last
    target: Tensor  # int64 [B], -1 where an image has no class
    labels: TopKTarget | None
    features: Tensor | None = None  # float32 [B, r] of the teacher, in the store's space
    targets: Mapping[str, Tensor] | None = None  # float32 [B, ...], a target's parts by name
