"""Small images made on the spot; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests go first, so that they don't end on one core with the other idle."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


def make_image(seed: int, height: int, width: int) -> Image.Image:
    """Smooth colours with some texture, so that crops differ and JPEG has something to do."""
    rng = np.random.default_rng([11, seed])
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(x / rng.uniform(5, 40) + rng.uniform(0, 6))
        + np.cos(y / rng.uniform(5, 40) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    pixels = 127 + 50 * np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folder(
    root: Path, *, classes: int = 3, per_class: int = 4, sides: tuple[int, int] = (40, 90)
) -> Path:
    """An ImageFolder tree of JPEGs of different sizes; class c is tinted so it can be learnt."""
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            seed = label * 1000 + i
            rng = np.random.default_rng([12, seed])
            height, width = (int(v) for v in rng.integers(*sides, size=2))
            pixels = np.asarray(make_image(seed, height, width)).astype(np.int16)
            pixels[..., label % 3] += 60
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"image{i}.jpg", quality=90)
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """12 small JPEGs in 3 classes."""
    return write_folder(tmp_path / "images")
