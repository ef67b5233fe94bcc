"""Inputs of every head of a teacher, for an image and its rotations (HSAKD, IJCAI 2021).

Rotation r turns the normalised crop by 90 r degrees counter-clockwise; a batch of B crops and R
rotations is B R rows, row R n + r the r-th rotation of crop n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from labelgen.extract.features import require_head
from storage.errors import TeacherError
from trainer.models.feature_tap import Head, pool
from trainer.models.taps import INPUT, Tap, bare

if TYPE_CHECKING:
    from labelgen.teacher import Teacher

CLASS_HEAD = "class"
_HEAD_OUTPUT = re.compile(r"head(4?)(_logits)?/(.+)")


@runtime_checkable
class NetworkWithHeads(Protocol):
    """A network with auxiliary heads beside its own, which is called "class"."""

    def forward_heads(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 3, S, S] -> by head, what its Linear layer reads: [B, d]."""

    def head_layers(self) -> dict[str, nn.Linear]:
        """The Linear layers of the same heads."""


@dataclass(frozen=True, eq=False)
class HeadSource:
    """The heads of a teacher.

    Attributes:
        layers: the Linear layer of each, by name.
        taps: for a plain classifier; () where the network gives the inputs itself.
    """

    layers: Mapping[str, nn.Linear]
    taps: tuple[Tap, ...]


@dataclass(frozen=True)
class HeadOutput:
    """One of an extractor's outputs: inputs [B, R, d] or logits [B, R, C] of a head.

    Its name is "head/<name>" for R = 1 and "head4/<name>" for R = 4; "head_logits/<name>" and
    "head4_logits/<name>" for logits.
    """

    head: str
    rotations: int = 1
    logits: bool = False

    def __str__(self) -> str:
        turns = "" if self.rotations == 1 else str(self.rotations)
        return f"head{turns}{'_logits' if self.logits else ''}/{self.head}"

    @staticmethod
    def parse(output: str) -> HeadOutput | None:
        """The output of this name; None where it is no head's."""
        found = _HEAD_OUTPUT.fullmatch(output)
        return HeadOutput(found[3], int(found[1] or 1), bool(found[2])) if found else None


def find_heads(teacher: Teacher, head: Head | None, batch: Tensor) -> HeadSource:
    """All heads of a `NetworkWithHeads`, else the one that gives the logits.

    Raises:
        TeacherError: no such head, or auxiliary heads that don't fit the network.
    """
    model = bare(teacher.model)
    if isinstance(model, NetworkWithHeads):
        layers = model.head_layers()
        _check_heads(teacher, model, layers, batch)
        return HeadSource(layers, ())
    found = require_head(teacher, head, "--heads")
    tap = Tap(str(HeadOutput(CLASS_HEAD)), found.name, INPUT, pool)
    return HeadSource({CLASS_HEAD: found.linear}, (tap,))


def run_heads(
    model: nn.Module, layers: Mapping[str, nn.Linear], batch: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, C] of the class head, and by output name what every head reads [B, d].

    Args:
        model: a `NetworkWithHeads`; layers: its own.
    """
    assert isinstance(model, NetworkWithHeads)
    rows = model.forward_heads(batch)
    logits = layers[CLASS_HEAD](rows[CLASS_HEAD])
    return logits, {str(HeadOutput(name)): pool(values) for name, values in rows.items()}


@torch.inference_mode()
def _check_heads(
    teacher: Teacher, model: NetworkWithHeads, layers: Mapping[str, nn.Linear], batch: Tensor
) -> None:
    rows = model.forward_heads(batch)
    name = teacher.spec.canonical
    if CLASS_HEAD not in layers or rows.keys() != layers.keys():
        raise TeacherError(
            f"teacher {name} has heads {sorted(layers)} and gives inputs of {sorted(rows)}; "
            f"expected the same names, {CLASS_HEAD!r} among them"
        )
    for head, layer in layers.items():
        if list(rows[head].shape) != [len(batch), layer.in_features]:
            raise TeacherError(
                f"teacher {name}: input of head {head!r} is {list(rows[head].shape)}; expected "
                f"[{len(batch)}, {layer.in_features}]"
            )
    if not torch.equal(layers[CLASS_HEAD](rows[CLASS_HEAD]), teacher.model(batch)):
        raise TeacherError(
            f"teacher {name}: head {CLASS_HEAD!r} on its forward_heads() gives other logits than "
            "the network: both must be the same computation"
        )


def rotate(batch: Tensor, turns: int) -> Tensor:
    """[B, 3, S, S] turned by 90 `turns` degrees counter-clockwise, in channels_last."""
    turned = torch.rot90(batch, turns, (2, 3))
    return turned.contiguous(memory_format=torch.channels_last)
