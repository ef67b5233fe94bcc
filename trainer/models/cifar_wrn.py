"""Wide ResNets for 32-pixel images (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

Depth 6n + 4, widening k: a 3x3 stem of 16 channels and three stages of n pre-activation blocks
with 16k, 32k and 64k channels, no dropout. Names of parameters are those of the public CIFAR
distillation checkpoints, so their state dicts load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.branches import BranchRule, kaiming


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, H / stride, W / stride]."""
        active = F.relu(self.bn1(x))
        # where the width changes the shortcut reads the activated input, else the raw one
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + shortcut


class Stage(nn.Module):
    """n blocks, the first with the stride."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride)
        rest = (PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, H / stride, W / stride], before any activation."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-depth-k for [B, 3, 32, 32] images (any side from 8 pixels works)."""

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        self._widths, self._blocks = (16, 16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = (self._stage(number) for number in (1, 2, 3))
        self.bn1 = nn.BatchNorm2d(self._widths[-1])
        self.fc = nn.Linear(self._widths[-1], num_classes)
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(torch.mean(F.relu(self.bn1(x)), dim=(2, 3)))
        return logits

    def branch_rule(self) -> BranchRule:
        """Where auxiliary branches start and what they are made of."""
        width = self._widths[-1]
        return BranchRule(
            taps=("block1", "block2", "block3"), head="fc", width=width, stage=self._stage,
            tail=lambda: nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()), reset=_reset,
        )  # fmt: skip

    def _stage(self, number: int) -> Stage:
        """Stage 1, 2 or 3, untrained; 4: another one behind the last, of its width."""
        wide = self._widths[min(number, 3)]
        return Stage(self._widths[number - 1], wide, self._blocks, 2 if number in (2, 3) else 1)


def _reset(module: nn.Module) -> None:
    kaiming(module)
    for inner in module.modules():
        if isinstance(inner, nn.Linear):
            nn.init.zeros_(inner.bias)
