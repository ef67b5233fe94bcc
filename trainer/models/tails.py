"""A teacher's last stage as a module of its own, rebuilt from a store's `tail.safetensors`.

ScaleKD (arXiv:2411.06786, section 3.4) sends a student's projected features through the teacher's
frozen last stage and compares what comes out with the teacher's own tokens. A tail takes tokens and
gives tokens, whatever the layout inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from storage.errors import CorruptStore, StoreMismatch
from trainer.models import create

if TYPE_CHECKING:
    from collections.abc import Sequence

TAIL_VERSION = 1
HEAD = "logits"  # prefix of the tensors that make logits of the mean token, where they do
MAP, CHANNELS_LAST, SEQUENCE = "nchw", "nhwc", "sequence"
LAYOUTS = (MAP, CHANNELS_LAST, SEQUENCE)


@dataclass(frozen=True, kw_only=True)
class TailSettings:
    """How a tail is built and fed; plain JSON in a store's settings.

    Attributes:
        arch: name for trainer.models.create. modules: paths in it, run one after the other.
        layout: of what goes between modules: nchw, nhwc, or sequence [B, prefix + T, D].
        prefix: tokens before the spatial ones (a class token); taken off at the end where the
            input had them, and an input may lack them.
        input_grid, input_width: (h, w) and channels of the tokens that go in; grid, width: of
            those that come out.
        teacher: digest of the whole teacher's tensors (labelgen.weights.tensor_digest).
    """

    arch: str
    modules: tuple[str, ...]
    layout: str
    prefix: int
    input_grid: tuple[int, int]
    input_width: int
    grid: tuple[int, int]
    width: int
    teacher: str
    version: int = TAIL_VERSION

    def __post_init__(self) -> None:
        for name in ("modules", "input_grid", "grid"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.version != TAIL_VERSION or self.layout not in LAYOUTS or not self.modules:
            raise StoreMismatch(
                f"a teacher's tail of version {self.version} with layout {self.layout!r}; this "
                f"release knows version {TAIL_VERSION} with {', '.join(LAYOUTS)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, lists for tuples."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


class Tail(nn.Module):
    """The last modules of a network, from tokens to tokens. Frozen, in eval mode for ever."""

    def __init__(self, settings: TailSettings, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.settings = settings
        self.stages = nn.ModuleList(stages)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Tail:
        """Stays in eval mode: its drop path and batch norm must not see the student's training."""
        super().train(False)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T_in, input_width] -> [B, T, width]; gradients pass through.

        Where the layout is a sequence, T_in may include the prefix tokens.
        """
        settings = self.settings
        values = from_tokens(tokens, settings.layout, settings.input_grid)
        for stage in self.stages:
            values = stage(values)
        return to_tokens(values, settings.layout, settings.grid)


def to_tokens(values: Tensor, layout: str, grid: tuple[int, int]) -> Tensor:
    """[B, D, h, w], [B, h, w, D] or [B, prefix + h w, D] -> [B, h w, D] in raster order."""
    if layout == MAP:
        return values.flatten(2).transpose(1, 2)
    if layout == CHANNELS_LAST:
        return values.flatten(1, 2)
    return values[:, -grid[0] * grid[1] :]


def from_tokens(tokens: Tensor, layout: str, grid: tuple[int, int]) -> Tensor:
    """The inverse of `to_tokens`; a sequence stays as it is."""
    if layout == SEQUENCE:
        return tokens
    values = tokens.reshape(len(tokens), *grid, -1)
    return values.permute(0, 3, 1, 2) if layout == MAP else values


def tail_tensors(model: nn.Module, modules: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of some modules of a network, by their names in it, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for path in modules:
        state = model.get_submodule(path).state_dict()
        found = {f"{path}.{name}": value for name, value in state.items()}
        tensors |= {name: value.detach().cpu().contiguous() for name, value in found.items()}
    return tensors


def head_tensors(head: nn.Linear | None) -> dict[str, Tensor]:
    """Tensors of the layer that makes a teacher's logits of its mean token; none without one."""
    state = {} if head is None else head.state_dict()
    return {f"{HEAD}.{name}": t.detach().cpu().contiguous() for name, t in state.items()}


def load_head(data: bytes) -> nn.Linear | None:
    """The layer that makes the teacher's logits of its mean token, where the tail's file has it.

    Frozen, on the CPU. Files of older stores and of teachers with other heads have none.

    Raises:
        CorruptStore: `data` is no safetensors file.
    """
    state = {
        name.removeprefix(f"{HEAD}."): value
        for name, value in _read_tensors(data).items()
        if name.startswith(f"{HEAD}.")
    }
    if "weight" not in state:
        return None
    outputs, width = state["weight"].shape
    head = nn.Linear(width, outputs, bias="bias" in state)
    head.load_state_dict(state)
    return head.requires_grad_(False)


def load_tail(
    settings: Mapping[str, Any],
    data: bytes,
    build: Callable[[str, int], nn.Module] = create,
) -> Tail:
    """The tail that a store holds, on the CPU.

    Args:
        settings: `tail_settings` of a tokens target. data: its `tail.safetensors`.
        build: makes a network from (arch, number of classes); its head is not used.
    Raises:
        StoreMismatch: settings of another release, or tensors that don't fit the architecture.
        CorruptStore: `data` is no safetensors file.
    """
    try:
        described = TailSettings(**settings)
    except TypeError as error:
        raise StoreMismatch(f"the settings of a teacher's tail can't be read: {error}") from error
    tensors = _read_tensors(data)
    model = build(described.arch, 1)
    stages = [_filled(model, path, tensors, described.arch) for path in described.modules]
    return Tail(described, stages)


def _read_tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise CorruptStore(
            f"the teacher's tail is not a readable safetensors file ({error}): fetch the store anew"
        ) from error
    return tensors


def _filled(model: nn.Module, path: str, tensors: Mapping[str, Tensor], arch: str) -> nn.Module:
    prefix = f"{path}."
    own = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    try:
        module = model.get_submodule(path)
        module.load_state_dict(own)
    except (AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreMismatch(
            f"the teacher's tail does not fit {arch} as this machine's libraries build it "
            f"({reason}): use the library version that the store names"
        ) from error
    return module
