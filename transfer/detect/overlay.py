"""Pictures of what was found, beside what was to be found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from storage.atomic import write_atomic
from storage.pixels import decode_rgb
from transfer.detect.boxes import Photo
from transfer.detect.evaluate import Found

# Okabe and Ito's colours, told apart by colour-blind eyes too.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
SURE = 0.5  # score from which a box is drawn
GAP = 8  # pixels between the two halves


def write_overlay(path: Path, photo: Photo, found: Found, classes: Sequence[str]) -> None:
    """PNG of a photo twice: with its own boxes on the left, with those found on the right."""
    image = decode_rgb(photo.path.read_bytes())
    names = [classes[label - 1] for label in photo.labels]
    left = _drawn(image, torch.from_numpy(photo.boxes), photo.labels.tolist(), names)
    sure = found.scores >= SURE
    labels = found.labels[sure].tolist()
    texts = [
        f"{classes[label - 1]} {score:.2f}"
        for label, score in zip(labels, found.scores[sure].tolist(), strict=True)
    ]
    right = _drawn(image, found.boxes[sure], labels, texts)
    both = Image.new("RGB", (2 * image.width + GAP, image.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (image.width + GAP, 0))
    data = io.BytesIO()
    both.save(data, "PNG")
    write_atomic(path, data.getvalue())


def _drawn(image: Image.Image, boxes: Tensor, labels: list[int], texts: list[str]) -> Image.Image:
    if not labels:
        return image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    colours = [COLOURS[(label - 1) % len(COLOURS)] for label in labels]
    drawn = draw_bounding_boxes(pixels, boxes, labels=texts, colors=colours, width=2)
    return Image.fromarray(drawn.permute(1, 2, 0).numpy())
