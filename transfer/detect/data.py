"""Photos as a detector takes them: decoded, resized, maybe mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from storage.errors import BadImage, UsageError
from storage.pixels import INTERPOLATIONS, decode_rgb
from trainer.checks import require
from transfer.detect.boxes import Photo, PhotoSet

SHORTEST, LARGEST = 48, 8192  # pixels; below, the last map would be a single one
Target = dict[str, Tensor]  # boxes float32 [n, 4], labels int64 [n]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large photos become: the shorter side as given, unless the longer one gets too long.

    Attributes:
        train: shorter sides to draw from. test: shorter side. longest: of the longer side.
    """

    train: tuple[int, ...]
    test: int
    longest: int

    def __post_init__(self) -> None:
        sides = (*self.train, self.test)
        require(bool(self.train), "--short-sides is empty; expected one side or more")
        require(
            min(sides) >= SHORTEST and max(sides) <= self.longest <= LARGEST,
            f"--short-sides {list(self.train)}, --test-side {self.test}, --longest {self.longest}: "
            f"expected sides from {SHORTEST} pixels to --longest, which is at most {LARGEST}",
        )

    def fit(self, size: tuple[int, int], short: int) -> tuple[int, int]:
        """(width, height) of a photo when its shorter side is to be `short`."""
        scale = min(short / min(size), self.longest / max(size))
        width, height = (max(1, round(side * scale)) for side in size)
        return width, height


@dataclass(frozen=True)
class DetectionBatch:
    """uint8 [3, H, W] photos in RGB, each of its own size, and what is to be found in them."""

    images: list[Tensor]
    target: list[Target]


class TrainSamples:
    """Photos to learn from, with the chance of a flip and of their size (transfer.epochs.Samples).

    Args:
        flip: probability of mirroring left to right.
        skip_ignored: leave out the boxes that evaluation ignores.
    """

    def __init__(self, photos: PhotoSet, sizes: Sizes, flip: float, skip_ignored: bool) -> None:
        self._photos, self._sizes, self._flip = photos.photos, sizes, flip
        self._skip_ignored = skip_ignored

    def __len__(self) -> int:
        return len(self._photos)

    def name(self, row: int) -> str:
        """Of a photo, for people."""
        return self._photos[row].key

    def sample(self, row: int) -> tuple[Tensor, Target]:
        """A photo and its boxes, in its new pixels."""
        photo = self._photos[row]
        short = self._sizes.train[int(torch.randint(len(self._sizes.train), ()))]
        flip = bool(torch.rand(()) < self._flip)
        image = resized(photo, self._sizes, short)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        kept = ~photo.ignored if self._skip_ignored else np.ones_like(photo.ignored)
        boxes = photo.boxes[kept] * np.tile(np.divide(image.size, photo.size), 2)
        if flip:
            boxes[:, [0, 2]] = image.size[0] - boxes[:, [2, 0]]
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(photo.labels[kept]),
        }
        return pixels(image), target


class JudgedPhotos(Dataset[tuple[int, Tensor]]):
    """Photos to judge on: (row, pixels), at the test size."""

    def __init__(self, photos: Sequence[Photo], sizes: Sizes) -> None:
        self._photos, self._sizes = photos, sizes

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, row: int) -> tuple[int, Tensor]:
        return row, pixels(resized(self._photos[row], self._sizes, self._sizes.test))


def collate(samples: list[tuple[Tensor, Target]]) -> DetectionBatch:
    """Photos and targets, in order."""
    return DetectionBatch([image for image, _ in samples], [target for _, target in samples])


def photo_batches(
    photos: Sequence[Photo], sizes: Sizes, batch_size: int, workers: int
) -> Iterator[list[tuple[int, Tensor]]]:
    """(row, uint8 [3, H, W]) of all photos, in order."""
    parallel = workers if len(photos) > batch_size else 0
    yield from DataLoader(
        JudgedPhotos(photos, sizes),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=parallel,
        multiprocessing_context="forkserver" if parallel else None,
        generator=torch.Generator(),  # or it would draw from the run's random state
    )


def resized(photo: Photo, sizes: Sizes, short: int) -> Image.Image:
    """The decoded photo with its new size; antialiased bilinear, as published.

    Raises:
        UsageError: it can't be decoded, or is not the one that was listed.
    """
    try:
        image = decode_rgb(photo.path.read_bytes())
    except (BadImage, OSError) as error:
        raise UsageError(
            f"{photo.path} can't be decoded ({error}): mend it, or take it out of the lists"
        ) from error
    if image.size != photo.size:
        raise UsageError(f"{photo.path} was {photo.size} and is {image.size} now: run again")
    return image.resize(sizes.fit(photo.size, short), INTERPOLATIONS["bilinear"])


def pixels(image: Image.Image) -> Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
