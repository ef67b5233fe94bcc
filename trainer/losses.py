"""The losses of all methods, each once, with its reduction written down."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trainer.batch import TopKTarget


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target], mean over the batch; logits [B, C], target int64 [B]."""
    return F.cross_entropy(logits.float(), target)


def soft_cross_entropy_topk(logits: Tensor, label: TopKTarget, temperature: float = 1.0) -> Tensor:
    """Mean of `soft_cross_entropy_rows` over the crops that count, a scalar in nats.

    No T^2 factor and no entropy term (FKD: Shen & Xing 2022, arXiv:2112.01528).
    """
    return counted_mean(soft_cross_entropy_rows(logits, label, temperature), label.counts)


def counted_mean(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Mean of the rows [B] that count; 0 where none does, the plain mean where `counts` is None."""
    if counts is None:
        return rows.mean()
    return (rows * counts).sum() / counts.sum().clamp(min=1)


def soft_cross_entropy_rows(logits: Tensor, label: TopKTarget, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of each crop with its top-k label, whose tail is spread evenly.

    L_b = -sum_c y_bc log softmax(z_b / T)_c with y = probs at the k kept classes and r = tail /
    (C - k) at every other. Computed without the dense label: with l = log softmax(z / T),
    L_b = -[ sum_k (p_k - r) l_k + r sum_c l_c + sum_s e_s l_s ], where e is mass that some of the
    other classes have beside r (mean tails: trainer.labels.with_mean_tail).

    Args:
        logits: [B, C] student outputs, any float dtype; summed in float32.
        label: of B crops; rows of probs, tail and extra sum to 1.
        temperature: T > 0 of the student. The label keeps the temperature it was made with.
    Returns:
        [B], in nats.
    """
    log_q = F.log_softmax(logits.float() / temperature, dim=-1)
    others = log_q.shape[-1] - label.index.shape[-1]
    spread = (label.tail / others if others else label.tail * 0).float().unsqueeze(-1)
    kept = ((label.probs.float() - spread) * log_q.gather(-1, label.index)).sum(-1)
    rest = spread.squeeze(-1) * log_q.sum(-1)
    if label.extra_index is not None and label.extra is not None:
        rest = rest + (label.extra.float() * log_q.gather(-1, label.extra_index)).sum(-1)
    return -(kept + rest)


def smoothed_cross_entropy_rows(logits: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Cross-entropy [B] with 1 - epsilon on the class and epsilon spread over the C - 1 others.

    logits [B, C], target int64 [B] of classes that are known.
    """
    log_q = F.log_softmax(logits.float(), dim=-1)
    own = log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    share = epsilon / max(1, log_q.shape[-1] - 1)
    return -((1 - epsilon - share) * own + share * log_q.sum(-1))


def temperature_kl(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q), mean over N rows, with p = softmax(wanted / T) and q = softmax(logits / T).

    Hinton et al. 2015, arXiv:1503.02531; both [N, C], summed in float32.
    """
    log_q = F.log_softmax(logits.float() / temperature, dim=-1)
    log_p = F.log_softmax(wanted.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def dense_probs(label: TopKTarget, num_classes: int) -> Tensor:
    """The label of every crop as float32 [B, C], for losses that need it whole."""
    others = num_classes - label.index.shape[-1]
    spread = (label.tail / others if others else label.tail * 0).float().unsqueeze(-1)
    dense = spread.expand(-1, num_classes).clone()
    if label.extra_index is not None and label.extra is not None:
        dense.scatter_add_(-1, label.extra_index, label.extra.float())
    return dense.scatter_(-1, label.index, label.probs.float())
