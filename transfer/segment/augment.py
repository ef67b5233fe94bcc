"""Training crops of an image and its mask, by torchvision's transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from storage.errors import TrainingError
from transfer.segment.data import Pair, Pixels, read_pair
from transfer.segment.masks import ClassTable
from transfer.segment.settings import IGNORED, SegmentSettings

BLUR_SIDE, BLUR_SIGMA = 5, 1.1  # what OpenCV makes of a kernel of 5 without a sigma


@dataclass(frozen=True)
class SegmentBatch:
    """uint8 [B, 3, S, S] and class numbers, uint8 [B, S, S]."""

    images: Tensor
    target: Tensor


def collate(samples: list[tuple[Tensor, Tensor]]) -> SegmentBatch:
    """Samples -> a batch."""
    images, target = zip(*samples, strict=True)
    return SegmentBatch(torch.stack(images), torch.stack(target))


class _RandomFactor(v2.Transform):  # type: ignore[misc]
    """Both sides times one uniformly drawn factor."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = float(torch.empty(()).uniform_(self.low, self.high))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


class _CropWithin(v2.Transform):  # type: ignore[misc]
    """A random square, as much of it as lies in the image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = v2.functional.get_size(flat_inputs[0])
        height, width = (min(self.side, side) for side in sides)
        top, left = (
            int(torch.randint(side - kept + 1, ()))
            for side, kept in zip(sides, (height, width), strict=True)
        )
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.crop(inpt, **params)


class SegmentSamples:
    """Training samples (transfer.epochs.Samples), augmented as KDEP's are.

    Resized, rotated, cropped, blurred, colours changed, mirrored, padded; rotation, blur, each
    change of colour and the mirror with probability 1/2. What lies outside the image is the mean
    colour, and ignored in the mask. KDEP crops last; here the colours of what is kept alone are
    worked on, which gives the same but for the blur of the outermost two pixels.

    Args:
        mean: of the student's pixels, 0 to 1.
    """

    def __init__(
        self,
        pairs: tuple[Pair, ...],
        table: ClassTable,
        settings: SegmentSettings,
        mean: tuple[float, ...],
    ) -> None:
        self._pairs, self._table = pairs, table
        self._augment = _augmentation(settings, mean)

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, row: int) -> str:
        """Of an image, for people."""
        return self._pairs[row].name

    def sample(self, row: int) -> tuple[Tensor, Tensor]:
        """uint8 [3, S, S] and class numbers, uint8 [S, S].

        Raises:
            TrainingError: the image could be decoded when the run began, and now it can't.
        """
        try:
            image, mask = read_pair(self._pairs[row], self._table)
        except Exception as error:  # a worker hands on no error of ours with its exit code
            raise TrainingError(
                f"{self.name(row)} has changed while it was learnt ({error}): put it back and run "
                "the same command again"
            ) from error
        return self.augment(image, mask)

    def augment(self, image: Image.Image, mask: Pixels) -> tuple[Tensor, Tensor]:
        """A random crop of an image and its mask, by torch's random state."""
        crop, target = self._augment(image, tv_tensors.Mask(torch.from_numpy(mask)))
        return v2.functional.pil_to_tensor(crop), target.as_subclass(Tensor)


def _augmentation(settings: SegmentSettings, mean: tuple[float, ...]) -> v2.Transform:
    outside: dict[Any, Any] = {
        Image.Image: tuple(round(255 * value) for value in mean),
        tv_tensors.Mask: IGNORED,
    }
    steps: list[nn.Module] = [_RandomFactor(*settings.scale)]
    if settings.rotate:
        turn = v2.RandomRotation(
            settings.rotate, interpolation=InterpolationMode.BILINEAR, fill=outside
        )
        steps.append(v2.RandomApply([turn], p=0.5))
    steps.append(_CropWithin(settings.crop))
    if settings.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(BLUR_SIDE, BLUR_SIGMA)], p=0.5))
    if settings.photometric:
        steps += _photometric()
    if settings.flip:
        steps.append(v2.RandomHorizontalFlip(0.5))
    steps.append(v2.RandomCrop(settings.crop, pad_if_needed=True, fill=outside))
    return v2.Compose(steps)


def _photometric() -> list[nn.Module]:
    """SSD's photometric distortion (arXiv:1512.02325), each part with probability 1/2.

    The published brightness adds up to 32; torchvision's multiplies by 1 - 1/8 to 1 + 1/8.
    """
    parts = [
        v2.ColorJitter(brightness=32 / 256),
        v2.ColorJitter(contrast=0.5),
        v2.ColorJitter(saturation=0.5),
        v2.ColorJitter(hue=0.1),
    ]
    return [v2.RandomApply([part], p=0.5) for part in parts]
