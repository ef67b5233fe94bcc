"""Small segmentation data sets made on the spot, shared by the tests of `transfer segment`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import models
from trainer.checkpoint import save_student
from trainer.config import StudentConfig

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 210))
ARCH = "timm:mobilenetv3_small_050"


def make_pair(seed: int, height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """A picture of flat blocks whose colour is their class, and the classes, uint8 [H, W]."""
    blocks = np.random.default_rng([21, seed]).integers(0, 3, ((height + 15) // 16,
                                                              (width + 15) // 16))  # fmt: skip
    classes = np.kron(blocks, np.ones((16, 16)))[:height, :width].astype(np.uint8)
    return Image.fromarray(np.array(COLOURS, dtype=np.uint8)[classes]), classes


def write_set(
    root: Path, *, train: int = 6, val: int = 3, sides: tuple[int, int] = (48, 64)
) -> Path:
    """A folder of images, masks and classes.json; id 3 is ignored."""
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, classes = make_pair(i + 100 * (split == "val"), *sides)
            classes[:2] = 3
            image.save(root / "images" / split / f"picture{i}.png")
            Image.fromarray(classes).save(root / "masks" / split / f"picture{i}.png")
    write_classes(root, names=["red", "green", "blue", "nothing"], ignore_index=3)
    return root


def write_classes(root: Path, **values: object) -> None:
    """Write classes.json."""
    (root / "classes.json").write_text(json.dumps(values))


def write_student(path: Path, arch: str = ARCH, seed: int = 0, size: int = 64) -> Path:
    """A random student as a safetensors file."""
    torch.manual_seed(seed)
    config = StudentConfig(
        arch=arch,
        num_classes=3,
        input_size=size,
        mean=(0.5, 0.4, 0.6),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        classes=None,
    )
    save_student(path, models.create(arch, 3), config, {})
    return path
