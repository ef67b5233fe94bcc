"""A target as a store records it, and how its arrays come from a teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelgen.extract.base import LOGITS
from labelgen.extract.heads import HeadOutput
from labelgen.extract.tokens import TOKENS
from labelgen.extract.vectors import encode_tensors
from labelgen.forward import matmul_precision
from labelgen.head_encodings import largest_logits
from storage.targets.dense import LOGITS as LOGITS_PART
from storage.targets.dense import dense_settings
from storage.targets.features import VALUE, feature_settings
from storage.targets.heads import head_settings
from storage.targets.record import TargetRecord
from storage.targets.tokens import MEAN, REMAINDER
from trainer.models.feature_tap import FEATURE

Array = npt.NDArray[Any]

_OUTPUT = {"features": FEATURE, "tokens": TOKENS, "dense": LOGITS}


@dataclass(frozen=True, eq=False)
class TargetPlan:
    """A target as a store records it, and how its arrays come from a teacher's outputs.

    Of a store that has the target, a plan is made of the record, constants and files as they are
    in it: a basis is data and is never fitted twice.

    Attributes:
        constants, files: arrays and bytes of the whole store, by name.
    """

    record: TargetRecord
    constants: Mapping[str, Array]
    files: Mapping[str, bytes] = field(default_factory=dict)
    _on_device: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def views(self) -> int:
        """How many of an image's views have it, the first ones."""
        return self.record.views

    @property
    def outputs_needed(self) -> tuple[str, ...]:
        """Outputs of an extractor (labelgen.extract) that `encode` takes."""
        if self.record.kind != "heads":
            return (_OUTPUT[self.record.kind],)
        settings = head_settings(self.record)
        outputs = (
            HeadOutput(head.name, settings.rotations, logits=head.encoding != "pooled")
            for head in settings.heads
        )
        return tuple(map(str, outputs))

    def vectors(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts' vectors, float32 [n, *shape] by name, before they are coded.

        Products are float32 with TF32 off, whatever the teacher's precision is.
        """
        given = [outputs[name].float() for name in self.outputs_needed]
        constants = self._constants_on(given[0].device)
        with torch.inference_mode(), matmul_precision("fp32"):
            return _VECTORS[self.record.kind](self.record, given, constants)

    def encode(self, outputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """A store's arrays of some crops, by name below the target's path.

        Args:
            outputs: finite float32 [n, ...] of `outputs_needed`.
        Raises:
            UsageError: values that an encoding can't hold.
        """
        vectors = self.vectors(outputs)
        with torch.inference_mode():
            encoded = {
                name: values
                for part in self.record.parts
                for name, values in encode_tensors(part, vectors[part.name]).items()
            }
        return {name: values.cpu().numpy() for name, values in encoded.items()}

    def _constants_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._on_device:
            self._on_device[device] = {
                name: torch.from_numpy(np.ascontiguousarray(values)).to(device)
                for name, values in self.constants.items()
            }
        return self._on_device[device]


def _feature_vectors(
    record: TargetRecord, given: list[Tensor], constants: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    settings = feature_settings(record)
    z = (given[0] - constants["mean"]) @ constants["basis"]
    if settings.temperature is not None and settings.power is not None:
        z = torch.copysign((z / settings.temperature).abs().pow(1 / settings.power), z)
    return {VALUE: z}


def _head_vectors(
    record: TargetRecord, given: list[Tensor], constants: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for head, values in zip(head_settings(record).heads, given, strict=True):
        if head.top_k is None:
            found[head.name] = values
        else:
            kept = largest_logits(values, head.top_k)
            found |= {f"{head.name}_{name}": vectors for name, vectors in kept.items()}
    return found


def _token_vectors(
    record: TargetRecord, given: list[Tensor], constants: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    mean, rest = split_mean(given[0])
    return {MEAN: mean, REMAINDER: rest @ constants["basis"] if "basis" in constants else rest}


def _dense_vectors(
    record: TargetRecord, given: list[Tensor], constants: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    logits = given[0]
    if dense_settings(record).centred:
        logits = (logits - logits.mean(dim=-1, keepdim=True, dtype=torch.float64)).float()
    return {LOGITS_PART: logits}


def split_mean(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean token [B, D] and what remains [B, T, D] of float32 tokens [B, T, D]."""
    mean = tokens.mean(dim=1, dtype=torch.float64).float()
    return mean, tokens - mean[:, None]


_VECTORS: dict[
    str, Callable[[TargetRecord, list[Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
] = {
    "features": _feature_vectors,
    "heads": _head_vectors,
    "tokens": _token_vectors,
    "dense": _dense_vectors,
}
