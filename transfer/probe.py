"""What frozen features are worth: linear probe, nearest neighbours and few shots.

Nothing is ever chosen on the validation images: the weight decay of the linear probe is chosen on
a seeded part of the training images, all other numbers are shown for every setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from storage.errors import UsageError
from transfer.classifiers import FITS, fit_standardised, knn_predict
from transfer.features import Features

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
KS = (10, 20, 50, 100)
HELD_OUT = 0.2  # of every class's training images, for choosing the weight decay


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How features are judged.

    fit: a key of FITS. decays: swept by the linear probe. ks: of k-NN, each cut to the number of
    training images. shots: images a class of the few-shot runs, each done for `seeds` draws.
    seed: of the split, the first draw and the random network.
    """

    fit: str = "logistic"
    decays: tuple[float, ...] = DECAYS
    ks: tuple[int, ...] = KS
    shots: tuple[int, ...] = ()
    seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"--fit is {self.fit!r}; expected one of {', '.join(FITS)}")
        for name, values in (("k", self.ks), ("shots", self.shots)):
            if any(value < 1 for value in values):
                raise UsageError(f"--{name} is {list(values)}; expected numbers of 1 or more")
        if not self.ks or not self.decays or min(self.decays) <= 0 or self.seeds < 1:
            raise UsageError(
                f"--k is {list(self.ks)}, --weight-decay {list(self.decays)} and --seeds "
                f"{self.seeds}; expected at least one of each, all positive"
            )


@dataclass(frozen=True)
class LinearResult:
    """A linear probe.

    Attributes:
        top1: share of validation images, of a fit to all training images.
        decay: chosen on held-out training images; held_out: their top-1 by weight decay, empty
            where nothing was swept.
    """

    top1: float
    decay: float
    held_out: dict[str, float]
    note: str | None


@dataclass(frozen=True)
class FewShot:
    """Top-1 over several draws of `shots` training images a class: mean, sample deviation, all."""

    shots: int
    method: str
    mean: float
    deviation: float
    runs: tuple[float, ...]


@dataclass(frozen=True)
class ProbeResult:
    """Everything measured on one network's features."""

    width: int
    linear: LinearResult
    knn: dict[int, float]
    few_shot: tuple[FewShot, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def probe(train: Features, val: Features, num_classes: int, settings: ProbeSettings) -> ProbeResult:
    """Judge a network's features.

    Args:
        train, val: with classes numbered alike, 0 to num_classes - 1.
    Raises:
        UsageError: a class has fewer decoded training images than shots are asked for.
    """
    return ProbeResult(
        train.values.shape[1],
        linear_probe(train, val, num_classes, settings),
        knn_probe(train, val, num_classes, settings.ks),
        tuple(
            result
            for shots in settings.shots
            for result in few_shot(train, val, num_classes, shots, settings)
        ),
    )


def linear_probe(
    train: Features, val: Features, num_classes: int, settings: ProbeSettings
) -> LinearResult:
    """Fit to the training images, with the weight decay that held-out ones of them like best."""
    decay, held_out, note = choose_decay(train, num_classes, settings)
    return LinearResult(_linear_top1(train, val, num_classes, decay, settings), decay, held_out,
                        note)  # fmt: skip


def choose_decay(
    train: Features, num_classes: int, settings: ProbeSettings
) -> tuple[float, dict[str, float], str | None]:
    """The weight decay that is best on held-out training images; the largest of equals.

    Returns:
        The decay, held-out top-1 by decay, and what people should know about the choice.
    """
    decays = sorted(settings.decays)
    kept, held = split_rows(train.target, settings.seed)
    if len(decays) == 1:
        return decays[0], {}, None
    if not len(held):
        middle = decays[len(decays) // 2]
        note = f"one image a class: nothing to choose the weight decay on, {middle:g} is taken"
        return middle, {}, note
    fit, judge = _take(train, kept), _take(train, held)
    found = {d: _linear_top1(fit, judge, num_classes, d, settings) for d in decays}
    best = max(found, key=lambda decay: (found[decay], decay))
    at_edge = best in (decays[0], decays[-1])
    note = f"weight decay {best:g} is at the edge of those swept: widen --weight-decay"
    return best, {f"{decay:g}": top1 for decay, top1 in found.items()}, note if at_edge else None


def split_rows(
    target: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows to fit on and rows held out: a fifth of every class, at least one where it has two."""
    rng = np.random.default_rng([seed, 1])
    held = []
    for label in np.unique(target):
        rows = rng.permutation(np.flatnonzero(target == label))
        if len(rows) > 1:
            held.append(rows[: max(1, round(HELD_OUT * len(rows)))])
    held_rows = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(target)), held_rows), held_rows


def knn_probe(
    train: Features, val: Features, num_classes: int, ks: Sequence[int]
) -> dict[int, float]:
    """Top-1 of k-NN by k; a k above the number of training images stands for all of them."""
    usable = sorted({min(k, len(train.target)) for k in ks})
    found = knn_predict(
        torch.from_numpy(train.values),
        torch.from_numpy(train.target),
        torch.from_numpy(val.values),
        usable,
        num_classes,
    )
    return {k: top1(predicted.numpy(), val.target) for k, predicted in found.items()}


def few_shot(
    train: Features, val: Features, num_classes: int, shots: int, settings: ProbeSettings
) -> list[FewShot]:
    """The linear probe, and 1-NN, on `shots` training images of every class, drawn several times.

    Each draw chooses its weight decay on its own images alone.
    """
    linear, nearest = [], []
    for draw in range(settings.seeds):
        few = _take(train, draw_shots(train.target, num_classes, shots, settings.seed + draw))
        linear.append(linear_probe(few, val, num_classes, settings).top1)
        nearest.append(knn_probe(few, val, num_classes, (1,))[1])
    return [_summary(shots, settings.fit, linear), _summary(shots, "1-nn", nearest)]


def draw_shots(
    target: npt.NDArray[np.int64], num_classes: int, shots: int, seed: int
) -> npt.NDArray[np.int64]:
    """Rows of `shots` images of every class.

    Raises:
        UsageError: a class has fewer.
    """
    counts = np.bincount(target, minlength=num_classes)
    if counts.min() < shots:
        raise UsageError(
            f"--shots is {shots}, but a class has only {counts.min()} images that can be decoded "
            f"(number {counts.argmin()} of the sorted names, from 0)"
        )
    rng = np.random.default_rng([seed, 2])
    rows = [rng.choice(np.flatnonzero(target == label), shots, replace=False)
            for label in range(num_classes)]  # fmt: skip
    return np.sort(np.concatenate(rows))


def top1(predicted: npt.NDArray[np.int64], target: npt.NDArray[np.int64]) -> float:
    """Share of right answers."""
    return float((predicted == target).mean())


def _summary(shots: int, method: str, runs: list[float]) -> FewShot:
    deviation = float(np.std(runs, ddof=1)) if len(runs) > 1 else 0.0
    return FewShot(shots, method, float(np.mean(runs)), deviation, tuple(runs))


def _linear_top1(
    train: Features, val: Features, num_classes: int, decay: float, settings: ProbeSettings
) -> float:
    found = fit_standardised(
        FITS[settings.fit],
        torch.from_numpy(train.values),
        torch.from_numpy(train.target),
        num_classes,
        decay,
    )
    return top1(found.predict(torch.from_numpy(val.values)).numpy(), val.target)


def _take(features: Features, rows: npt.NDArray[np.int64]) -> Features:
    return Features(features.values[rows], features.target[rows], (), 0)
