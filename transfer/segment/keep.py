"""A finished segmentation network as one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from storage.errors import UsageError
from trainer.checkpoint import save_network
from trainer.config import StudentConfig
from transfer.segment.model import Segmenter, build_segmenter
from transfer.segment.settings import SegmentSettings
from transfer.starts import SCRATCH, Start

NETWORK_NAME = "segmenter.safetensors"
_KEY = "teachonce-segmenter"


def save_segmenter(
    path: Path,
    model: Segmenter,
    student: StudentConfig,
    settings: SegmentSettings,
    names: tuple[str, ...],
) -> None:
    """Write a network's weights; the header says how to build and feed it, and its classes."""
    header = {"student": student.to_json(), "segment": settings.to_json(), "classes": list(names)}
    save_network(path, model, _KEY, header)


def load_segmenter(path: Path) -> tuple[Segmenter, StudentConfig, tuple[str, ...]]:
    """A network in evaluation mode, how its images are normalised, and its classes' names.

    Raises:
        UsageError: the file is not one that `transfer segment` wrote.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        student = StudentConfig.from_json(header["student"])
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in header["segment"].items()
        }
        settings, names = SegmentSettings(**lists), tuple(str(n) for n in header["classes"])
        model = build_segmenter(Start(SCRATCH, student, None, SCRATCH), settings, len(names), 0)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"{path} can't be read as a network of `transfer segment` "
            f"({' '.join(str(error).split())[:200]}): give a {NETWORK_NAME} that it wrote"
        ) from error
    return model.eval(), student, names
