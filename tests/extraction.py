"""Small seeded teachers made of networks, without a weights file."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from torchvision import models

from labelgen.teacher import Teacher, wrap_model
from labelgen.teachers import TeacherSpec
from labelgen.weights import tensor_digest

CLASSES = 10


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose every parameter and statistic is random, so that no part of it is idle."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
                nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model


def as_teacher(
    model: nn.Module, arch: str, size: int, precision: str = "fp32", classes: int = CLASSES
) -> Teacher:
    """A teacher of a network made here."""
    spec = TeacherSpec(
        name="made", canonical=arch, library="none", version="0", arch=arch, weights=None,
        file=None, licence="none", input_size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
        interpolation="bilinear", num_classes=classes, classes=None,
    )  # fmt: skip
    digest = tensor_digest(model.state_dict())
    return wrap_model(model, spec, torch.device("cpu"), precision, digest)


def tiny_swin(classes: int = CLASSES) -> nn.Module:
    """timm's Swin at 64 pixels: grids 16, 8, 4 and 2."""
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=classes, embed_dim=16, depths=(1, 1, 1, 2),
        num_heads=(1, 2, 4, 8), img_size=64, window_size=2,
    )  # fmt: skip


def tiny_vit(classes: int = CLASSES, **options: object) -> nn.Module:
    """timm's ViT at 64 pixels: 16 tokens and a class token."""
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=classes, embed_dim=24, depth=4, num_heads=2,
        img_size=64, **options,
    )  # fmt: skip


def tiny_resnet(classes: int = CLASSES) -> nn.Module:
    """torchvision's ResNet of one block a stage: in-place ReLUs, each used twice."""
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes)


def tiny_timm_resnet(classes: int = CLASSES) -> nn.Module:
    """timm's ResNet of one basic block a stage."""
    return timm.create_model("resnet10t", num_classes=classes, zero_init_last=False)


def crops(count: int, size: int, seed: int = 0) -> Tensor:
    """Normalised crops float32 [count, 3, size, size] in channels_last."""
    generator = torch.Generator().manual_seed(100 + seed)
    batch = torch.randn(count, 3, size, size, generator=generator)
    return batch.contiguous(memory_format=torch.channels_last)
