"""MobileNetV2 for 32-pixel images (Sandler et al. 2018, arXiv:1801.04381), width 0.5, expansion 6.

HSAKD's: the stem has stride 1. The one of earlier distillation papers (stride 2) has the same
parameters at a quarter of the cost and scores lower, so their numbers can't be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.branches import BranchRule, kaiming

EXPANSION, WIDTH, LAST = 6, 0.5, 1280
# groups of (expansion, channels at full width, blocks, stride), by stage
STEM = 32
STAGES = (
    ((1, 16, 1, 1), (EXPANSION, 24, 2, 1)),
    ((EXPANSION, 32, 3, 2),),
    ((EXPANSION, 64, 4, 2), (EXPANSION, 96, 3, 1)),
    ((EXPANSION, 160, 3, 2), (EXPANSION, 320, 1, 1)),
)
EXTRA = ((EXPANSION, 160, 3, 1), (EXPANSION, 320, 1, 1))
Groups = tuple[tuple[int, int, int, int], ...]


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depth-wise, 1x1 down without activation; added to its input where it can be."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        self._adds = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, inside, 1, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self._adds else out


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 x0.5 for [B, 3, 32, 32] images (any side from 8 pixels works)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem = int(STEM * WIDTH)
        self.conv1 = _conv_norm(3, stem, 3)
        groups = _groups(stem, tuple(group for stage in STAGES for group in stage))
        self.blocks = nn.ModuleList(groups)
        self.conv2 = _conv_norm(int(STAGES[-1][-1][1] * WIDTH), LAST, 1)
        self.classifier = nn.Linear(LAST, num_classes)
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(torch.mean(self.conv2(x), dim=(2, 3)))
        return logits

    def branch_rule(self) -> BranchRule:
        """Where auxiliary branches start and what they are made of."""
        width = int(STAGES[-1][-1][1] * WIDTH)
        return BranchRule(
            taps=("blocks.1", "blocks.2", "blocks.4", "blocks.6"), head="classifier", width=LAST,
            stage=_stage, tail=lambda: _conv_norm(width, LAST, 1), reset=_reset,
        )  # fmt: skip


def _stage(number: int) -> nn.Sequential:
    """Stage 2, 3 or 4, untrained; 5: the last one again, with stride 1."""
    before = int(STAGES[number - 2][-1][1] * WIDTH)
    groups = STAGES[number - 1] if number <= len(STAGES) else EXTRA
    return nn.Sequential(*_groups(before, groups))


def _groups(in_channels: int, groups: Groups) -> list[nn.Sequential]:
    found = []
    for expansion, full, count, stride in groups:
        channels = int(full * WIDTH)
        first = InvertedResidual(in_channels, channels, stride, expansion)
        rest = (InvertedResidual(channels, channels, 1, expansion) for _ in range(count - 1))
        found.append(nn.Sequential(first, *rest))
        in_channels = channels
    return found


def _conv_norm(in_channels: int, channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, side, 1, side // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def _reset(module: nn.Module) -> None:
    kaiming(module)
    for inner in module.modules():
        if isinstance(inner, nn.Linear):
            nn.init.normal_(inner.weight, 0, 0.01)
            nn.init.zeros_(inner.bias)
