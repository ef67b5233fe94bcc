"""Names of a torchvision ResNet's tensors in other libraries, and its first layer for their pixels.

torchvision's and timm's plain ResNets share names and shapes, so both begin here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from storage.errors import UsageError

State = dict[str, Tensor]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STEM = "conv1.weight"
HEAD = "fc."


@dataclass(frozen=True)
class Layout:
    """How a library names a ResNet's tensors.

    Attributes:
        rename: torchvision name -> its name. restore: the other way, written on its own.
        order, wrap: channel order it feeds by default; key of the file that holds the tensors.
        headless: whether the classifier is left out.
    """

    rename: Callable[[str], str]
    restore: Callable[[str], str]
    order: str = "rgb"
    wrap: str | None = None
    headless: bool = False


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a library makes of an image before its network: (raw - mean) / std on 0..255.

    order: of the channels, and of the six numbers.
    """

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, raw: Tensor) -> Tensor:
        """float [B, 3, H, W] in RGB order, 0..255 -> the network's input."""
        values = raw.flip(1) if self.order == "bgr" else raw
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (values - mean) / std


def resnet_name(arch: str) -> str | None:
    """`tv:resnet18` and `timm:resnet18` -> `resnet18`; None for other networks."""
    name = arch.removeprefix("tv:").removeprefix("timm:")
    return name if ":" in arch and name in RESNETS else None


def pixels_for(
    order: str,
    std: Sequence[float] | None,
    student_mean: Sequence[float],
    student_std: Sequence[float],
) -> Pixels:
    """Pixel statistics to set in the other library.

    The mean is always 255 times the student's: another one would need an offset in the first
    layer, which zero padding at the border makes inexact.

    Args:
        std: what the library divides by, in `order`; None: 255 times the student's.
    Raises:
        UsageError: std is not three positive numbers.
    """
    if std is not None and (len(std) != 3 or min(std) <= 0):
        raise UsageError(f"--pixel-std is {list(std)}; expected three positive numbers")
    turn = -1 if order == "bgr" else 1
    mean = tuple(255 * value for value in student_mean)[::turn]
    own = tuple(255 * value for value in student_std)[::turn]
    return Pixels(order=order, mean=mean, std=own if std is None else tuple(std))


def adapt_stem(weight: Tensor, pixels: Pixels, student_std: Sequence[float]) -> Tensor:
    """First convolution for other pixels, giving what it gave for the student's.

    With x = (raw / 255 - m) / s as the student has it and z = (raw - 255 m) / p as the library
    does, x = z p / (255 s): channel c of the weight is multiplied by p_c / (255 s_c), and the
    channels are reversed for BGR. Zero padding is zero on both sides, so this is exact.

    Args:
        weight: [out, 3, h, w] for RGB.
    """
    turned = weight.flip(1) if pixels.order == "bgr" else weight
    own = torch.tensor([255 * value for value in student_std], dtype=torch.float64)
    own = own.flip(0) if pixels.order == "bgr" else own
    factor = torch.tensor(pixels.std, dtype=torch.float64) / own
    return (turned.double() * factor.view(1, 3, 1, 1)).to(weight.dtype).contiguous()


def _to_detectron2(name: str) -> str:
    if name.startswith(HEAD):
        return name.replace(HEAD, "linear.")
    name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return name if name.startswith("res") else f"stem.{name}"


_FROM_DETECTRON2 = (
    ("linear.", HEAD),
    ("stem.", ""),
    *((f"res{stage + 1}.", f"layer{stage}.") for stage in (1, 2, 3, 4)),
    *((f"conv{number}.norm.", f"bn{number}.") for number in (1, 2, 3)),
    ("shortcut.norm.", "downsample.1."),
    ("shortcut.", "downsample.0."),
)


def _from_detectron2(name: str) -> str:
    for theirs, ours in _FROM_DETECTRON2:
        name = name.replace(theirs, ours)
    return name


def _to_mmpretrain(name: str) -> str:
    return f"head.{name}" if name.startswith(HEAD) else f"backbone.{name}"


def _from_mmpretrain(name: str) -> str:
    return name.partition(".")[2]


LAYOUTS = {
    "detectron2": Layout(_to_detectron2, _from_detectron2, order="bgr", wrap="model"),
    "semseg": Layout(str, str, headless=True),
    "mmpretrain": Layout(_to_mmpretrain, _from_mmpretrain, wrap="state_dict"),
}


def to_layout(state: State, layout: Layout, pixels: Pixels, student_std: Sequence[float]) -> State:
    """A torchvision ResNet's tensors under another library's names, for its pixels."""
    kept = {k: v for k, v in state.items() if not (layout.headless and k.startswith(HEAD))}
    kept[STEM] = adapt_stem(kept[STEM], pixels, student_std)
    return {layout.rename(name): tensor.contiguous() for name, tensor in kept.items()}


def from_layout(found: State, layout: Layout) -> State:
    """Names of torchvision for what a file holds; the first layer stays for its pixels."""
    return {layout.restore(name): tensor for name, tensor in found.items()}
