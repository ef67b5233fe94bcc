"""Methods: what each reads, adds for training only, and optimises."""

from __future__ import annotations

from storage.errors import UsageError
from trainer.config import METHODS, TrainConfig
from trainer.methods.base import Method
from trainer.methods.fkd import FKD
from trainer.methods.supervised import Supervised


def create(config: TrainConfig) -> Method:
    """The method object of a run."""
    if config.method == "supervised":
        return Supervised()
    if config.method == "fkd":
        assert config.labels is not None  # checked by TrainConfig
        return FKD(config.labels.temperature)
    raise UsageError(f"unknown method {config.method!r}; expected one of {', '.join(METHODS)}")


__all__ = ["FKD", "Method", "Supervised", "create"]
