"""VGG with batch norm for 32-pixel images (Simonyan & Zisserman 2015, arXiv:1409.1556).

Five blocks of 3x3 convolutions; 2x2 max pooling before the second to the fourth, a mean over
positions and one linear layer at the end, as the CIFAR distillation literature has it (VGG-8:
one convolution a block, VGG-13: two). Names of parameters are those of its public checkpoints.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.branches import BranchRule, as_built, kaiming

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: 1, 13: 2}  # a block, by depth


class CifarVgg(nn.Module):
    """VGG-8 or VGG-13 for [B, 3, 32, 32] images (any side from 8 pixels works)."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {sorted(CONVOLUTIONS)}, got {depth}")
        self._count = count = CONVOLUTIONS[depth]
        widths = (3, *WIDTHS)
        for number in range(len(WIDTHS)):
            self.add_module(f"block{number}", _block(widths[number], widths[number + 1], count))
            self.add_module(f"relu{number}", nn.ReLU())
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        kaiming(self)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        for number in range(len(WIDTHS)):
            if number in (1, 2, 3):
                x = F.max_pool2d(x, 2)
            block, relu = self.get_submodule(f"block{number}"), self.get_submodule(f"relu{number}")
            x = relu(block(x))
        logits: Tensor = self.classifier(torch.mean(x, dim=(2, 3)))
        return logits

    def branch_rule(self) -> BranchRule:
        """Where auxiliary branches start and what they are made of.

        Branches keep torch's own initialisation: the published numbers come from that.
        """
        return BranchRule(
            taps=("relu0", "relu1", "relu2", "relu4"), head="classifier", width=WIDTHS[-1],
            stage=self._stage, reset=as_built,
        )  # fmt: skip

    def _stage(self, number: int) -> nn.Sequential:
        """Stage 2, 3 or 4, untrained; 5: its last two blocks again, without pooling."""
        widths = {2: (64, 128), 3: (128, 256), 4: (256, 512, 512), 5: (512, 512, 512)}[number]
        pool = (nn.MaxPool2d(2),) if number < 5 else ()
        blocks = (
            nn.Sequential(_block(before, after, self._count), nn.ReLU())
            for before, after in itertools.pairwise(widths)
        )
        return nn.Sequential(*pool, *blocks)


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    """Convolutions with batch norm, ReLU between them but not behind the last."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        layers += [
            nn.Conv2d(channels if number else in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers[:-1])
