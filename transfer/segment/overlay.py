"""Predictions over their images, for eyes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from transfer.segment.settings import IGNORED

_ALPHA = 0.6
_LINE = 14  # pixels of a line of the legend
_GOLDEN = 0.61803398875  # steps of hue that keep neighbours apart


def palette(num_classes: int) -> list[tuple[int, int, int]]:
    """A colour for each class, neighbours far apart."""
    found = []
    for i in range(num_classes):
        rgb = colorsys.hsv_to_rgb(i * _GOLDEN % 1, 0.85, 1 - 0.35 * (i % 2))
        red, green, blue = (round(255 * value) for value in rgb)
        found.append((red, green, blue))
    return found


def segment_overlay(
    path: Path, pixels: Tensor, predicted: Tensor, target: Tensor, names: Sequence[str]
) -> None:
    """Write a PNG: the image, the truth over it, the prediction over it, and a legend below.

    Args:
        pixels: uint8 [3, H, W]. predicted, target: class numbers, int64 [H, W]; what is IGNORED
            stays uncoloured in both.
    """
    ignored = target == IGNORED
    views = [pixels, _painted(pixels, target, ignored, len(names)),
             _painted(pixels, predicted, ignored, len(names))]  # fmt: skip
    panel = torch.cat(views, dim=2).permute(1, 2, 0).numpy()
    there = sorted({*predicted[~ignored].tolist(), *target[~ignored].tolist()})
    legend = _legend(panel.shape[1], [(names[i], palette(len(names))[i]) for i in there])
    image = Image.new("RGB", (panel.shape[1], panel.shape[0] + legend.height), "white")
    image.paste(Image.fromarray(np.ascontiguousarray(panel)), (0, 0))
    image.paste(legend, (0, panel.shape[0]))
    image.save(path)


def _painted(pixels: Tensor, classes: Tensor, ignored: Tensor, num_classes: int) -> Tensor:
    from torchvision.utils import draw_segmentation_masks

    masks = (classes[None] == torch.arange(num_classes)[:, None, None]) & ~ignored
    painted: Tensor = draw_segmentation_masks(
        pixels, masks, alpha=_ALPHA, colors=palette(num_classes)
    )
    return painted


def _legend(width: int, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Names on their colours, in as many lines as the width asks for."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], 4, 2
    for name, _ in entries:
        length = _LINE + round(draw.textlength(name)) + 10
        if x + length > width and x > 4:
            x, y = 4, y + _LINE
        places.append((x, y))
        x += length
    legend = Image.new("RGB", (width, y + _LINE + 2), "white")
    draw = ImageDraw.Draw(legend)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top + 1, left + 10, top + 11), fill=colour)
        draw.text((left + _LINE, top), name, fill="black")
    return legend
