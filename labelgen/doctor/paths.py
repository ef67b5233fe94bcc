"""The paths that crops take on this machine, each run on the canaries.

Pillow's is that of the crop workers. The trainer's loaders are run as they are, on a beton of the
canaries' images, in a process of their own: what they need may be missing or may crash.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelgen.doctor.crops import CanaryCrop
from storage import augment, pixels
from storage.errors import BadImage
from storage.format import json_bytes

NEEDED = {"pillow": (), "torch": ("torch",), "ffcv": ("torch", "ffcv", "numba")}
SECONDS = 600

Made = npt.NDArray[np.uint8] | str


@dataclass(frozen=True)
class PathFailed:
    """A path that could not be run at all, and its last words."""

    reason: str


def replay_pillow(crops: Sequence[CanaryCrop]) -> list[Made]:
    """The crops as stage 1's workers cut them; why, where one can't be had."""
    found: list[Made] = []
    for crop in crops:
        view = crop.view
        try:
            image = pixels.pad_image(pixels.decode_rgb(crop.data), crop.padding)
            found.append(augment.replay_view(
                image, view.box, view.flip, crop.size, crop.interpolation, crop.augment, view.draw,
            ))  # fmt: skip
        except BadImage as error:
            found.append(str(error))
    return found


def replay_loader(crops: Sequence[CanaryCrop], loader: str) -> list[Made] | PathFailed:
    """The crops as one of the trainer's loaders ("torch" or "ffcv") gives them.

    The loader runs as `python -m trainer.replay.canaries`, which reads and writes plain arrays.
    """
    with tempfile.TemporaryDirectory(prefix="teachonce-doctor-") as name:
        folder = Path(name)
        write_request(folder, crops)
        command = [sys.executable, "-m", "trainer.replay.canaries", loader, str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return PathFailed(f"no answer in {SECONDS} s")
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return PathFailed(words[-1])
        return read_answer(folder, len(crops))


def write_request(folder: Path, crops: Sequence[CanaryCrop]) -> None:
    """Put the crops' images and views where the loaders' process finds them.

    images/NNN.EXT: one file a crop. request.json: a list of views in the same order.
    """
    images = folder / "images"
    images.mkdir()
    views = []
    for number, crop in enumerate(crops):
        suffix = ".png" if crop.data.startswith(b"\x89PNG") else ".jpg"
        (images / f"{number:03d}{suffix}").write_bytes(crop.data)
        draw = crop.view.draw
        views.append({
            "box": list(crop.view.box), "flip": crop.view.flip, "size": crop.size,
            "interpolation": crop.interpolation, "padding": crop.padding,
            "augment": crop.augment.to_json() if crop.augment else None,
            "draw": None if draw is None else draw.tolist(),
        })  # fmt: skip
    (folder / "request.json").write_bytes(json_bytes(views))


def read_answer(folder: Path, count: int) -> list[Made]:
    """What the loaders' process left: NNN.npy of every crop that it could make."""
    found: list[Made] = []
    for number in range(count):
        path = folder / f"{number:03d}.npy"
        if path.is_file():
            found.append(np.load(path, allow_pickle=False))
        else:
            found.append("the loader could not decode it")
    return found
