"""ResNets for 32-pixel images (He et al. 2016, arXiv:1512.03385, Sec. 4.2).

Depth 6n + 2: a 3x3 stem of 16 channels and three stages of n basic blocks with 16, 32 and 64
channels. Differs from the paper in the shortcut: a 1x1 convolution with batch norm where the
width changes (the paper's option B), as the public CIFAR checkpoints have it; parameter names
are theirs, so their state dicts load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(16, 32, num_blocks, stride=2)
        self.layer3 = _stage(32, 64, num_blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.mean(x, dim=(2, 3)))


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    rest = (BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)
