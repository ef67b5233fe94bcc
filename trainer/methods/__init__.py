"""Methods: what each reads, adds for training only, and optimises."""

from __future__ import annotations

import torch
from torch import nn

from storage.errors import UsageError
from trainer import models
from trainer.config import METHODS, TrainConfig
from trainer.methods.base import Method
from trainer.methods.ferkd import FerKD
from trainer.methods.fkd import FKD
from trainer.methods.fkd_ssl import FkdSsl
from trainer.methods.hsakd import Hsakd
from trainer.methods.hsakd_online import HsakdOnline
from trainer.methods.hsakd_teacher import HsakdTeacher
from trainer.methods.kdep import KDEP
from trainer.methods.meal import MealV2
from trainer.methods.scalekd import ScaleKD
from trainer.methods.scalekd_setup import create_scalekd
from trainer.methods.supervised import Supervised
from trainer.models.branches import BranchedNetwork
from trainer.models.feature_tap import tap_feature
from trainer.targets import StoredTarget


def create(config: TrainConfig, student: nn.Module, features: StoredTarget | None = None) -> Method:
    """The method object of a run.

    Args:
        student: methods that read its features listen to it.
        features: of the store, where the method reads them.
    """
    if config.method == "supervised":
        return Supervised()
    low = torch.bfloat16 if config.precision == "bf16" else None
    if config.method == "hsakd-teacher":
        assert isinstance(student, BranchedNetwork)  # trainer.request names it so
        return HsakdTeacher(config.hsakd_teacher, student, low)
    arch, classes = config.student.arch, config.student.num_classes
    if config.method == "hsakd-online":
        peer = models.create(models.branched_name(arch), classes)
        assert isinstance(peer, BranchedNetwork)
        return HsakdOnline(config.hsakd, student, arch, classes, peer, low)
    if config.method == "hsakd":
        assert features is not None
        return Hsakd(config.hsakd, student, arch, classes, features, low)
    if config.method == "kdep":
        assert features is not None
        tap = tap_feature(student, config.student.input_size, config.student.arch)
        return KDEP(config.kdep, tap, features.record, features.constant, config.seed)
    if config.method == "fkd-ssl":
        assert features is not None
        tap = tap_feature(student, config.student.input_size, config.student.arch, rectified=True)
        return FkdSsl(config.fkd_ssl, tap, features)
    assert config.labels is not None  # checked by TrainConfig
    if config.method == "scalekd":
        assert features is not None
        return create_scalekd(config, student, features)
    common = (config.labels.temperature, config.mix, config.views_per_image, config.seed)
    if config.method == "fkd":
        return FKD(*common)
    if config.method == "ferkd":
        return FerKD(config.ferkd, *common)
    if config.method == "meal":
        return MealV2(config.meal, config.student.num_classes, *common)
    raise UsageError(f"unknown method {config.method!r}; expected one of {', '.join(METHODS)}")


__all__ = ["FKD", "KDEP", "FerKD", "FkdSsl", "Hsakd", "HsakdOnline", "HsakdTeacher", "MealV2",
           "Method", "ScaleKD", "Supervised", "create"]  # fmt: skip
