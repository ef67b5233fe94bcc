"""Checkpoints: the whole state of a run, and the student alone in safetensors.

Both are written beside their final name and renamed, so a killed run leaves the last good one.
`torch.load` is only ever called with weights_only=True.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from storage.errors import StoreMismatch, TrainingError, UsageError
from trainer import models
from trainer.config import StudentConfig, differences
from trainer.models import METADATA_KEY

CHECKPOINT_NAME = "checkpoint.pt"
STUDENT_NAME = "student.safetensors"


class RunSettings(Protocol):
    """All that a run can't change between its beginning and its end."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""


def replace_atomically(temporary: Path, final: Path) -> None:
    """Make a completely written file appear under its name, surviving a crash."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` make a file and put it in its place; a failure leaves the last one.

    Raises:
        TrainingError: the file can't be written (a full disk, mostly).
    """
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        replace_atomically(temporary, path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors have their own
        temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} can't be written ({_first_line(error)}): free some space and run the same "
            "command again; the last checkpoint is kept"
        ) from error


def _first_line(error: Exception) -> str:
    """Of an error's text; its type where it has none (an empty file's EOFError)."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def save_student(
    path: Path, student: nn.Module, config: StudentConfig, provenance: dict[str, Any]
) -> None:
    """Write the student's weights alone; the header says how to build and feed it."""
    save_network(path, student, METADATA_KEY, {**config.to_json(), "provenance": provenance})


def save_network(path: Path, network: nn.Module, key: str, header: dict[str, Any]) -> None:
    """Write a network's weights in safetensors, with plain values under a key of the header."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    metadata = {"format": "pt", key: json.dumps(header)}
    _write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_student(path: Path) -> tuple[nn.Module, StudentConfig]:
    """Build a student from its safetensors file.

    Raises:
        UsageError: no such file, or one that `trainer fit` did not write.
    """
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} can't be read as a student's safetensors: {error}") from error
    if header is None:
        raise UsageError(
            f"{path} does not say which network it is (no {METADATA_KEY!r} entry in its header): "
            "give a student.safetensors written by `trainer fit`"
        )
    try:
        config = StudentConfig.from_json(json.loads(header))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} has a header that does not describe a student ({error!r}): give a "
            "student.safetensors written by `trainer fit`"
        ) from error
    student = models.create(config.arch, config.num_classes)
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UsageError(
            f"{path} says it is {config.arch} with {config.num_classes} classes, but its tensors "
            f"are another network's ({first[0].strip()[:200]}): train it again, or give another"
        ) from error
    return student, config


def save_checkpoint(path: Path, config: RunSettings, state: dict[str, Any]) -> None:
    """Write the state of a run (tensors and plain values only)."""
    values = {"config": json.dumps(config.to_json()), **state}
    _write(path, lambda temporary: torch.save(values, temporary))


def load_checkpoint(
    path: Path,
    config: RunSettings,
    completed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Read the state of a run that had the same settings and data.

    Args:
        completed: adds the settings that an older release's run doesn't name.
    Raises:
        TrainingError: the file is damaged.
        StoreMismatch: it belongs to a run with other settings; each is named.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = json.loads(json.dumps(completed(json.loads(state["config"]))))
    except Exception as error:  # torch raises many types on damaged files
        raise TrainingError(
            f"{path} is damaged and can't be resumed from ({_first_line(error)}): "
            "start over with --overwrite, or give another --out"
        ) from error
    other = differences(json.loads(json.dumps(config.to_json())), theirs)
    if other:
        raise StoreMismatch(
            f"{path} is of another run ({'; '.join(other)}): repeat its settings to resume, "
            "give another --out, or start over with --overwrite"
        )
    return dict(state)
