"""The images' own classes as the student's, for methods with a hard-label term beside labels."""

from __future__ import annotations

from dataclasses import replace

from storage.classes import number_classes
from storage.errors import UsageError
from trainer.config import StudentConfig, TrainConfig
from trainer.data import TrainingData


def without_classes(config: TrainConfig) -> str | None:
    """How a run that asks for the images' own classes would do without; None: it doesn't ask."""
    if config.method == "hsakd":
        return "learn from labels alone with --method fkd"
    if config.method == "scalekd" and config.scalekd.kd_weight < 1:
        return "--set scalekd.kd_weight=1"
    if config.method == "ferkd" and config.ferkd.softens:
        return f"--set ferkd.middle={config.ferkd.low:g}"
    return None


def with_student_classes(data: TrainingData, student: StudentConfig, way_out: str) -> TrainingData:
    """The same data, hard targets numbered as the student's (its teacher's) classes are.

    Args:
        way_out: how to do without hard targets, for messages.
    Raises:
        UsageError: images without a class. StoreMismatch: classes that the student doesn't have.
    """
    known, target = data.beton.classes, data.target
    if not known or bool((target[data.rows] < 0).any()):
        raise UsageError(
            "this method's task loss asks for the images' own classes, and some images have none: "
            f"give an image folder with class folders, or {way_out}"
        )
    numbers = number_classes(
        known, student.classes, student.num_classes, images="the images", owner="the teacher",
        way_out=way_out,
    )  # fmt: skip
    return replace(data, target=numbers[target])
