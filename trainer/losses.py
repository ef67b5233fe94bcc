"""The losses of all methods, each once, with its reduction written down."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target], mean over the batch; logits [B, C], target int64 [B]."""
    return F.cross_entropy(logits.float(), target)


def soft_cross_entropy_topk(
    logits: Tensor,
    index: Tensor,
    probs: Tensor,
    tail: Tensor,
    temperature: float = 1.0,
    extra_index: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with a top-k label whose tail is spread evenly, mean over the batch.

    L = -(1/B) sum_b sum_c y_bc log softmax(z_b / T)_c with y = probs at the k kept classes and
    r = tail / (C - k) at every other. No T^2 factor and no entropy term (FKD: Shen & Xing 2022,
    arXiv:2112.01528). Computed without the dense label: with l = log softmax(z / T),
    L_b = -[ sum_k (p_k - r) l_k + r sum_c l_c + sum_s e_s l_s ], where e is mass that some of the
    other classes have beside r (mean tails: trainer.labels.with_mean_tail).

    Args:
        logits: [B, C] student outputs, any float dtype; summed in float32.
        index: int64 [B, k] kept classes, distinct in a row.
        probs: [B, k] their probabilities.
        tail: [B] mass spread over the other classes; rows of probs, tail and extra sum to 1.
        temperature: T > 0 of the student. The label keeps the temperature it was made with.
        extra_index: int64 [B, S]; extra: [B, S] mass these classes have beside the spread.
    Returns:
        Scalar in nats.
    """
    log_q = F.log_softmax(logits.float() / temperature, dim=-1)
    others = log_q.shape[-1] - index.shape[-1]
    spread = (tail / others if others else tail * 0).float().unsqueeze(-1)
    kept = ((probs.float() - spread) * log_q.gather(-1, index)).sum(-1)
    rest = spread.squeeze(-1) * log_q.sum(-1)
    if extra_index is not None and extra is not None:
        rest = rest + (extra.float() * log_q.gather(-1, extra_index)).sum(-1)
    return -(kept + rest).mean()
