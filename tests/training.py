"""A tiny trained-nowhere teacher and its store, shared by the tests of training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from labelgen import generate, load_teacher, resolve
from storage.errors import TrainingError
from trainer import models, recorder
from trainer.checkpoint import save_student
from trainer.config import StudentConfig
from trainer.request import FitRequest

CLASSES = ("class0", "class1", "class2")
SIZE = 24


def write_teacher(path: Path, seed: int = 0, scale: float = 20.0) -> Path:
    """A random resnet8 with large logits (a teacher with opinions) as a safetensors file."""
    torch.manual_seed(seed)
    network = models.create("resnet8", len(CLASSES))
    with torch.no_grad():
        network.fc.weight.mul_(scale)
    config = StudentConfig(
        arch="resnet8",
        num_classes=len(CLASSES),
        input_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        classes=CLASSES,
    )
    save_student(path, network, config, {"method": "test"})
    return path


def make_store(folder: Path, out: Path, *, crops: int = 8, teacher_seed: int = 0) -> Path:
    """Label a folder with the tiny teacher and seal the store."""
    weights = write_teacher(out.with_suffix(".safetensors"), teacher_seed)
    teacher = load_teacher(resolve(f"file:{weights}"), "cpu", "fp32")
    generate(teacher, folder, out, crops=crops, top_k=3, workers=1, batch_size=16)
    return out


def request(out: Path, **changes: object) -> FitRequest:
    """A quick run with the plain loader, in this process."""
    settings: dict[str, object] = {
        "out": out,
        "student": "resnet8",
        "size": SIZE,
        "batch_size": 16,
        "views_per_image": 4,
        "epochs": 2,
        "device": "cpu",
        "loader": "torch",
        "workers": 0,
    }
    return FitRequest(**(settings | changes))


@contextmanager
def stopped_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run inside gets SIGTERM after this many steps, and has to end with its own error."""
    taken, write = [0], recorder.StepRecorder.on_step

    def stop_later(self: recorder.StepRecorder, *arguments: object) -> None:
        taken[0] += 1
        if taken[0] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(recorder.StepRecorder, "on_step", stop_later)
        with pytest.raises(TrainingError, match="run the same command again"):
            yield
