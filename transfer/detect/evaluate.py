"""What a detector finds, and its average precision by faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfer.detect.boxes import Photo
from transfer.detect.data import Sizes, photo_batches
from transfer.libraries import coco_evaluation

# Names of the library's twelve figures that are handed on.
FIGURES = {"AP_all": "AP", "AP_50": "AP50", "AP_75": "AP75", "AP_small": "AP small",
           "AP_medium": "AP medium", "AP_large": "AP large"}  # fmt: skip
POINTS = "AP50 at 11 recalls"  # VOC 2007's
VOC_RECALLS = 11
ABSENT = -1.0  # the library's word for a figure of no boxes


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a photo, surest first.

    Attributes:
        boxes: float32 [n, 4], left, top, right, bottom in the photo's own pixels.
        labels: int64 [n]. scores: float32 [n].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Precision:
    """Average precision, 0 to 1.

    Attributes:
        figures: by name; sizes without a box are left out. classes: AP and AP50 by class, those
            without a box left out.
    """

    figures: dict[str, float]
    classes: dict[str, dict[str, float]]


@torch.inference_mode()
def find(
    model: nn.Module,
    photos: Sequence[Photo],
    sizes: Sizes,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> list[Found]:
    """What a detector finds in photos, in order; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    found = []
    for batch in photo_batches(photos, sizes, batch_size, workers):
        images = [image.to(device).float() / 255 for _, image in batch]
        for (row, image), result in zip(batch, model(images), strict=True):
            height, width = image.shape[1:]
            scale = torch.tensor(np.divide(photos[row].size, (width, height))).float().repeat(2)
            found.append(
                Found(result["boxes"].cpu() * scale, result["labels"].cpu(), result["scores"].cpu())
            )
    model.train(was_training)
    return found


def average_precision(
    photos: Sequence[Photo], classes: Sequence[str], found: Sequence[Found], voc: bool = False
) -> Precision:
    """COCO's average precision at IoU 0.5 to 0.95, at most 100 boxes a photo.

    Boxes that are ignored are COCO's crowds to the library: what lies in one is neither a hit nor a
    miss.

    Args:
        voc: also AP50 as VOC 2007 has it, the mean of the precision at recalls 0, 0.1 ... 1;
            matching stays COCO's.
    """
    library = coco_evaluation()
    truth = library.COCO(_truth(photos, classes))
    results = truth.loadRes(_results(found))
    run = library.COCOeval_faster(truth, results, iouType="bbox", print_function=_silent)
    run.run()
    stats = run.stats_as_dict
    figures = {ours: float(stats[theirs]) for theirs, ours in FIGURES.items()}
    by_class = {}
    for place, name in enumerate(classes):
        precision = run.eval["precision"][:, :, place, 0, -1]  # [IoU, recall]
        values = {"AP": float(precision.mean()), "AP50": float(precision[0].mean())}
        by_class[name] = values
    if voc:
        run = library.COCOeval_faster(truth, results, iouType="bbox", print_function=_silent)
        run.params.recThrs = np.linspace(0, 1, VOC_RECALLS)
        run.run()
        figures[POINTS] = float(run.stats_as_dict["AP_50"])
    return Precision(
        {name: value for name, value in figures.items() if value > ABSENT},
        {name: values for name, values in by_class.items() if values["AP"] > ABSENT},
    )


def _truth(photos: Sequence[Photo], classes: Sequence[str]) -> dict[str, Any]:
    """Sound boxes as a COCO file would have them; all ids from 1 on."""
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(photos, 1):
        for box, label, ignored in zip(photo.boxes, photo.labels, photo.ignored, strict=True):
            bbox = _bbox(box.tolist())
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(ignored),
                }
            )
    images = [
        {"id": number, "file_name": photo.key, "width": photo.size[0], "height": photo.size[1]}
        for number, photo in enumerate(photos, 1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _results(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "category_id": label,
            "bbox": _bbox(box),
            "score": score,
        }
        for number, one in enumerate(found, 1)
        for box, label, score in zip(
            one.boxes.tolist(), one.labels.tolist(), one.scores.tolist(), strict=True
        )
        if math.isfinite(score)
    ]


def _bbox(corners: list[float]) -> list[float]:
    left, top, right, bottom = corners
    return [left, top, right - left, bottom - top]


def _silent(*_: Any) -> None:
    """The library's messages are not ours."""
