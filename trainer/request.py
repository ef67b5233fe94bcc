"""What a user asks of `trainer fit`, and how open choices are filled in."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from storage import LabelStore
from storage.errors import UsageError
from storage.manifest import read_manifest
from storage.views import RandomResizedCrop
from trainer import models
from trainer.config import LabelConfig, StudentConfig, TrainConfig, default_optim
from trainer.data import TrainingData, fresh_views, join_store
from trainer.inputs import choose_teacher
from trainer.plan import num_planes
from trainer.replay.beton import Beton

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_SIDE = 64  # students of images up to this side are CIFAR networks by default


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What the user asked for; None means "choose for me" (the choice is recorded)."""

    labels: Path | str | None = None  # folder or address of a label store
    data: str | None = None
    val: Path | None = None
    out: Path | None = None
    method: str | None = None
    student: str | None = None
    teacher: str | None = None
    size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    views_per_image: int | None = None
    sampler: Any = None  # storage.views sampler of runs without a store
    label_type: str = "marginal_smoothing"
    label_k: int | None = None
    label_tail: str = "mean"
    temperature: float = 1.0
    optimizer: str = "sgd"
    lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    precision: str | None = None
    device: str = "auto"
    workers: int = 2
    loader: str = "ffcv"
    seed: int = 0
    overwrite: bool = False


def default_method(request: FitRequest) -> str:
    """FKD with labels, supervised without."""
    return request.method or ("fkd" if request.labels else "supervised")


def default_out(request: FitRequest) -> Path:
    """Run folder named after the method and, where one was given, the student."""
    student = f"-{request.student}" if request.student else ""
    return Path("runs") / f"{default_method(request)}{student}".replace(":", "-").replace("/", "-")


def configure(
    request: FitRequest, device: torch.device, store: LabelStore | None, beton: Beton
) -> tuple[TrainConfig, TrainingData]:
    """Fill in every choice the user left open, and join images with labels."""
    method = default_method(request)
    uses_labels = method != "supervised"
    if uses_labels and store is None:
        raise UsageError(f"--method {method} learns from a label store: give one with --labels")
    teacher = choose_teacher(store, request.teacher) if store is not None else None
    record = store.spec.teachers[teacher] if store is not None else None
    stored_views = store.spec.num_views if store is not None else None
    views = request.views_per_image or min(4, stored_views or 4)
    sampler = request.sampler or RandomResizedCrop()
    if store is not None:
        data = join_store(beton, store, teacher if uses_labels else None)
        epochs = request.epochs or num_planes(data.stored_views, views)
    else:
        data = fresh_views(beton, sampler, request.seed, views)
        epochs = request.epochs or 30
    if uses_labels:
        num_classes, classes = record.num_classes, record.classes
    else:
        num_classes, classes = len(beton.classes), tuple(beton.classes)
        if not num_classes:
            raise UsageError(
                "--method supervised needs class folders (root/class/image); these images have none"
            )
    size = request.size or (record.input_size if record else 224)
    arch = models.canonical_name(request.student or ("resnet20" if size <= SMALL_SIDE else "r18"))
    batch_size = request.batch_size or (1024 if device.type == "cuda" else 128) // views * views
    chosen = default_optim(request.optimizer, batch_size, epochs)
    overrides = {"lr": request.lr, "weight_decay": request.weight_decay,
                 "warmup_epochs": request.warmup_epochs}  # fmt: skip
    config = TrainConfig(
        method=method,
        student=StudentConfig(
            arch=arch,
            num_classes=num_classes,
            input_size=size,
            mean=tuple(record.mean) if record else IMAGENET_MEAN,
            std=tuple(record.std) if record else IMAGENET_STD,
            interpolation=data.interpolation,
            classes=None if classes is None else tuple(classes),
        ),
        labels=LabelConfig(
            teacher=teacher,
            label_type=request.label_type,
            top_k=request.label_k,
            temperature=request.temperature,
            tail=request.label_tail,
        )
        if uses_labels
        else None,
        optim=replace(chosen, **{k: v for k, v in overrides.items() if v is not None}),
        epochs=epochs,
        batch_size=batch_size,
        views_per_image=views,
        seed=request.seed,
        precision=request.precision or ("bf16" if device.type == "cuda" else "fp32"),
        data_identity=_data_identity(store, beton, sampler),
    )
    return config, data


def _data_identity(store: LabelStore | None, beton: Beton, sampler: Any) -> str:
    if store is not None:
        return f"store {read_manifest(store.path).root}"
    return f"beton {beton.fingerprint} {json.dumps(sampler.to_json(), sort_keys=True)}"
