"""Mixup and CutMix of a batch: which crop each is mixed with, and how much of it stays.

What a mixed crop is asked for is the mix of two stored labels, not the teacher's answer to the
mixed picture (as FKD's published code has it; off by default, as in its published results).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.method_config import MixConfig


@dataclass(frozen=True)
class Mixed:
    """B mixed crops.

    Attributes:
        images: float32 [B, 3, S, S].
        partner: int64 [B], the crop that each is mixed with.
        share: lambda, how much of a crop is its own.
    """

    images: Tensor
    partner: Tensor
    share: float


def mix_images(
    images: Tensor, config: MixConfig, views_per_image: int, chance: torch.Generator
) -> Mixed | None:
    """Mix a batch in place; None where chance leaves it as it is.

    With probability `prob`: Mixup (Zhang et al. 2018, arXiv:1710.09412), or with `switch_prob`
    CutMix (Yun et al. 2019, arXiv:1905.04899), one lambda a batch from Beta(alpha, alpha). CutMix
    swaps a box of side sqrt(1 - lambda) with a uniform centre, cut at the border; lambda is then
    the share of pixels that stayed.

    Args:
        images: float32 [B, 3, S, S], overwritten.
        views_per_image: V; crops of one image stand together.
        chance: on the CPU; nothing is drawn where nothing is to be mixed.
    """
    if config.kind == "none" or not _happens(config.prob, chance):
        return None
    cut = config.kind == "cutmix" or (
        config.kind == "both" and _happens(config.switch_prob, chance)
    )
    partner = _partners(len(images), views_per_image, config.partner, chance).to(images.device)
    other = images[partner]
    share = _beta(config.cutmix_alpha if cut else config.mixup_alpha, chance)
    if not cut:
        return Mixed(images.mul_(share).add_(other, alpha=1 - share), partner, share)
    height, width = images.shape[-2:]
    top, bottom, left, right = cut_box(
        height, width, share, *torch.rand(2, generator=chance).tolist()
    )
    images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return Mixed(images, partner, 1 - (bottom - top) * (right - left) / (height * width))


def cut_box(
    height: int, width: int, share: float, across: float, along: float
) -> tuple[int, int, int, int]:
    """CutMix's box (top, bottom, left, right), ends excluded, cut at the border.

    Args:
        share: lambda; the box has sides sqrt(1 - lambda) of the image's, rounded down.
        across, along: where its centre lies, 0 to 1 of height and width.
    """
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    y, x = int(across * height), int(along * width)
    return (
        max(0, y - box_height // 2),
        min(height, y + box_height // 2),
        max(0, x - box_width // 2),
        min(width, x + box_width // 2),
    )


def _partners(count: int, views_per_image: int, among: str, chance: torch.Generator) -> Tensor:
    """A permutation of the batch, or (`image`, FerKD's SelfMix) another crop of the same image."""
    if among == "batch":
        return torch.randperm(count, generator=chance)
    turn = int(torch.randint(1, views_per_image, (), generator=chance))
    rows = torch.arange(count)
    first = rows // views_per_image * views_per_image
    return (first + (rows - first + turn) % views_per_image).clamp(max=count - 1)


def _happens(probability: float, chance: torch.Generator) -> bool:
    return bool(torch.rand((), generator=chance) < probability)


def _beta(alpha: float, chance: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha)."""
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=chance).tolist()
    return float(first / (first + second))
