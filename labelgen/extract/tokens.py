"""Tokens of a teacher's last stage (ScaleKD, arXiv:2411.06786) and the tail that makes them.

Swin and ViT: after the final norm, without class or register tokens. Other networks: the last map,
position by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from storage.errors import TeacherError
from trainer.models import create
from trainer.models.feature_tap import Head, pool, same_values
from trainer.models.tails import (
    CHANNELS_LAST,
    MAP,
    SEQUENCE,
    TailSettings,
    head_tensors,
    load_tail,
    tail_tensors,
    to_tokens,
)
from trainer.models.taps import INPUT, OUTPUT, Listener, Tap, bare, visiting

if TYPE_CHECKING:
    from labelgen.teacher import Teacher

TOKENS = "tokens"
_TAIL_SHARE = 4  # a ViT's last quarter of blocks stands for a last stage (ScaleKD: 3 of 12 and 1)
_ENTRY = "entry"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A module whose output holds tokens.

    Attributes:
        layout: nchw, nhwc or sequence. prefix: tokens before the spatial ones.
        tail: modules that lead from the last stage's input to it; () where that isn't known.
    """

    module: str
    layout: str
    prefix: int = 0
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenSource:
    """Where tokens are taken.

    Attributes:
        grid: (h, w), T = h w. width: D.
        head: the linear layer that makes the logits of the tokens' mean, where there is one.
    """

    tap: Tap
    place: Place
    grid: tuple[int, int]
    width: int
    head: nn.Linear | None

    @property
    def affine(self) -> bool:
        """Whether the logits are a linear map of the tokens' mean."""
        return self.head is not None

    @property
    def layer(self) -> str:
        """For people and the store's settings."""
        return f"output of {self.place.module}"


@torch.inference_mode()
def find_tokens(teacher: Teacher, head: Head | None, batch: Tensor) -> TokenSource:
    """The last stage's tokens of a teacher.

    Raises:
        TeacherError: no map or sequence is known to be its last, or that map is a single position.
    """
    model = bare(teacher.model)
    place = known_place(model) or _last_map(model, head, batch)
    if place is None:
        raise TeacherError(
            f"teacher {teacher.spec.canonical} has no known last map of tokens: leave out --tokens"
        )
    whole = _run(model, [Tap(TOKENS, place.module, OUTPUT, Tensor.clone)], batch)[TOKENS]
    grid, width = geometry(place, whole.shape)
    if grid == (1, 1):
        raise TeacherError(
            f"the last map of teacher {teacher.spec.canonical} is a single position at "
            f"{teacher.spec.input_size} pixels: use --features, or larger crops with --size"
        )
    read = token_reader(place.layout, grid)
    tap = Tap(TOKENS, place.module, OUTPUT, read)
    return TokenSource(tap, place, grid, width, _affine_head(read(whole), head))


def token_reader(layout: str, grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Makes float32 tokens [B, T, D] of a module's output."""

    def read(value: Tensor) -> Tensor:
        return to_tokens(value, layout, grid).to(torch.float32, copy=True)

    return read


def known_place(model: nn.Module) -> Place | None:
    """Tokens and tail of the families that this release knows by their modules."""
    for family in (_timm_vit, _torchvision_vit, _timm_swin, _torchvision_swin, _convnext, _resnet):
        place = family(model)
        if place is not None:
            return place
    return None


def _timm_vit(model: nn.Module) -> Place | None:
    blocks, prefix = getattr(model, "blocks", None), getattr(model, "num_prefix_tokens", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not isinstance(prefix, int):
        return None
    if not isinstance(getattr(model, "norm", None), nn.Module):
        return None
    alone = getattr(model, "rope", None) is None  # blocks that need more than their input
    tail = (*_last_blocks("blocks", [name for name, _ in blocks.named_children()]), "norm")
    return Place(module="norm", layout=SEQUENCE, prefix=prefix, tail=tail if alone else ())


def _torchvision_vit(model: nn.Module) -> Place | None:
    encoder = getattr(model, "encoder", None)
    layers, norm = getattr(encoder, "layers", None), getattr(encoder, "ln", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(norm, nn.Module):
        return None
    names = _last_blocks("encoder.layers", [name for name, _ in layers.named_children()])
    return Place(module="encoder.ln", layout=SEQUENCE, prefix=1, tail=(*names, "encoder.ln"))


def _timm_swin(model: nn.Module) -> Place | None:
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.Sequential) or not hasattr(model, "patch_embed"):
        return None
    if not isinstance(getattr(model, "norm", None), nn.Module):
        return None
    return Place(module="norm", layout=CHANNELS_LAST, tail=(f"layers.{len(layers) - 1}", "norm"))


def _torchvision_swin(model: nn.Module) -> Place | None:
    features = getattr(model, "features", None)
    if not isinstance(features, nn.Sequential) or not hasattr(model, "permute"):
        return None
    last = len(features) - 1
    tail = (f"features.{last - 1}", f"features.{last}", "norm")
    return Place(module="norm", layout=CHANNELS_LAST, tail=tail)


def _convnext(model: nn.Module) -> Place | None:
    """Before the head's norm, as ScaleKD takes it."""
    if type(model).__name__ != "ConvNeXt":
        return None
    stages, features = getattr(model, "stages", None), getattr(model, "features", None)
    if isinstance(stages, nn.Sequential):
        name = f"stages.{len(stages) - 1}"
        return Place(module=name, layout=MAP, tail=(name,))
    if isinstance(features, nn.Sequential):
        last = len(features) - 1
        names = (f"features.{last - 1}", f"features.{last}")
        return Place(module=names[1], layout=MAP, tail=names)
    return None


def _resnet(model: nn.Module) -> Place | None:
    name = next((f"layer{i}" for i in (4, 3) if hasattr(model, f"layer{i}")), None)
    if name is None or not hasattr(model, "fc"):
        return None
    return Place(module=name, layout=MAP, tail=(name,))


def _last_blocks(path: str, names: list[str]) -> Iterator[str]:
    count = -(-len(names) // _TAIL_SHARE)
    return (f"{path}.{name}" for name in names[-count:])


def _last_map(model: nn.Module, head: Head | None, batch: Tensor) -> Place | None:
    """The last module output [B, D, h, w] whose mean over positions is the head's input."""
    found: list[str] = []

    def visit(name: str, module: nn.Module, side: str, value: Tensor) -> None:
        if side == OUTPUT and value.ndim == 4 and head is not None:
            fits = value.shape[1] == head.inputs.shape[1] and value.shape[2:].numel() > 1
            if fits and same_values(pool(value), head.inputs):
                found.append(name)

    with visiting(model, visit):
        model(batch)
    return Place(module=found[-1], layout=MAP) if found else None


def geometry(place: Place, shape: torch.Size) -> tuple[tuple[int, int], int]:
    """Grid (h, w) and width of a value of this shape, laid out as a place's is.

    Raises:
        TeacherError: a sequence that is no square grid.
    """
    if place.layout == MAP:
        return (shape[2], shape[3]), shape[1]
    if place.layout == CHANNELS_LAST:
        return (shape[1], shape[2]), shape[3]
    return _square(shape[1] - place.prefix), shape[2]


def _square(count: int) -> tuple[int, int]:
    side = round(count**0.5)
    if side * side != count:
        raise TeacherError(f"{count} tokens of a teacher are no square grid: leave out --tokens")
    return side, side


def _affine_head(tokens: Tensor, head: Head | None) -> nn.Linear | None:
    if head is None or tokens.shape[2] != head.linear.in_features:
        return None
    logits = head.linear(tokens.mean(dim=1))
    return head.linear if same_values(logits.float(), head.logits) else None


def tail_file(
    teacher: Teacher,
    source: TokenSource,
    batch: Tensor,
    build: Callable[[str, int], nn.Module] = create,
) -> tuple[dict[str, Any], bytes]:
    """Settings and safetensors bytes of a teacher's tail, after a look whether it works.

    The tail is rebuilt from its bytes and must turn the teacher's own input of that stage into the
    teacher's own tokens: exactly on a CPU, within float32's rounding on a GPU.

    Raises:
        TeacherError: no tail is known for this network, or the rebuilt one gives other tokens.
    """
    from safetensors.torch import save

    model, place = bare(teacher.model), source.place
    if not place.tail:
        raise TeacherError(
            f"the last stage of teacher {teacher.spec.canonical} can't be cut off as a module: "
            "give --no-tail"
        )
    entry = Tap(_ENTRY, place.tail[0], INPUT, Tensor.clone)
    seen = _run(model, [entry, source.tap], batch)
    input_grid, input_width = geometry(place, seen[_ENTRY].shape)
    settings = TailSettings(
        arch=teacher.spec.arch, modules=place.tail, layout=place.layout, prefix=place.prefix,
        input_grid=input_grid, input_width=input_width, grid=source.grid, width=source.width,
        teacher=teacher.digest,
    ).to_json()  # fmt: skip
    data = save(tail_tensors(model, place.tail) | head_tensors(source.head))
    entered = seen[_ENTRY]
    if place.layout != SEQUENCE:
        entered = to_tokens(entered, place.layout, input_grid)
    tail = load_tail(settings, data, build).to(batch.device)
    _check_tail(teacher, tail(entered).float(), seen[TOKENS])
    return settings, data


def _check_tail(teacher: Teacher, found: Tensor, expected: Tensor) -> None:
    exact = found.device.type == "cpu"
    if torch.equal(found, expected) if exact else same_values(found, expected):
        return
    difference = float((found - expected).abs().max())
    raise TeacherError(
        f"the last stage of teacher {teacher.spec.canonical}, rebuilt as {teacher.spec.arch}, "
        f"gives other tokens than the teacher (by up to {difference:.3g}): give --no-tail"
    )


@torch.inference_mode()
def _run(model: nn.Module, taps: Sequence[Tap], batch: Tensor) -> dict[str, Tensor]:
    """What taps take of one forward pass."""
    listener = Listener(model, taps)
    found: dict[str, Tensor] = {}
    listener.found = found
    try:
        model(batch)
    finally:
        listener.close()
    return found
