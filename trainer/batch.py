"""What one step of training gets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TopKTarget:
    """Decoded teacher labels of B crops."""

    index: Tensor  # int64 [B, k], falling probability
    probs: Tensor  # float32 [B, k]
    tail: Tensor  # float32 [B]


@dataclass(frozen=True)
class Batch:
    """B crops on the device: normalised images, hard targets, the teacher's labels."""

    images: Tensor  # float32 [B, 3, S, S], channels_last
    target: Tensor  # int64 [B], -1 where an image has no class
    labels: TopKTarget | None
