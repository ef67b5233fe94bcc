"""The images' own classes as the student's, for methods with a hard-label term beside labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from storage.classes import map_classes
from storage.errors import StoreMismatch, UsageError
from trainer.config import StudentConfig, TrainConfig
from trainer.data import TrainingData


def without_classes(config: TrainConfig) -> str | None:
    """How a run that asks for the images' own classes would do without; None: it doesn't ask."""
    if config.method == "hsakd":
        return "learn from labels alone with --method fkd"
    if config.method == "scalekd" and config.scalekd.kd_weight < 1:
        return "--set scalekd.kd_weight=1"
    if config.method == "ferkd" and config.ferkd.middle > config.ferkd.low:
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
    if student.classes is None:
        if len(known) != student.num_classes:
            raise StoreMismatch(
                f"the images have {len(known)} classes and the teacher {student.num_classes}, "
                f"whose names are not known: their order can't be matched; {way_out}"
            )
        return data
    mapping = map_classes(known, student.classes)
    if mapping is None:
        unknown = [name for name in known if name not in set(student.classes)] or list(known)
        raise StoreMismatch(
            f"class {unknown[0]!r} of the images is none of the teacher's {student.num_classes} "
            f"(such as {student.classes[0]!r}), nor are {len(unknown) - 1} more of the images' "
            f"{len(known)}: the class folders must carry the same names, or {way_out}"
        )
    return replace(data, target=np.asarray(mapping, dtype=np.int64)[target])
