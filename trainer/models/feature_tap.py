"""The pooled feature of a network before its last ReLU (KDEP, arXiv:2203.05180), while it runs.

Where the last ReLU is, is found by running the network once: it is the last place whose rectified,
averaged value is what the head reads. Nothing of the network is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models.taps import INPUT, OUTPUT, Listener, Tap, bare, visiting

FEATURE = "feature"
PROBE_SEED = 0
_TOLERANCE = 1e-4  # relative; the order of a mean's sum is the library's own


@dataclass(frozen=True, eq=False)
class Head:
    """The layer that makes a network's logits.

    Attributes:
        linear: of `name`. inputs: float32 [2, D], what it read of the probe; logits: [2, C].
    """

    name: str
    linear: nn.Linear
    inputs: Tensor
    logits: Tensor


@dataclass(frozen=True)
class FeatureSource:
    """Where the pooled feature is taken.

    Attributes:
        width: D. layer: for people and the store's settings.
        before_relu: whether a ReLU stands between it and the head.
    """

    tap: Tap
    width: int
    layer: str
    before_relu: bool


def noise_batch(size: int, device: torch.device | str = "cpu") -> Tensor:
    """Two normalised crops of noise, float32 [2, 3, size, size], the same always."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    batch = torch.randn(2, 3, size, size, generator=generator).to(device)
    return batch.contiguous(memory_format=torch.channels_last)


@contextmanager
def crops_of(side: int, name: str, way_out: str) -> Iterator[None]:
    """Says of what fails inside that student `name` can't take crops of `side` pixels.

    Raises:
        UsageError: anything failed.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UsageError(
            f"student {name} can't take crops of {side} pixels a side ({reason[0]}): {way_out}"
        ) from error


@torch.inference_mode()
def find_head(model: nn.Module, batch: Tensor) -> Head | None:
    """The last Linear layer whose output is the network's, None where there is none."""
    model = bare(model)
    seen: dict[str, tuple[nn.Linear, Tensor, Tensor]] = {}
    inputs: dict[str, Tensor] = {}

    def visit(name: str, module: nn.Module, side: str, value: Tensor) -> None:
        if isinstance(module, nn.Linear) and value.ndim == 2:
            if side == INPUT:
                inputs[name] = value.float().clone()
            elif name in inputs:
                seen.pop(name, None)  # so that the order is that of the last runs
                seen[name] = module, inputs[name], value.float().clone()

    with visiting(model, visit):
        logits = model(batch).float()
    for name, (linear, read, output) in reversed(seen.items()):
        if torch.equal(output, logits):
            return Head(name, linear, read, logits)
    return None


@torch.inference_mode()
def find_feature(model: nn.Module, head: Head, batch: Tensor) -> FeatureSource:
    """The place before the last ReLU, or the head's input where the head reads no rectified map.

    A ReLU that is a function and not a module is found by the output of the module before it.
    """
    model = bare(model)
    width = head.inputs.shape[1]
    before_module: str | None = None
    before_function: str | None = None

    def visit(name: str, module: nn.Module, side: str, value: Tensor) -> None:
        nonlocal before_module, before_function
        if value.ndim not in (2, 4) or value.shape[1] != width:
            return
        if side == INPUT and isinstance(module, (nn.ReLU, nn.ReLU6)):
            relu = F.relu6 if isinstance(module, nn.ReLU6) else F.relu
            if same_values(pool(relu(value)), head.inputs):
                before_module = name
        elif side == OUTPUT and same_values(pool(F.relu(value)), head.inputs):
            rectified_after = not same_values(pool(value), head.inputs)
            before_function = name if rectified_after else before_function

    with visiting(model, visit):
        model(batch)
    if before_module is not None:
        tap = Tap(FEATURE, before_module, INPUT, pool)
        return FeatureSource(tap, width, f"mean before {before_module} (ReLU)", True)
    if before_function is not None:
        tap = Tap(FEATURE, before_function, OUTPUT, pool)
        return FeatureSource(tap, width, f"mean of {before_function} before its ReLU", True)
    return FeatureSource(
        Tap(FEATURE, head.name, INPUT, pool), width, f"input of {head.name}", False
    )


def pool(value: Tensor) -> Tensor:
    """Mean over positions: [B, D, H, W] or [B, D] -> float32 [B, D]; sums are float32."""
    if value.ndim == 4:
        return value.mean(dim=(2, 3), dtype=torch.float32)
    return value.to(torch.float32, copy=True)


def same_values(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are one but for the order of a float32 sum."""
    atol = _TOLERANCE * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=_TOLERANCE, atol=atol)


class Found:
    """What a tap took while a network ran."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._values = values

    @property
    def feature(self) -> Tensor:
        """float32 [B, D], with its gradient."""
        return self._values[FEATURE]


class FeatureTap:
    """Listens to a student's pooled feature before its last ReLU.

    Attributes:
        width: D. layer: where it is taken.
    """

    def __init__(self, model: nn.Module, source: FeatureSource) -> None:
        self.width, self.layer = source.width, source.layer
        self._listener = Listener(bare(model), [source.tap])

    @contextmanager
    def listening(self) -> Iterator[Found]:
        """Have the feature of the forward pass that runs inside."""
        values: dict[str, Tensor] = {}
        self._listener.found = values
        try:
            yield Found(values)
        finally:
            self._listener.found = None


def tap_feature(
    model: nn.Module, input_size: int, name: str, rectified: bool = False
) -> FeatureTap:
    """A tap on a network's pooled feature.

    Args:
        rectified: as its head reads it, after the last ReLU.
    Raises:
        UsageError: no linear layer gives the network's logits.
    """
    was_training = model.training
    model.eval()
    batch = noise_batch(input_size, next(model.parameters()).device)
    head = find_head(model, batch)
    if head is None:
        raise UsageError(
            f"student {name} has no pooled feature: none of its linear layers gives its logits; "
            "take a student that ends in a linear layer"
        )
    if rectified:
        tap = Tap(FEATURE, head.name, INPUT, pool)
        source = FeatureSource(tap, head.inputs.shape[1], f"input of {head.name}", False)
    else:
        source = find_feature(model, head, batch)
    model.train(was_training)
    return FeatureTap(model, source)
