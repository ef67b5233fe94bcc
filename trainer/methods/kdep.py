"""KDEP: pretraining by regression on a teacher's features (He et al., CVPR 2022, arXiv:2203.05180).

The student's own pooled feature, before its last ReLU, is asked for the first k components of the
teacher's (projected by the store's basis), after power temperature scaling. No label is read and
the classifier learns nothing. Alignments of the paper's ablation are options
(trainer.methods.kdep_alignment).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from storage.targets.features import FeatureSettings, feature_settings
from storage.targets.record import TargetRecord
from trainer.batch import Batch
from trainer.method_config import KdepConfig
from trainer.methods.base import Method
from trainer.methods.kdep_alignment import LEARNT, Array, TeacherSide, power_scale
from trainer.models.feature_tap import FeatureTap

__all__ = ["KDEP", "power_scale"]


def _no_constant(name: str) -> Array:
    raise UsageError(f"the features' {name} is not at hand")


class KDEP(Method):
    """Mean squared error between student and teacher features, times a weight.

    Args:
        tap: on the student. record: of the store's features.
        constant: reads the features' constants, by name.
        seed: of what an alignment chooses at random.
    Raises:
        UsageError: a student or an alignment that wants more components than are stored, or
            features that were scaled in another way than asked for.
    """

    trains_whole_student = False

    def __init__(
        self,
        config: KdepConfig,
        tap: FeatureTap,
        record: TargetRecord,
        constant: Callable[[str], Array] = _no_constant,
        seed: int = 0,
    ) -> None:
        super().__init__()
        stored = feature_settings(record)
        scales = _scales(config, stored, record.path)
        self._config, self._tap = config, tap
        self.wanted = TeacherSide(config, stored, record.path, tap.width, constant, scales, seed)
        self.align: nn.Module = nn.Identity()
        if config.alignment in LEARNT:
            width = self.wanted.width
            self.align = nn.Sequential(nn.Linear(tap.width, width), nn.BatchNorm1d(width))

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"feature": w mean over crops and components of (s - y)^2}."""
        assert batch.features is not None
        with self._tap.listening() as found:
            student(batch.images)
        return {"feature": self.feature_loss(found.feature, self.wanted(batch.features))}

    def feature_loss(self, feature: Tensor, wanted: Tensor) -> Tensor:
        """Weighted mean squared error (KDEP, section 3.1).

        Args:
            feature: float [B, D'] of the student. wanted: float32 [B, k].
        """
        return self._config.loss_weight * F.mse_loss(self.align(feature.float()), wanted)


def _scales(config: KdepConfig, stored: FeatureSettings, path: str) -> bool:
    """Whether stored vectors have to be power scaled while training: z does, y was.

    y serves the method itself alone: all else starts from z.
    """
    if stored.space == "z":
        return config.scaling == "pts"
    if config.alignment not in ("svd", "linear"):
        raise UsageError(
            f"kdep.alignment {config.alignment} starts from z, and {path} is y: store features as "
            "z (labelgen add --feature-space z)"
        )
    same = (config.temperature, config.power) == (stored.temperature, stored.power)
    if config.scaling != "pts" or not same:
        asked = {"pts": f"T = {config.temperature} and n = {config.power}", "none": "no scaling"}
        raise UsageError(
            f"{path} was scaled with T = {stored.temperature} and n = {stored.power}, and "
            f"{asked.get(config.scaling, f'scaling {config.scaling}')} is asked for: set "
            "kdep.temperature and kdep.power to what is stored, or store features as z "
            "(labelgen add --feature-space z)"
        )
    return False
