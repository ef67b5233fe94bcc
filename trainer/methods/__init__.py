"""Methods: what each reads, adds for training only, and optimises."""

from __future__ import annotations

from torch import nn

from storage.errors import UsageError
from storage.targets.record import TargetRecord
from trainer.config import METHODS, TrainConfig
from trainer.methods.base import Method
from trainer.methods.ferkd import FerKD
from trainer.methods.fkd import FKD
from trainer.methods.kdep import KDEP
from trainer.methods.meal import MealV2
from trainer.methods.supervised import Supervised
from trainer.models.feature_tap import tap_feature


def create(config: TrainConfig, student: nn.Module, features: TargetRecord | None = None) -> Method:
    """The method object of a run.

    Args:
        student: methods that read its features listen to it.
        features: of the store, where the method reads them.
    """
    if config.method == "supervised":
        return Supervised()
    if config.method == "kdep":
        assert features is not None
        tap = tap_feature(student, config.student.input_size, config.student.arch)
        return KDEP(config.kdep, tap, features)
    assert config.labels is not None  # checked by TrainConfig
    common = (config.labels.temperature, config.mix, config.views_per_image, config.seed)
    if config.method == "fkd":
        return FKD(*common)
    if config.method == "ferkd":
        return FerKD(config.ferkd, *common)
    if config.method == "meal":
        return MealV2(config.meal, config.student.num_classes, *common)
    raise UsageError(f"unknown method {config.method!r}; expected one of {', '.join(METHODS)}")


__all__ = ["FKD", "KDEP", "FerKD", "MealV2", "Method", "Supervised", "create"]
