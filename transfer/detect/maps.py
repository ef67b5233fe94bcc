"""A student's maps with strides 4, 8, 16 and 32, by the libraries' own extractors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models._features import FeatureGetterNet
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn
from torchvision.models import ResNet, ShuffleNetV2
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import Conv2dNormActivation

from storage.errors import UsageError

STRIDES = (4, 8, 16, 32)
FAMILIES = (
    "torchvision's ResNets, MobileNets, EfficientNets, ConvNeXts, DenseNets, VGGs and "
    "ShuffleNetV2, and timm's networks with stages"
)
_PROBE = 128  # pixels of the noise that strides are read from: more than the largest stride


@dataclass(frozen=True, eq=False)
class Maps:
    """Where a network's maps come from.

    Attributes:
        taps: modules whose outputs they are, in the extractor's own names, finest first.
        widths: channels.
        extract: from the places of the first and the last map wanted, a module [B, 3, H, W] ->
            {"0": [B, C, h, w], ...}, made of the network's own modules.
    """

    taps: tuple[str, ...]
    widths: tuple[int, ...]
    extract: Callable[[int, int], nn.Module]


class TimmMaps(nn.Module):
    """timm's extractor, with its maps named as torchvision's are."""

    def __init__(self, network: nn.Module, places: list[int]) -> None:
        super().__init__()
        self.getter = FeatureGetterNet(network, out_indices=places)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> maps, finest first."""
        return OrderedDict((str(i), one) for i, one in enumerate(self.getter(images)))


def find_maps(network: nn.Module, arch: str) -> Maps:
    """The maps of a student's network.

    MobileNets and EfficientNets end in a 1x1 convolution that only widens for the classifier: it
    is left out, as KDEP and detectron2 do (MobileNetV2: 24, 32, 96 and 320 channels).

    Raises:
        UsageError: it hasn't one map of each stride.
    """
    found = _of_timm(network) if arch.startswith("timm:") else _in_order(network)
    if found is None:
        raise UsageError(
            f"student {arch} has no maps of strides {', '.join(map(str, STRIDES))} that this "
            f"release knows: take one of {FAMILIES}"
        )
    return found


def last_stage(network: nn.Module, arch: str) -> nn.Module:
    """The last stage of a ResNet, for a head that is made of it.

    Raises:
        UsageError: no ResNet.
    """
    if not isinstance(network, ResNet | TimmResNet):
        raise UsageError(f"--head c4 needs a ResNet; the student is {arch}: take --head fpn")
    return network.layer4


def module_root(body: nn.Module) -> nn.Module:
    """Where in an extractor the taps' names lie."""
    return body.getter.model if isinstance(body, TimmMaps) else body


def _of_timm(network: nn.Module) -> Maps | None:
    info = getattr(network, "feature_info", None)
    if not hasattr(network, "forward_intermediates") or not isinstance(info, list):
        return None
    places = {one["reduction"]: i for i, one in enumerate(info)}  # the last one of each stride
    if not set(STRIDES) <= places.keys():
        return None
    chosen = [places[stride] for stride in STRIDES]

    def extract(first: int, last: int) -> nn.Module:
        return TimmMaps(network, chosen[first : last + 1])

    taps = tuple(str(info[place]["module"]) for place in chosen)
    return Maps(taps, tuple(int(info[place]["num_chs"]) for place in chosen), extract)


def _in_order(network: nn.Module) -> Maps | None:
    """Of networks that run their parts one after the other, as torchvision's extractor needs."""
    features = getattr(network, "features", None)
    parts = features if isinstance(features, nn.Sequential) else network
    if parts is network and not isinstance(network, ResNet | ShuffleNetV2):
        return None
    shapes = _shapes(parts)
    if not shapes.keys() >= set(STRIDES):
        return None
    chosen = [shapes[stride] for stride in STRIDES]

    def extract(first: int, last: int) -> nn.Module:
        wanted = {chosen[i][0]: str(i - first) for i in range(first, last + 1)}
        return IntermediateLayerGetter(parts, wanted)

    return Maps(tuple(name for name, _ in chosen), tuple(width for _, width in chosen), extract)


@torch.inference_mode()
def _shapes(parts: nn.Module) -> dict[int, tuple[str, int]]:
    """By stride, the last part whose output has it, and its channels."""
    found: dict[int, tuple[str, int]] = {}
    values = torch.zeros(1, 3, _PROBE, _PROBE)
    was_training = parts.training
    parts.eval()
    for name, part in parts.named_children():
        if _only_widens(part):
            continue
        if isinstance(part, nn.Linear):
            break
        values = part(values)
        if values.ndim != 4 or values.shape[2] != values.shape[3] or values.shape[2] < 2:
            break
        found[_PROBE // values.shape[2]] = name, values.shape[1]
    parts.train(was_training)
    return found


def _only_widens(part: nn.Module) -> bool:
    return isinstance(part, Conv2dNormActivation) and part[0].kernel_size == (1, 1)
