"""The one evaluation: top-1, top-5 and loss on a folder of labelled images."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from storage.classes import number_classes
from storage.errors import BadImage, UsageError
from storage.images import ImageFolder
from storage.pixels import INTERPOLATIONS
from trainer.config import StudentConfig
from trainer.data import normaliser

CROP_FRACTION = 224 / 256  # shorter side resized to size / fraction, then a centre crop
AHEAD = 2  # batches decoded in advance
NATIVE_SIDE = 64  # below this, images of exactly the student's size are taken whole
# Further scores of a batch: normalised images [B, 3, S, S] and classes [B] to sums over the batch.
FurtherScores = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Averages over the images that could be decoded.

    top1 and top5 are fractions; class_mean is the mean over the classes of each one's own top1;
    loss is the mean cross-entropy in nats; masked counts images
    that could not be decoded. further: other averages of a method, by name.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    masked: int
    class_mean: float
    further: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All numbers by name, the further ones beside the others."""
        values = asdict(self)
        further: dict[str, Any] = values.pop("further")
        return values | further


@dataclass(frozen=True)
class EvaluationImages:
    """Centre crops of a folder's images, decoded by threads (Pillow lets go of Python meanwhile).

    Attributes:
        target: int64 [N], the student's class of every image.
    """

    folder: ImageFolder
    target: npt.NDArray[np.int64]
    size: int
    interpolation: str

    def batches(self, batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops uint8 [b, S, S, 3] and their classes int64 [b], -1 where an image can't be read;
        in order."""
        under_way: deque[tuple[Tensor, list[Future[int]]]] = deque()
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, len(self.folder), batch_size):
                rows = range(start, min(start + batch_size, len(self.folder)))
                crops = torch.zeros(len(rows), self.size, self.size, 3, dtype=torch.uint8)
                pixels = crops.numpy()
                found = [pool.submit(self._put, row, pixels[row - start]) for row in rows]
                under_way.append((crops, found))
                if len(under_way) > AHEAD:
                    yield _decoded(*under_way.popleft())
            while under_way:
                yield _decoded(*under_way.popleft())

    def _put(self, row: int, out: npt.NDArray[np.uint8]) -> int:
        """Write one crop, uint8 [S, S, 3]; its class, or -1."""
        try:
            image = self.folder.read(row).rgb()
        except (BadImage, OSError):
            return -1
        out[...] = np.asarray(centre_crop(image, self.size, self.interpolation))
        return int(self.target[row])


def _decoded(crops: Tensor, found: list[Future[int]]) -> tuple[Tensor, Tensor]:
    wait(found)
    return crops, torch.tensor([one.result() for one in found])


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
    numbers = number_classes(
        folder.classes, student.classes, student.num_classes, images=str(folder.root),
        owner="the student",
    )  # fmt: skip
    return numbers[np.array(folder.targets, np.int64)]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    folder: ImageFolder,
    student: StudentConfig,
    *,
    device: torch.device,
    batch_size: int = 128,
    workers: int = 2,
    further: FurtherScores | None = None,
) -> Evaluation:
    """Evaluate a network on class folders, or a beton of them; the network is left in the mode it
    was in."""
    images = EvaluationImages(
        folder, student_targets(folder, student), student.input_size, student.interpolation
    )
    normalise = normaliser(student, device)
    was_training = model.training
    model.eval()
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    others: dict[str, float] = {}
    hits, seen_of_class = (torch.zeros(student.num_classes, dtype=torch.int64) for _ in range(2))
    for pixels, target in images.batches(batch_size, workers):
        keep = target >= 0
        if not keep.any():
            continue
        target = target[keep].to(device)
        seen = normalise(pixels[keep])
        logits = model(seen).float()
        rank = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == target.unsqueeze(-1)
        loss = nn.functional.cross_entropy(logits, target, reduction="sum")
        sums += torch.stack([rank[:, 0].sum(), rank.any(-1).sum(), loss]).double().cpu()
        for name, value in (further(seen, target) if further else {}).items():
            others[name] = others.get(name, 0.0) + float(value)
        hits += torch.bincount(target[rank[:, 0]].cpu(), minlength=len(hits))
        seen_of_class += torch.bincount(target.cpu(), minlength=len(hits))
        count += len(target)
    model.train(was_training)
    if not count:
        raise UsageError(f"none of the {len(folder)} images of {folder.root} can be decoded")
    top1, top5, nats = (float(value) / count for value in sums)
    return Evaluation(top1, top5, nats if math.isfinite(nats) else math.nan, count,
                      len(folder) - count, _class_mean(hits, seen_of_class),
                      {name: value / count for name, value in others.items()})  # fmt: skip


def _class_mean(hits: Tensor, seen: Tensor) -> float:
    """Mean over the classes that were seen of the share that was right: [C] counts of images."""
    there = seen > 0
    return float((hits[there].double() / seen[there]).mean())
