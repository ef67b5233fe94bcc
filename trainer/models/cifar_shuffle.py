"""ShuffleNet V1 (arXiv:1707.01083) and V2 (arXiv:1807.11164) for 32-pixel images.

As the CIFAR distillation literature has them: a 1x1 stem of 24 channels and no pooling before the
first stage. V1 with 3 groups has a second ReLU, behind the depth-wise convolution. Names of
parameters are those of its public checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.branches import BranchRule, as_built, kaiming

STEM = 24
V1_WIDTHS, V1_BLOCKS, V1_GROUPS = (STEM, 240, 480, 960), (4, 8, 4), 3
V2_WIDTHS, V2_BLOCKS, V2_LAST = (STEM, 116, 232, 464), (3, 7, 3), 1024
TAPS = ("layer1", "layer2", "layer3")


class GroupedUnit(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 depth-wise, grouped 1x1; stride 2 joins its pooled input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self._stride = stride
        channels -= in_channels if stride == 2 else 0
        inside = channels // 4
        self._groups = 1 if in_channels == STEM else V1_GROUPS
        self.conv1 = nn.Conv2d(in_channels, inside, 1, groups=self._groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, channels, 1, groups=V1_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, H / stride, W / stride]."""
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self._groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self._stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], dim=1))
        return F.relu(out + x)


class SplitUnit(nn.Module):
    """V2: half of the channels stay, the other half pass 1x1, 3x3 depth-wise, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        kept, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        return shuffle(torch.cat([kept, F.relu(self.bn3(self.conv3(out)))], dim=1), 2)


class DownUnit(nn.Module):
    """V2: two ways with the stride, joined."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, H / stride, W / stride]."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffle(torch.cat([left, right], dim=1), 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels of the groups in turns: [B, C, H, W], channel g C/G + i goes to i G + g."""
    split = x.reshape(len(x), groups, -1, *x.shape[2:])
    return split.transpose(1, 2).flatten(1, 2)


class _ShuffleNet(nn.Module, ABC):
    """Stem and three stages; `_stage` makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (self._stage(number) for number in (1, 2, 3))

    @abstractmethod
    def _stage(self, number: int) -> nn.Sequential:
        """Stage 1, 2 or 3, untrained; 4: another one behind the last, with stride 1."""

    def _stages(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return out


class ShuffleNetV1(_ShuffleNet):
    """ShuffleNet V1 with 3 groups for [B, 3, 32, 32] images (any side from 8 pixels works)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(V1_WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.linear(torch.mean(self._stages(x), dim=(2, 3)))
        return logits

    def branch_rule(self) -> BranchRule:
        """Where auxiliary branches start and what they are made of."""
        return BranchRule(
            taps=TAPS, head="linear", width=V1_WIDTHS[-1], stage=self._stage, reset=kaiming
        )

    def _stage(self, number: int) -> nn.Sequential:
        return _units(number, V1_WIDTHS, V1_BLOCKS, GroupedUnit, lambda c: GroupedUnit(c, c, 1))


class ShuffleNetV2(_ShuffleNet):
    """ShuffleNet V2 x1 for [B, 3, 32, 32] images (any side from 8 pixels works)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(V2_WIDTHS[-1], V2_LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(V2_LAST)
        self.linear = nn.Linear(V2_LAST, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn2(self.conv2(self._stages(x))))
        logits: Tensor = self.linear(torch.mean(x, dim=(2, 3)))
        return logits

    def branch_rule(self) -> BranchRule:
        """Where auxiliary branches start and what they are made of."""
        return BranchRule(
            taps=TAPS, head="linear", width=V2_LAST, stage=self._stage, tail=_v2_tail,
            reset=as_built,
        )  # fmt: skip

    def _stage(self, number: int) -> nn.Sequential:
        blocks = tuple(count + 1 for count in V2_BLOCKS)  # a down unit before them
        return _units(number, V2_WIDTHS, blocks, DownUnit, SplitUnit)


def _v2_tail() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(V2_WIDTHS[-1], V2_LAST, 1, bias=False), nn.BatchNorm2d(V2_LAST), nn.ReLU()
    )


def _units(
    number: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    first: Callable[[int, int, int], nn.Module],
    rest: Callable[[int], nn.Module],
) -> nn.Sequential:
    """One stage: the first unit has the stride, 2 but for the stage behind the last."""
    place = min(number, 3)
    wide, before = widths[place], widths[number - 1]
    others = (rest(wide) for _ in range(blocks[place - 1] - 1))
    return nn.Sequential(first(before, wide, 2 if number < 4 else 1), *others)
