"""The maps of a student's last two stages while it runs (ScaleKD, arXiv:2411.06786).

One interface for convolutional networks, transformers and mixers: what comes out is always
[B, c, h, w]. Networks without stages have them by depth: a ViT's third ends after three quarters
of its blocks, a Mixer's two blocks before its last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models.feature_tap import crops_of, noise_batch
from trainer.models.tails import CHANNELS_LAST, MAP, SEQUENCE, from_tokens, to_tokens
from trainer.models.taps import OUTPUT, Listener, Tap, bare

STAGES = ("stage3", "stage4")
FAMILIES = "ResNet, MobileNetV1 and its kin (timm), ConvNeXt, ViT, Mixer and Swin"


@dataclass(frozen=True, kw_only=True)
class StagePlaces:
    """Modules whose outputs end the last two stages.

    Attributes:
        modules: of stage 3 and stage 4. layout: of their outputs (trainer.models.tails).
        prefix: tokens before the spatial ones.
        norm: module that stage 4's output goes through before it is handed on, as well as where
            the network itself has it; "" for none.
    """

    modules: tuple[str, str]
    layout: str = MAP
    prefix: int = 0
    norm: str = ""


@dataclass(frozen=True)
class StageShape:
    """Channels and (height, width) of a stage's map."""

    width: int
    grid: tuple[int, int]


class StageMaps:
    """What the taps took while a network ran, with gradients; float32 [B, c, h, w]."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._values = values

    @property
    def stage3(self) -> Tensor:
        """Map of the last stage but one."""
        return self._values["stage3"]

    @property
    def stage4(self) -> Tensor:
        """Map of the last stage."""
        return self._values["stage4"]


class StageTaps:
    """Listens to a student's last two stages.

    Attributes:
        stage3, stage4: what their maps are like.
    """

    def __init__(self, model: nn.Module, places: StagePlaces, shapes: list[StageShape]) -> None:
        self.stage3, self.stage4 = shapes
        self._listener = Listener(bare(model), _taps(bare(model), places))

    @contextmanager
    def listening(self) -> Iterator[StageMaps]:
        """Have the maps of the forward pass that runs inside."""
        values: dict[str, Tensor] = {}
        self._listener.found = values
        try:
            yield StageMaps(values)
        finally:
            self._listener.found = None


def tap_stages(model: nn.Module, input_size: int, name: str) -> StageTaps:
    """Taps on a network's last two stages.

    Raises:
        UsageError: a network of no known family, a stage that isn't a square grid, or crops that
            the network can't take.
    """
    places = find_stages(bare(model))
    if places is None:
        raise UsageError(
            f"student {name} has no stages that this release knows (it knows {FAMILIES}): take one "
            "of these"
        )
    with crops_of(input_size, name, "give its own with --size, or take another student"):
        shapes = _shapes(model, places, input_size)
    return StageTaps(model, places, shapes)


def find_stages(model: nn.Module) -> StagePlaces | None:
    """Where the last two stages end, None for a family that isn't known."""
    for family in (_swin, _convnext, _vit, _mixer, _torchvision_vit, _efficient, _resnet):
        places = family(model)
        if places is not None:
            return places
    return None


def _resnet(model: nn.Module) -> StagePlaces | None:
    """CIFAR networks have three stages: their last two."""
    last = next((i for i in (4, 3) if hasattr(model, f"layer{i}")), None)
    if last is None or not hasattr(model, "fc"):
        return None
    return StagePlaces(modules=(f"layer{last - 1}", f"layer{last}"))


def _efficient(model: nn.Module) -> StagePlaces | None:
    """timm's MobileNets: the last stages with a sixteenth of the pixels, and of all."""
    info = getattr(model, "feature_info", None)
    if not hasattr(model, "conv_stem") or not isinstance(info, list) or not info:
        return None
    final = info[-1]
    before = [one["module"] for one in info if one["reduction"] * 2 == final["reduction"]]
    return StagePlaces(modules=(before[-1], final["module"])) if before else None


def _convnext(model: nn.Module) -> StagePlaces | None:
    """Stage 4 after the last norm, which these networks have behind their pooling."""
    if type(model).__name__ != "ConvNeXt":
        return None
    stages, features = getattr(model, "stages", None), getattr(model, "features", None)
    if isinstance(stages, nn.Sequential):
        n = len(stages)
        return StagePlaces(modules=(f"stages.{n - 2}", f"stages.{n - 1}"), norm="head.norm")
    if isinstance(features, nn.Sequential):
        n = len(features)
        names = (f"features.{n - 3}", f"features.{n - 1}")  # the merging lies between them
        return StagePlaces(modules=names, norm="classifier.0")
    return None


def _vit(model: nn.Module) -> StagePlaces | None:
    blocks, prefix = getattr(model, "blocks", None), getattr(model, "num_prefix_tokens", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not isinstance(prefix, int):
        return None
    norm = "fc_norm" if isinstance(getattr(model, "norm", None), nn.Identity) else ""
    last_third = f"blocks.{_three_quarters(len(blocks))}"
    return StagePlaces(modules=(last_third, "norm"), layout=SEQUENCE, prefix=prefix, norm=norm)


def _torchvision_vit(model: nn.Module) -> StagePlaces | None:
    layers = getattr(getattr(model, "encoder", None), "layers", None)
    if not isinstance(layers, nn.Sequential):
        return None
    name = [name for name, _ in layers.named_children()][_three_quarters(len(layers))]
    return StagePlaces(modules=(f"encoder.layers.{name}", "encoder.ln"), layout=SEQUENCE, prefix=1)


def _mixer(model: nn.Module) -> StagePlaces | None:
    """Stage 4 before the last norm."""
    if type(model).__name__ != "MlpMixer":
        return None
    n = len(model.get_submodule("blocks")._modules)
    return StagePlaces(modules=(f"blocks.{n - 3}", f"blocks.{n - 1}"), layout=SEQUENCE)


def _swin(model: nn.Module) -> StagePlaces | None:
    """Stage 4 after the last norm."""
    if type(model).__name__ != "SwinTransformer":
        return None
    layers, features = getattr(model, "layers", None), getattr(model, "features", None)
    if isinstance(layers, nn.Sequential):
        return StagePlaces(modules=(f"layers.{len(layers) - 2}", "norm"), layout=CHANNELS_LAST)
    if isinstance(features, nn.Sequential):
        return StagePlaces(modules=(f"features.{len(features) - 3}", "norm"), layout=CHANNELS_LAST)
    return None


def _three_quarters(blocks: int) -> int:
    """Place of the block that ends a third stage: the ninth of twelve."""
    return max(0, blocks * 3 // 4 - 1)


def _taps(model: nn.Module, places: StagePlaces) -> list[Tap]:
    norm = model.get_submodule(places.norm) if places.norm else None
    ways = (_as_map(places), _as_map(places, norm))
    return [
        Tap(stage, module, OUTPUT, way)
        for stage, module, way in zip(STAGES, places.modules, ways, strict=True)
    ]


def _as_map(places: StagePlaces, norm: nn.Module | None = None) -> Callable[[Tensor], Tensor]:
    def read(value: Tensor) -> Tensor:
        if norm is not None:
            value = norm(value)
        grid = _grid(value, places)
        tokens = to_tokens(value, places.layout, grid)
        maps = value if places.layout == MAP else from_tokens(tokens, MAP, grid)
        return maps.to(torch.float32, copy=True)  # the next module may work in place

    return read


def _grid(value: Tensor, places: StagePlaces) -> tuple[int, int]:
    if places.layout == MAP:
        return value.shape[2], value.shape[3]
    if places.layout == CHANNELS_LAST:
        return value.shape[1], value.shape[2]
    count = value.shape[1] - places.prefix
    side = round(count**0.5)
    if side * side != count:
        raise UsageError(f"{count} tokens of the student are no square grid: take another student")
    return side, side


@torch.no_grad()
def _shapes(model: nn.Module, places: StagePlaces, input_size: int) -> list[StageShape]:
    """What the stages' maps are like for crops of a size; the network is left as it was."""
    was_training = model.training
    model.eval()
    listener = Listener(bare(model), _taps(bare(model), places))
    listener.found = found = {}
    try:
        model(noise_batch(input_size, next(model.parameters()).device))
    finally:
        listener.close()
        model.train(was_training)
    maps = [found[stage] for stage in STAGES]
    return [StageShape(m.shape[1], (m.shape[2], m.shape[3])) for m in maps]
