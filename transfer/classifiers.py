"""Classifiers on frozen features: logistic regression, ridge regression, nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KNN_TEMPERATURE = 0.07  # DINO (arXiv:2104.14294)
_CHUNK = 256  # queries compared with the whole bank at once
_MOST_STEPS = 500


@dataclass(frozen=True, eq=False)
class Linear:
    """scores = features @ weight + bias; weight: float64 [D, C], bias: float64 [C]."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """[N, D] -> class of the largest score, int64 [N]."""
        return (features.double() @ self.weight + self.bias).argmax(dim=1)


Fit = Callable[[Tensor, Tensor, int, float], Linear]


def fit_logistic(features: Tensor, target: Tensor, num_classes: int, decay: float) -> Linear:
    """Multinomial logistic regression by L-BFGS, from zero.

    Minimises mean cross-entropy + decay / 2 * |weight|^2; the bias is free. scikit-learn's C is
    1 / (N * decay).

    Args:
        features: float64 [N, D]. target: int64 [N].
    """
    weight = features.new_zeros(features.shape[1], num_classes, requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MOST_STEPS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, target)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Linear(weight.detach(), bias.detach())


def fit_ridge(features: Tensor, target: Tensor, num_classes: int, decay: float) -> Linear:
    """Least squares to one-hot targets in closed form.

    Minimises mean |y - x W - b|^2 + decay * |W|^2, b free:
    W = (X'X / N + decay I)^-1 X'Y / N on centred X and Y.

    Args:
        features: float64 [N, D]. target: int64 [N].
    """
    wanted = F.one_hot(target, num_classes).to(features)
    mean, share = features.mean(dim=0), wanted.mean(dim=0)
    centred = features - mean
    gram = centred.T @ centred / len(features)
    gram.diagonal().add_(decay)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - share) / len(features))
    return Linear(weight, share - mean @ weight)


FITS: dict[str, Fit] = {"logistic": fit_logistic, "ridge": fit_ridge}


def fit_standardised(
    fit: Fit, features: Tensor, target: Tensor, num_classes: int, decay: float
) -> Linear:
    """Fit on features of mean 0 and deviation 1, as a classifier of the features as they are.

    Features that never change are left at 0.
    """
    exact = features.double()
    mean = exact.mean(dim=0)
    deviation = exact.std(dim=0, correction=0)
    deviation[deviation <= 1e-9 * (1 + mean.abs())] = torch.inf
    found = fit((exact - mean) / deviation, target, num_classes, decay)
    weight = found.weight / deviation[:, None]
    return Linear(weight, found.bias - mean @ weight)


def knn_predict(
    bank: Tensor,
    bank_target: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    num_classes: int,
    temperature: float = KNN_TEMPERATURE,
) -> dict[int, Tensor]:
    """Class of every query by its k nearest features, for several k.

    Neighbours by cosine similarity s vote with weight exp(s / temperature), as DINO's do.

    Args:
        bank: [N, D], bank_target: int64 [N], queries: [Q, D]; every k at most N.
    Returns:
        int64 [Q] by k.
    """
    directions = F.normalize(bank.float(), dim=1)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    for chunk in torch.split(queries.float(), _CHUNK):
        similarity, index = (F.normalize(chunk, dim=1) @ directions.T).topk(max(ks), dim=1)
        # the common factor exp(-1 / temperature) changes no winner and keeps small ones finite
        weight = ((similarity.double() - 1) / temperature).exp()
        for k in ks:
            total = weight.new_zeros(len(chunk), num_classes)
            total.scatter_add_(1, bank_target[index[:, :k]], weight[:, :k])
            votes[k].append(total.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in votes.items()}
