"""Stored top-k labels as tensors: the device's fast path of `storage.codecs` (tested equal)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from storage.errors import UsageError
from trainer.batch import TopKTarget

TAIL_CODES = 254  # storage.codecs: tail mass on an angle scale of 255 codes


def decode_topk(
    code: Tensor, tail_code: Tensor, step: float, tail_table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Probabilities of the kept classes and of the tail.

    Args:
        code: uint8 [B, k], minus log-probability in steps.
        tail_code: uint8 [B], tail mass on the codec's scale.
        step: nats per code.
        tail_table: float32 [256], the codec's scale (`TopKCodec.tail_table`); the angle scale of
            codec "top-k" where None.
    Returns:
        (float32 [B, k], float32 [B]); rows sum to 1.
    """
    if tail_table is None:
        tail = torch.sin(tail_code.float() * (math.pi / 2 / TAIL_CODES)).square()
    else:
        tail = tail_table[tail_code.long()]
    probs = torch.exp(code.float() * -step)
    probs = probs * ((1.0 - tail) / probs.sum(-1)).unsqueeze(-1)
    return probs, tail


def as_label_type(
    label_type: str, top_k: int | None, index: Tensor, probs: Tensor, tail: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One of FKD's label types from a decoded label (Shen & Xing 2022, Sec. 3.3).

    marginal_smoothing keeps the top k and spreads the rest; marginal_renorm rescales the top k
    to 1; smoothing is marginal_smoothing with k = 1; hard is the first class alone.

    Args:
        index: int64 [B, k] in falling probability; probs [B, k]; tail [B].
        top_k: how many of the stored classes to keep, None for all.
    Returns:
        (index [B, k'], probs [B, k'], tail [B]).
    """
    stored = index.shape[-1]
    k = 1 if label_type in ("hard", "smoothing") else (top_k or stored)
    if not 1 <= k <= stored:
        raise UsageError(f"--label-k is {k}; the store keeps {stored} classes: expected 1 to that")
    index, kept = index[..., :k], probs[..., :k]
    if label_type == "hard":
        return index, torch.ones_like(kept), torch.zeros_like(tail)
    if label_type == "marginal_renorm":
        return index, kept / kept.sum(-1, keepdim=True), torch.zeros_like(tail)
    return index, kept, tail + probs[..., k:].sum(-1)


def full_labels(logits: Tensor) -> TopKTarget:
    """Labels of all classes from stored dense logits [B, C]: softmax at temperature 1."""
    probs, index = torch.sort(logits.float().softmax(-1), dim=-1, descending=True, stable=True)
    return TopKTarget(index, probs, torch.zeros_like(probs[:, 0]))


def within(sure: Tensor, low: float, top: float) -> Tensor:
    """1 where a label's largest probability [B] lies from low to top, else 0: float32 [B]."""
    return ((sure >= low) & (sure <= top)).float()


def with_mean_tail(
    index: Tensor, tail: Tensor, mean_index: Tensor, mean_share: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Spread a part of each label's tail as the image's mean tail lies, the rest evenly.

    The mean tail is restricted to classes the label doesn't keep; where none is left, the whole
    tail is spread evenly (the definition is `storage.dictionary.DictionaryCodec.dense_with_tail`).

    Args:
        index: int64 [B, k] kept classes; tail [B] mass of all others.
        mean_index: int64 [B, S] classes of the mean tail; mean_share: [B, S], 0 where unused.
        weight: share of the tail that follows the mean tail.
    Returns:
        (float32 [B] mass to spread evenly over all classes not kept, float32 [B, S] mass that the
        classes `mean_index` get beside).
    """
    kept = (mean_index.unsqueeze(-1) == index.unsqueeze(-2)).any(-1)
    share = mean_share.masked_fill(kept, 0.0)
    total = share.sum(-1)
    moved = weight * tail * (total > 0)
    return tail - moved, share * (moved / total.clamp_min(1e-30)).unsqueeze(-1)
