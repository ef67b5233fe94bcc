"""Networks for 32-pixel images by name, beside the ResNets of the paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from trainer.models import CIFAR_FAMILIES
from trainer.models.branches import kaiming
from trainer.models.cifar_mobilenet import CifarMobileNetV2
from trainer.models.cifar_resnet import WIDTHS_X4, CifarResNet
from trainer.models.cifar_shuffle import ShuffleNetV1, ShuffleNetV2
from trainer.models.cifar_vgg import CifarVgg
from trainer.models.cifar_wrn import WideResNet


def _resnet50(num_classes: int) -> nn.Module:
    """torchvision's with a 3x3 stem of stride 1 and no pooling behind it."""
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    kaiming(network.conv1)
    network.maxpool = nn.Identity()
    return network


_MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8x4": partial(CifarResNet, 8, widths=WIDTHS_X4),
    "resnet32x4": partial(CifarResNet, 32, widths=WIDTHS_X4),
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(CifarVgg, 8),
    "vgg13": partial(CifarVgg, 13),
    "cifar_resnet50": _resnet50,
    "cifar_mobilenetv2": CifarMobileNetV2,
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}
assert _MAKERS.keys() == set(CIFAR_FAMILIES)


def create_cifar(name: str, num_classes: int) -> nn.Module:
    """One of CIFAR_FAMILIES, initialised from torch's generator."""
    return _MAKERS[name](num_classes)
