"""What a user asks of `trainer fit`, and how open choices are filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from storage import LabelStore
from storage.errors import UsageError
from storage.images import ImageFolder
from storage.manifest import read_manifest
from storage.tail_choice import EVEN, MEAN, choose_tail
from storage.targets.record import TargetRecord
from storage.teacher_record import TeacherRecord
from storage.views import RandomResizedCrop
from trainer import models
from trainer.config import (
    FOLDER_METHODS,
    FULL,
    LABEL_METHODS,
    TARGET_KINDS,
    LabelConfig,
    StudentConfig,
    TrainConfig,
    default_precision,
)
from trainer.data import TrainingData, fresh_views, join_store
from trainer.hard_targets import with_student_classes, without_classes
from trainer.inputs import choose_teacher
from trainer.method_config import (
    FerkdConfig,
    FkdSslConfig,
    HsakdConfig,
    HsakdTeacherConfig,
    KdepConfig,
    MealConfig,
    MixConfig,
    ScalekdConfig,
)
from trainer.models.init import file_digest
from trainer.notes import run_notes
from trainer.pass_config import OrderConfig, ResolutionConfig
from trainer.plan import num_planes
from trainer.replay.beton import Beton
from trainer.settings import checked, read_recipe, section
from trainer.step_config import LoopConfig, OptimConfig, ScheduleConfig, default_optim
from trainer.targets import choose_target

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_SIDE = 64  # students of images up to this side are CIFAR networks by default


# Fields of a request that are settings, by the setting's dotted name.
SETTING_OF = {
    "method": "method",
    "student": "student.arch",
    "teacher": "labels.teacher",
    "size": "student.input_size",
    "init": "student.init",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "views_per_image": "views_per_image",
    "label_type": "labels.label_type",
    "label_k": "labels.top_k",
    "label_tail": "labels.tail",
    "temperature": "labels.temperature",
    "optimizer": "optim.name",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "warmup_epochs": "schedule.warmup_epochs",
    "precision": "precision",
    "seed": "seed",
}


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What the user asked for; None means "choose for me" (the choice is recorded).

    recipe: name or path of a recipe. settings: others by dotted name (trainer.settings). A field
    goes over `settings`, and these over the recipe.
    """

    labels: Path | str | None = None  # folder or address of a label store
    data: str | None = None
    val: Path | ImageFolder | None = None  # a folder, or its images as listed
    out: Path | None = None
    recipe: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    student: str | None = None
    teacher: str | None = None
    size: int | None = None
    init: str | None = None  # safetensors file that the student begins from
    epochs: int | None = None
    batch_size: int | None = None
    views_per_image: int | None = None
    sampler: Any = None  # storage.views sampler of runs without a store
    label_type: str | None = None
    label_k: int | None = None
    label_tail: str | None = None
    temperature: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    precision: str | None = None
    seed: int | None = None
    device: str = "auto"
    workers: int = 2
    loader: str = "ffcv"
    overwrite: bool = False
    log: tuple[str, ...] = ()  # trackers beside metrics.jsonl (trainer.trackers)

    def chosen(self) -> dict[str, Any]:
        """All settings that were chosen, by dotted name.

        Raises:
            UsageError: a recipe or a setting that doesn't exist, or a value of another type.
        """
        values = read_recipe(self.recipe) if self.recipe else {}
        values |= checked(self.settings, "settings")
        given = {name: getattr(self, attribute) for attribute, name in SETTING_OF.items()}
        return values | {name: value for name, value in given.items() if value is not None}


def default_method(request: FitRequest) -> str:
    """FKD with labels, supervised without."""
    chosen: str | None = request.chosen().get("method")
    return chosen or ("fkd" if request.labels else "supervised")


def default_out(request: FitRequest) -> Path:
    """Run folder named after the method and, where one was given, the student."""
    arch = request.chosen().get("student.arch")
    student = f"-{arch}" if arch else ""
    return Path("runs") / f"{default_method(request)}{student}".replace(":", "-").replace("/", "-")


def configure(
    request: FitRequest, device: torch.device, store: LabelStore | None, beton: Beton
) -> tuple[TrainConfig, TrainingData]:
    """Fill in every choice the user left open, and join images with labels."""
    chosen = request.chosen()
    method = default_method(request)
    uses_labels = method in LABEL_METHODS
    if method not in FOLDER_METHODS and store is None:
        raise UsageError(f"--method {method} learns from a label store: give one with --labels")
    labels = section(chosen, "labels")
    features = None if store is None else _target(store, method, chosen)
    teacher = _teacher(store, labels.get("teacher"), features)
    record = None if store is None or teacher is None else store.spec.teachers[teacher]
    stored_views = features.views if features else store.spec.num_views if store else None
    views = chosen.get("views_per_image") or min(4, stored_views or 4)
    seed = chosen.get("seed", 0)
    sampler = request.sampler or RandomResizedCrop()
    counting = chosen.get("epoch_counting", "passes")
    if store is not None:
        topk = uses_labels and labels.get("label_type") != FULL
        data = join_store(beton, store, teacher if topk else None, features)
        if topk:
            labels, data = _with_tail(store, str(teacher), labels, data)
        used_up = num_planes(data.stored_views, views) * (views if counting == "views" else 1)
        epochs = chosen.get("epochs") or used_up
    else:
        data = fresh_views(beton, sampler, seed, views)
        epochs = chosen.get("epochs") or 30
    init = chosen.get("student.init")
    batch_size = chosen.get("batch_size") or _default_batch_size(device, views)
    student = _student(
        method,
        section(chosen, "student"),
        data,
        None if method in FOLDER_METHODS else record,
        record,
    )
    config = TrainConfig(
        method=method,
        student=student,
        labels=LabelConfig(**(labels | {"teacher": teacher})) if uses_labels else None,
        optim=_optim(section(chosen, "optim"), batch_size),
        schedule=_schedule(section(chosen, "schedule"), epochs),
        order=OrderConfig(**section(chosen, "order")),
        resolution=_resolution(section(chosen, "resolution"), student.input_size, epochs),
        loop=LoopConfig(**section(chosen, "loop")),
        mix=MixConfig(**section(chosen, "mix")),
        ferkd=FerkdConfig(**section(chosen, "ferkd")),
        fkd_ssl=FkdSslConfig(**section(chosen, "fkd_ssl")),
        meal=MealConfig(**section(chosen, "meal")),
        kdep=KdepConfig(**section(chosen, "kdep")),
        hsakd=HsakdConfig(**section(chosen, "hsakd")),
        hsakd_teacher=HsakdTeacherConfig(**section(chosen, "hsakd_teacher")),
        scalekd=ScalekdConfig(**section(chosen, "scalekd")),
        epochs=epochs,
        batch_size=batch_size,
        views_per_image=views,
        epoch_counting=counting,
        seed=seed,
        init=init and file_digest(Path(init)),
        precision=chosen.get("precision") or default_precision(device.type == "cuda"),
        data_identity=_data_identity(store, beton, sampler),
    )
    if (way_out := without_classes(config)) is not None:
        data = with_student_classes(data, config.student, way_out)
    taught_at = record.input_size if record and method not in FOLDER_METHODS else None
    return config, replace(data, notes=data.notes + run_notes(config, data, taught_at))


def _target(store: LabelStore, method: str, chosen: Mapping[str, Any]) -> TargetRecord | None:
    """The target that the method learns from, None where it reads top-k labels alone."""
    kind, part = TARGET_KINDS.get(method), method.replace("-", "_")
    if method == "fkd-ssl":
        kind = FkdSslConfig(**section(chosen, part)).kind
    if kind is None and chosen.get("labels.label_type") == FULL:
        kind, part = "dense", "labels"
    if kind is None:
        return None
    name = section(chosen, part).get("target")
    return choose_target(store, kind, name, method, f"{part}.target")


def _with_tail(
    store: LabelStore, teacher: str, labels: dict[str, Any], data: TrainingData
) -> tuple[dict[str, Any], TrainingData]:
    """Settings of labels with the tail that is chosen for the store, and a note of why."""
    if labels.get("tail") is not None:
        return labels, data
    means = data.mean_tails
    if means is None or not means.serve(LabelConfig(**(labels | {"tail": MEAN}))):
        return labels | {"tail": EVEN}, data
    choice = choose_tail(store, teacher)
    return labels | {"tail": choice.tail}, replace(data, notes=(*data.notes, choice.why))


def _teacher(
    store: LabelStore | None, asked: str | None, features: TargetRecord | None
) -> str | None:
    """Whose pixels (and labels) the student gets: the features' teacher, or the one chosen."""
    if store is None:
        return None
    if features is None:
        return choose_teacher(store, asked)
    if asked not in (None, features.teacher):
        raise UsageError(
            f"--teacher is {asked}, and {features.path} is of {features.teacher}: leave it out, or "
            "choose another target"
        )
    return features.teacher


def _default_batch_size(device: torch.device, views: int) -> int:
    return (1024 if device.type == "cuda" else 128) // views * views


def _schedule(chosen: dict[str, Any], epochs: int) -> ScheduleConfig:
    """Warm-up for the share of epochs of FKD's and ReLabel's best settings, 5 of 300."""
    return ScheduleConfig(**({"warmup_epochs": epochs / 60} | chosen))


def _resolution(chosen: dict[str, Any], side: int, epochs: int) -> ResolutionConfig:
    """The section's fields, the rest filled in where a schedule is asked for."""
    if chosen.get("start") is not None:
        chosen = {"end": side, "end_epoch": max(epochs - 1, chosen.get("begin_epoch", 0))} | chosen
    return ResolutionConfig(**chosen)


def _optim(chosen: dict[str, Any], batch_size: int) -> OptimConfig:
    return replace(default_optim(chosen.get("name", "sgd"), batch_size), **chosen)


def _student(
    method: str,
    chosen: dict[str, Any],
    data: TrainingData,
    labelled_by: TeacherRecord | None,
    shown_to: TeacherRecord | None,
) -> StudentConfig:
    """The student of a run.

    Args:
        labelled_by: the teacher whose classes it learns; None: the folder's own classes.
        shown_to: the teacher whose pixels it gets; None: ImageNet's statistics.
    """
    if labelled_by is not None:
        num_classes, classes = labelled_by.num_classes, labelled_by.classes
    else:
        num_classes, classes = len(data.beton.classes), tuple(data.beton.classes)
        if not num_classes:
            raise UsageError(
                f"--method {method} needs class folders (root/class/image); these images have none"
            )
    size = chosen.get("input_size") or (shown_to.input_size if shown_to else 224)
    arch = models.canonical_name(
        chosen.get("arch") or ("resnet20" if size <= SMALL_SIDE else "r18")
    )
    return StudentConfig(
        arch=models.branched_name(arch) if method == "hsakd-teacher" else arch,
        num_classes=num_classes,
        input_size=size,
        mean=tuple(chosen.get("mean") or (shown_to.mean if shown_to else IMAGENET_MEAN)),
        std=tuple(chosen.get("std") or (shown_to.std if shown_to else IMAGENET_STD)),
        interpolation=data.interpolation,
        classes=None if classes is None else tuple(classes),
    )


def _data_identity(store: LabelStore | None, beton: Beton, sampler: Any) -> str:
    if store is not None:
        return f"store {read_manifest(store.path).root}"
    return f"beton {beton.fingerprint} {json.dumps(sampler.to_json(), sort_keys=True)}"
