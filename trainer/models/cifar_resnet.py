"""ResNets for 32-pixel images (He et al. 2016, arXiv:1512.03385, Sec. 4.2).

Depth 6n + 2: a 3x3 stem of 16 channels and three stages of n basic blocks with 16, 32 and 64
channels (32, then 64, 128 and 256 in the "x4" networks of the distillation literature). Differs
from the paper in the shortcut: a 1x1 convolution with batch norm where the width changes (the
paper's option B), as the public CIFAR checkpoints have it; parameter names are theirs, so their
state dicts load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.branches import BranchRule, kaiming

WIDTHS = (16, 16, 32, 64)  # of the stem and the three stages
WIDTHS_X4 = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu = nn.ReLU()  # a module, so that a hook can see what goes into it

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for [B, 3, 32, 32] images (any side from 8 pixels works)."""

    def __init__(
        self, depth: int, num_classes: int, widths: tuple[int, int, int, int] = WIDTHS
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        self._widths, self._blocks = widths, (depth - 2) // 6
        stem, last = widths[0], widths[-1]
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1, self.layer2, self.layer3 = (self._stage(number) for number in (1, 2, 3))
        self.fc = nn.Linear(last, num_classes)
        kaiming(self)

    def branch_rule(self) -> BranchRule:
        """Where auxiliary branches start and what they are made of."""
        return BranchRule(
            taps=("layer1", "layer2", "layer3"), head="fc", width=self._widths[-1],
            stage=self._stage, reset=kaiming,
        )  # fmt: skip

    def _stage(self, number: int) -> nn.Sequential:
        """Stage 1, 2 or 3, untrained; 4: another one behind the last, of its width."""
        wide = self._widths[min(number, 3)]
        return _stage(self._widths[number - 1], wide, self._blocks, 2 if number in (2, 3) else 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.mean(x, dim=(2, 3)))


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    rest = (BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)
