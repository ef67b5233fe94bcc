"""Frozen features: what a student's head reads, for every image, computed once and kept."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from storage.errors import BadImage, TrainingError, UsageError
from storage.progress import Progress
from trainer.checkpoint import replace_atomically
from trainer.config import StudentConfig
from trainer.data import normaliser
from trainer.evaluate import CROP_FRACTION, NATIVE_SIDE, centre_crop
from trainer.models.feature_tap import FEATURE, find_head, noise_batch, pool
from trainer.models.taps import INPUT, Listener, Tap
from transfer.images import LabelledImages

_MASKED, _FINE, _ENLARGED = -1, 0, 1
_LAYOUT = 1  # of the cache files; another number makes old ones unknown


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the images that could be decoded.

    Attributes:
        values: float32 [N, D], pooled, after the last ReLU. target: int64 [N].
        masked: names of images that can't be decoded.
        enlarged: images whose shorter side is below the student's input.
    """

    values: npt.NDArray[np.float32]
    target: npt.NDArray[np.int64]
    masked: tuple[str, ...]
    enlarged: int


@dataclass(frozen=True)
class Extraction:
    """How features are computed; all of it but batch_size, workers and device is in their key.

    whole: the shorter side is resized to the input, not to 8/7 of it (HSAKD's Resize(32)).
    """

    device: torch.device
    whole: bool = False
    batch_size: int = 128
    workers: int = 2


class Crops(Dataset[tuple[torch.Tensor, int]]):
    """Images as uint8 [S, S, 3] centre crops, each with how it went."""

    def __init__(self, images: LabelledImages, config: StudentConfig, whole: bool) -> None:
        self.images, self.config, self.whole = images, config, whole

    def __len__(self) -> int:
        return len(self.images.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        size = self.config.input_size
        try:
            image = self.images.decode(row)
        except (BadImage, OSError):
            return torch.zeros(size, size, 3, dtype=torch.uint8), _MASKED
        state = _ENLARGED if min(image.size) < size else _FINE
        fraction = 1.0 if self.whole else CROP_FRACTION
        crop = centre_crop(image, size, self.config.interpolation, fraction)
        return torch.from_numpy(np.array(crop)), state


def cached_features(
    cache: Path,
    identity: tuple[str, str],
    model: nn.Module,
    config: StudentConfig,
    images: LabelledImages,
    settings: Extraction,
) -> Features:
    """Features from the cache folder, or computed and put there.

    Args:
        identity: digests of the network and of the images; with the crop they name the file.
    """
    key = json.dumps([_LAYOUT, *identity, settings.whole, NATIVE_SIDE, config.to_json()])
    path = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    if path.exists():
        try:
            return _read(path, len(images.targets))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            print(f"{path} is damaged ({error}): computing it again", file=sys.stderr)
    features = extract(model, config, images, settings)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        np.savez(
            file,
            values=features.values,
            target=features.target,
            masked=np.array(features.masked, dtype=np.str_),
            enlarged=features.enlarged,
        )
    replace_atomically(temporary, path)
    return features


def _read(path: Path, num_images: int) -> Features:
    # opened here, since np.load leaves a damaged file open
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
        values, target = saved["values"], saved["target"]
        masked = tuple(str(name) for name in saved["masked"])
        enlarged = int(saved["enlarged"])
    if values.ndim != 2 or len(values) != len(target) or len(values) + len(masked) != num_images:
        raise ValueError(f"{values.shape} features for {num_images} images")
    return Features(values, target, masked, enlarged)


@torch.inference_mode()
def extract(
    model: nn.Module, config: StudentConfig, images: LabelledImages, settings: Extraction
) -> Features:
    """Run a network over labelled images and keep what its head reads.

    Raises:
        UsageError: the network does not end in a linear layer, or no image can be decoded.
        TrainingError: features that are not finite.
    """
    model = model.to(settings.device).to(memory_format=torch.channels_last).eval()
    head = find_head(model, noise_batch(config.input_size, settings.device))
    if head is None:
        raise UsageError(
            f"student {config.arch} has no pooled feature: none of its linear layers gives its "
            "logits; take a student that ends in a linear layer"
        )
    parallel = len(images.targets) > settings.batch_size and settings.workers > 0
    loader = DataLoader(
        Crops(images, config, settings.whole),
        batch_size=settings.batch_size,
        num_workers=settings.workers if parallel else 0,
        multiprocessing_context="forkserver" if parallel else None,
    )
    normalise = normaliser(config, settings.device)
    listener = Listener(model, [Tap(FEATURE, head.name, INPUT, pool)])
    values, states = [], []
    progress = Progress(len(images.targets), "images", f"features of {config.arch}")
    try:
        with progress:
            for pixels, state in loader:
                found: dict[str, torch.Tensor] = {}
                listener.found = found
                model(normalise(pixels))
                values.append(found[FEATURE].cpu())
                states.append(state)
                progress.advance(len(state))
    finally:
        listener.close()
    return _keep_decoded(torch.cat(values).numpy(), torch.cat(states).numpy(), images)


def _keep_decoded(
    values: npt.NDArray[np.float32], states: npt.NDArray[np.int64], images: LabelledImages
) -> Features:
    fine = states != _MASKED
    if not fine.any():
        raise UsageError(
            f"none of the {len(states)} images of {images.location} can be decoded: give others"
        )
    values = values[fine]
    if not np.isfinite(values).all():
        raise TrainingError(
            f"features of {images.location} are not finite: the student is damaged; train it again"
        )
    masked = tuple(images.name(int(row)) for row in np.flatnonzero(~fine))
    target = np.array(images.targets, dtype=np.int64)[fine]
    return Features(values, target, masked, int((states == _ENLARGED).sum()))
