"""KDEP: pretraining by regression on a teacher's features (He et al., CVPR 2022, arXiv:2203.05180).

The student's own pooled feature, before its last ReLU, is asked for the first k components of the
teacher's (projected by the store's basis), after power temperature scaling. No label is read and
the classifier learns nothing. Alignments of the paper's ablation are options.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from storage.targets.features import FeatureSettings, feature_settings
from storage.targets.record import TargetRecord
from trainer.batch import Batch
from trainer.method_config import KdepConfig
from trainer.methods.base import Method
from trainer.models.feature_tap import FeatureTap


class KDEP(Method):
    """Mean squared error between student and teacher features, times a weight.

    Args:
        tap: on the student. record: of the store's features.
    Raises:
        UsageError: a student wider than the store's components, or features that were scaled in
            another way than asked for.
    """

    trains_whole_student = False

    def __init__(self, config: KdepConfig, tap: FeatureTap, record: TargetRecord) -> None:
        super().__init__()
        stored = feature_settings(record)
        rank = stored.rank
        self._scales = _scales(config, stored, record.path)
        self._config, self._tap = config, tap
        self.align: nn.Module = nn.Identity()
        if config.alignment == "linear":
            self.align = nn.Sequential(nn.Linear(tap.width, rank), nn.BatchNorm1d(rank))
        elif tap.width > rank:
            raise UsageError(
                f"the student's features have {tap.width} components and {record.path} of the "
                f"store {rank}: label with --feature-rank {tap.width} or more, take another "
                "student, or --set kdep.alignment=linear"
            )
        self._width = rank if config.alignment == "linear" else tap.width

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"feature": w mean over crops and components of (s - y)^2}."""
        assert batch.features is not None
        target = batch.features
        if self._scales:
            target = power_scale(target, self._config.temperature, self._config.power)
        with self._tap.listening() as found:
            student(batch.images)
        return {"feature": self.feature_loss(found.feature, target)}

    def feature_loss(self, feature: Tensor, target: Tensor) -> Tensor:
        """Weighted mean squared error (KDEP, section 3.1).

        Args:
            feature: float [B, D'] of the student. target: float32 [B, r], y (or z, unscaled).
        """
        wanted = target[:, : self._width]
        return self._config.loss_weight * F.mse_loss(self.align(feature.float()), wanted)


def _scales(config: KdepConfig, stored: FeatureSettings, path: str) -> bool:
    """Whether stored vectors have to be power scaled while training: z does, y was."""
    if stored.space == "z":
        return config.scaling == "pts"
    same = (config.temperature, config.power) == (stored.temperature, stored.power)
    if config.scaling != "pts" or not same:
        asked = f"T = {config.temperature} and n = {config.power}"
        raise UsageError(
            f"{path} was scaled with T = {stored.temperature} and n = {stored.power}, and "
            f"{asked if config.scaling == 'pts' else 'no scaling'} is asked for: set "
            "kdep.temperature and kdep.power to what is stored, or store features as z "
            "(labelgen add --feature-space z)"
        )
    return False


def power_scale(z: Tensor, temperature: float, power: float) -> Tensor:
    """y = sign(z) |z / T|^(1 / n) (power temperature scaling, section 3.3), float32 [B, r]."""
    return torch.copysign((z / temperature).abs().pow(1 / power), z)
