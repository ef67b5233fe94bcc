"""The one evaluation: top-1, top-5 and loss on a folder of labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from storage.classes import map_classes
from storage.errors import BadImage, StoreMismatch, UsageError
from storage.images import ImageFolder
from storage.pixels import INTERPOLATIONS, decode_rgb
from trainer.config import StudentConfig
from trainer.data import normaliser

CROP_FRACTION = 224 / 256  # shorter side resized to size / fraction, then a centre crop
NATIVE_SIDE = 64  # below this, images of exactly the student's size are taken whole


@dataclass(frozen=True)
class Evaluation:
    """Averages over the images that could be decoded.

    top1 and top5 are fractions; loss is the mean cross-entropy in nats; masked counts images
    that could not be decoded.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    masked: int


class EvaluationImages(Dataset):
    """Images as uint8 [S, S, 3] centre crops with their class; index -1 marks bad images."""

    def __init__(self, folder: ImageFolder, target: npt.NDArray[np.int64], size: int,
                 interpolation: str) -> None:  # fmt: skip
        self.folder, self.target = folder, target
        self.size, self.interpolation = size, interpolation

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        try:
            image = decode_rgb(self.folder.path(row).read_bytes())
        except (BadImage, OSError):
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1
        pixels = np.array(centre_crop(image, self.size, self.interpolation))
        return torch.from_numpy(pixels), int(self.target[row])


def centre_crop(
    image: Image.Image, size: int, interpolation: str, fraction: float = CROP_FRACTION
) -> Image.Image:
    """Shorter side to size / fraction, then the central size x size pixels (torchvision's way).

    Small images that have the wanted size already are returned as they are.
    """
    if image.size == (size, size) and size <= NATIVE_SIDE:
        return image
    width, height = image.size
    short = round(size / fraction)
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    image = image.resize((width, height), INTERPOLATIONS[interpolation])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def student_targets(folder: ImageFolder, student: StudentConfig) -> npt.NDArray[np.int64]:
    """The student's class index of every image of a validation folder.

    Raises:
        UsageError: a flat folder, which has no classes.
        StoreMismatch: classes of the folder that the student does not know.
    """
    if not folder.classes:
        raise UsageError(
            f"{folder.root} has no class folders: evaluation needs root/class/image files"
        )
    if student.classes is None and len(folder.classes) != student.num_classes:
        raise StoreMismatch(
            f"{folder.root} has {len(folder.classes)} classes and the student "
            f"{student.num_classes}, whose names are not known: their order can't be matched"
        )
    if student.classes is None:
        return np.array(folder.targets, dtype=np.int64)
    mapping = map_classes(folder.classes, student.classes)
    if mapping is None:
        unknown = [name for name in folder.classes if name not in set(student.classes)]
        example = unknown[0] if unknown else folder.classes[0]
        raise StoreMismatch(
            f"{folder.root}: class {example!r} is none of the student's {student.num_classes} "
            f"(such as {student.classes[0]!r}); the class folders must carry the same names"
        )
    return np.asarray(mapping, dtype=np.int64)[np.array(folder.targets)]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    folder: ImageFolder,
    student: StudentConfig,
    *,
    device: torch.device,
    batch_size: int = 128,
    workers: int = 2,
) -> Evaluation:
    """Evaluate a network on an ImageFolder tree; the network is left in the mode it was in."""
    images = EvaluationImages(
        folder, student_targets(folder, student), student.input_size, student.interpolation
    )
    loader = DataLoader(
        images,
        batch_size=batch_size,
        num_workers=workers if len(images) > batch_size else 0,
        multiprocessing_context="forkserver" if len(images) > batch_size else None,
        generator=torch.Generator(),  # or it would draw from the run's random state
    )
    normalise = normaliser(student, device)
    was_training = model.training
    model.eval()
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for pixels, target in loader:
        keep = target >= 0
        if not keep.any():
            continue
        target = target[keep].to(device)
        logits = model(normalise(pixels[keep])).float()
        rank = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == target.unsqueeze(-1)
        loss = nn.functional.cross_entropy(logits, target, reduction="sum")
        sums += torch.stack([rank[:, 0].sum(), rank.any(-1).sum(), loss]).double().cpu()
        count += len(target)
    model.train(was_training)
    if not count:
        raise UsageError(f"none of the {len(folder)} images of {folder.root} can be decoded")
    top1, top5, loss = (float(value) / count for value in sums)
    return Evaluation(top1, top5, loss if math.isfinite(loss) else math.nan, count,
                      len(folder) - count)  # fmt: skip
