"""Hand a student to torchvision or timm, and prove that it is the same network there.

Students are torchvision and timm networks from the start, so an export renames nothing; what it
adds is the file layout the other library loads by itself, and a check on random images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from storage.errors import TeachonceError, UsageError
from trainer.checkpoint import load_student, replace_atomically
from trainer.config import StudentConfig

TARGETS = {"torchvision": "tv:", "timm": "timm:"}
WEIGHTS_NAME = "model.safetensors"  # what timm looks for in a `local-dir:` folder


@dataclass(frozen=True)
class ExportReport:
    """Where the export lies and the largest difference of its logits (0 for pure renames)."""

    folder: Path
    target: str
    max_difference: float


def export(checkpoint: Path, target: str, out: Path, overwrite: bool = False) -> ExportReport:
    """Write a student for another library, load it there, compare the logits.

    Args:
        checkpoint: student.safetensors of `trainer fit`.
        target: a key of `TARGETS`.
        out: folder to write: model.safetensors, and config.json for timm.
    Raises:
        UsageError: the student is not a network of that library, or `out` exists.
        TeachonceError: the exported network gives other logits.
    """
    student, config = load_student(checkpoint)
    prefix = TARGETS[target]
    if not config.arch.startswith(prefix):
        fitting = [name for name, start in TARGETS.items() if config.arch.startswith(start)]
        way_out = f"use --to {fitting[0]}" if fitting else "its own safetensors loads with trainer"
        raise UsageError(f"the student is {config.arch}, not a {target} network: {way_out}")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out} is not empty: give another --out, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
    temporary = out / (WEIGHTS_NAME + ".part")
    save_file(weights, temporary, metadata={"format": "pt"})
    replace_atomically(temporary, out / WEIGHTS_NAME)
    if target == "timm":
        (out / "config.json").write_text(json.dumps(_timm_config(config), indent=2) + "\n")
    loaded = _load(target, out, config)
    difference = largest_difference(student, loaded, config.input_size)
    if difference > 1e-5:
        raise TeachonceError(
            f"{out} gives logits up to {difference:.2e} from the student's (expected 0): "
            f"the installed {target} builds another {config.arch}"
        )
    return ExportReport(out, target, difference)


def largest_difference(first: nn.Module, second: nn.Module, size: int) -> float:
    """Largest absolute difference of logits on two seeded random images of side `size`."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((first.eval()(images) - second.eval()(images)).abs().max())


def _timm_config(config: StudentConfig) -> dict[str, object]:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""
    pretrained = {
        "input_size": [3, config.input_size, config.input_size],
        "interpolation": config.interpolation,
        "mean": list(config.mean),
        "std": list(config.std),
        "num_classes": config.num_classes,
        "crop_pct": 0.875,
    }
    if config.classes is not None:
        pretrained["label_names"] = list(config.classes)
    return {
        "architecture": config.arch.removeprefix("timm:"),
        "num_classes": config.num_classes,
        "pretrained_cfg": pretrained,
    }


def _load(target: str, folder: Path, config: StudentConfig) -> nn.Module:
    """Load the export with the other library's own means."""
    if target == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    from torchvision import models

    network = models.get_model(
        config.arch.removeprefix("tv:"), weights=None, num_classes=config.num_classes
    )
    network.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return network
