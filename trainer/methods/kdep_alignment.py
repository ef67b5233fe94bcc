"""KDEP's ways of making a teacher's feature as wide as a student's (He et al., CVPR 2022, table 2).

With f the teacher's pooled feature, z = (f - mu) V its stored components and k the student's width.
The method itself takes the first k components, power scaled; all others are its ablation. What
reads f itself has it as z V^T + mu, which is exact where all D components are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from storage.targets.features import FeatureSettings
from trainer.method_config import KdepConfig

Array = npt.NDArray[Any]
LEARNT = ("linear", "conv1x1")  # the student is mapped to the teacher, not the other way round
CHANNELS = ("channels-variance", "channels-mean", "channels-random", "nearest", "conv1x1")
WHOLE = (*CHANNELS, "svd-bottom", "svd-random")  # need all D components
VARIANCE = ("variance", "variance-linear", "variance-channels")


class TeacherSide(nn.Module):
    """From stored components [B, r] to what the student is asked for [B, k].

    Args:
        width: k of the student.
        constant: of the store's features, by name; read where the alignment needs it.
        scales: whether `pts` has to be applied here.
        seed: of what is chosen at random.
    Raises:
        UsageError: the store keeps fewer components than the alignment reads.
    """

    _mean: Tensor | None
    _basis: Tensor | None
    _chosen: Tensor | None
    _factor: Tensor | None

    def __init__(
        self,
        config: KdepConfig,
        stored: FeatureSettings,
        path: str,
        width: int,
        constant: Callable[[str], Array],
        scales: bool,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._config, self._scales = config, scales
        _check_rank(config, stored, path, width)
        self.width = width
        if config.alignment in LEARNT:
            self.width = stored.width if config.alignment == "conv1x1" else stored.rank
        basis = mean = chosen = factor = None
        if config.alignment in CHANNELS:
            mean, basis = torch.tensor(constant("mean")), torch.tensor(constant("basis"))
        picked = _chosen(config.alignment, stored, self.width, constant, seed)
        if picked is not None:
            chosen = torch.from_numpy(picked)
        if config.scaling in VARIANCE:
            taken = np.arange(self.width) if picked is None else picked
            factor = torch.from_numpy(variance_factors(config.scaling, taken, constant)).float()
        # made of the store's constants: no part of a run's state
        for name, value in {"_mean": mean, "_basis": basis, "_chosen": chosen,
                            "_factor": factor}.items():  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    def forward(self, stored: Tensor) -> Tensor:
        """float32 [B, k] of stored values [B, r]."""
        values = stored
        if self._basis is not None and self._mean is not None:
            values = values @ self._basis.T + self._mean
        if self._config.alignment == "nearest":
            values = F.interpolate(values.unsqueeze(1), size=self.width).squeeze(1)
        elif self._chosen is not None:
            values = values[:, self._chosen]
        else:
            values = values[:, : self.width]
        if self._config.scaling == "relu":
            return F.relu(values)
        if self._factor is not None:
            return values * self._factor
        if self._scales:
            return power_scale(values, self._config.temperature, self._config.power)
        return values


def power_scale(z: Tensor, temperature: float, power: float) -> Tensor:
    """y = sign(z) |z / T|^(1 / n) (power temperature scaling, section 3.3), float32 [B, r]."""
    return torch.copysign((z / temperature).abs().pow(1 / power), z)


def variance_factors(scaling: str, components: Array, constant: Callable[[str], Array]) -> Array:
    """What each component is multiplied with, float64 [k]: variance matching.

    With s the components' standard deviations: `variance` divides by s; `variance-linear`
    multiplies that with s mapped linearly onto 1 to R, the ratio of the largest to the smallest
    deviation of the teacher's own channels; `variance-channels` with the k largest of these.
    """
    spread = np.asarray(constant("spectrum"), np.float64)[components]
    usable = spread > 1e-6 * spread.max()
    unit = np.where(usable, 1 / np.where(usable, spread, 1), 0.0)
    if scaling == "variance":
        return unit
    channels = channel_deviations(constant)
    if scaling == "variance-channels":
        return np.asarray(unit * np.sort(channels)[::-1][: len(components)])
    ratio = channels.max() / max(channels.min(), 1e-12)
    extent = max(spread.max() - spread.min(), 1e-30)
    return np.asarray(unit * (1 + (spread - spread.min()) / extent * (ratio - 1)))


def channel_deviations(constant: Callable[[str], Array]) -> Array:
    """Standard deviation of each of the teacher's D channels: of the covariance V diag(s^2) V^T."""
    basis = np.asarray(constant("basis"), np.float64)
    spectrum = np.asarray(constant("spectrum"), np.float64)
    return np.asarray(np.sqrt(np.square(basis) @ np.square(spectrum[: basis.shape[1]])))


def _chosen(
    alignment: str,
    stored: FeatureSettings,
    width: int,
    constant: Callable[[str], Array],
    seed: int,
) -> npt.NDArray[np.int64] | None:
    """Columns that are read, in their order; None: the first ones, or none are chosen."""
    everything: Mapping[str, Callable[[], Array]] = {
        "svd-bottom": lambda: np.arange(stored.width - width, stored.width),
        "svd-middle": lambda: np.arange(width, 2 * width),
        "svd-random": lambda: _at_random(stored.width, width, seed),
        "channels-variance": lambda: _largest(channel_deviations(constant), width),
        "channels-mean": lambda: _largest(np.abs(constant("mean")), width),
        "channels-random": lambda: _at_random(stored.width, width, seed),
    }
    return np.asarray(everything[alignment](), np.int64) if alignment in everything else None


def _largest(values: Array, count: int) -> Array:
    return np.argsort(-np.asarray(values, np.float64), kind="stable")[:count]


def _at_random(total: int, count: int, seed: int) -> Array:
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def _check_rank(config: KdepConfig, stored: FeatureSettings, path: str, width: int) -> None:
    """Refuse a student or an alignment that wants more than is stored."""
    learn = "--set kdep.alignment=linear, which maps the student to what is stored"
    if config.alignment not in LEARNT and width > stored.width:
        raise UsageError(
            f"the student's features have {width} components and {path} of the store "
            f"{stored.rank}, of a teacher that has {stored.width}: take a narrower student or a "
            f"wider teacher, or {learn}"
        )
    needed = {"linear": 1, "svd-middle": 2 * width}.get(config.alignment, width)
    if config.alignment in WHOLE or config.scaling in VARIANCE[1:]:
        needed = stored.width
    if needed > stored.width:
        raise UsageError(
            f"kdep.alignment is {config.alignment}, which reads components {width} to "
            f"{needed - 1}, and the teacher has {stored.width}: take a narrower student"
        )
    if needed > stored.rank:
        what = "the student's features have" if needed == width else (
            f"kdep.alignment {config.alignment} with scaling {config.scaling} reads"
        )  # fmt: skip
        raise UsageError(
            f"{what} {needed} components and {path} of the store {stored.rank}: label with "
            f"--feature-rank {needed} or more, take another student, or {learn}"
        )
