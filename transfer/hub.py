"""config.json and README.md: what timm and the Hugging Face Hub read beside the weights."""

from __future__ import annotations

from typing import Any

from trainer.config import StudentConfig
from trainer.evaluate import CROP_FRACTION, NATIVE_SIDE

# What else timm asks of an architecture when a user changes its classes or its input.
_ARCHITECTURE_KEYS = ("classifier", "first_conv", "fixed_input_size", "pool_size")


def timm_config(name: str, config: StudentConfig) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` reads from config.json.

    Args:
        name: of the architecture in timm.
    """
    import timm

    default = timm.get_pretrained_cfg(name, allow_unregistered=True)
    known = {} if default is None else default.to_dict()  # type: ignore[no-untyped-call]
    pretrained = {key: known[key] for key in _ARCHITECTURE_KEYS if known.get(key) is not None}
    pretrained |= {
        "input_size": [3, config.input_size, config.input_size],
        "interpolation": config.interpolation,
        "mean": list(config.mean),
        "std": list(config.std),
        "num_classes": config.num_classes,
        "crop_pct": CROP_FRACTION if config.input_size > NATIVE_SIDE else 1.0,
        "crop_mode": "center",
    }
    found = {"architecture": name, "num_classes": config.num_classes, "pretrained_cfg": pretrained}
    if config.classes is not None:
        found["label_names"] = list(config.classes)
    return found


def model_card(config: StudentConfig, timm_name: str | None) -> str:
    """README.md with the front matter that the Hub reads; the licence is the owner's to add."""
    library = "timm" if timm_name else "teachonce"
    usage = _TIMM_USAGE if timm_name else _OWN_USAGE
    classes = "not named"
    if config.classes is not None:
        classes = ", ".join(config.classes[:10]) + (" ..." if config.num_classes > 10 else "")
    return _CARD.format(
        library=library,
        arch=config.arch,
        size=config.input_size,
        mean=", ".join(f"{value:g}" for value in config.mean),
        std=", ".join(f"{value:g}" for value in config.std),
        interpolation=config.interpolation,
        num_classes=config.num_classes,
        classes=classes,
        usage=usage,
    )


_CARD = """---
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
- distillation
- teachonce
---

# {arch}, distilled from stored labels

| | |
|---|---|
| network | {arch} |
| input | {size} x {size} RGB, {interpolation}, (pixel / 255 - mean) / std |
| mean | {mean} |
| std | {std} |
| classes | {num_classes}: {classes} |

{usage}
Before you publish: add the `license` to the lines at the top; it must allow what the licences of
the training images and of the teacher allow.
"""
_TIMM_USAGE = """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:OWNER/NAME
```
"""
_OWN_USAGE = """```python
from pathlib import Path

from trainer.checkpoint import load_student

model, config = load_student(Path("FOLDER/model.safetensors"))
```
"""
