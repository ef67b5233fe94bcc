"""Several teachers as one: the mean of their probabilities.

Crops arrive normalised for the first member, x = (p - mean_0) / std_0 with p in 0..1. A member m
with other numbers takes x * (std_0 / std_m) + (mean_0 - mean_m) / std_m, in float32 with the two
constants worked out in float64; a member with the other channel order takes the channels turned
round before that. A member whose settings are the first's takes x itself, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labelgen.teachers import TeacherSpec
from storage.errors import UsageError
from storage.images import class_order_hash

if TYPE_CHECKING:
    from labelgen.teacher import Teacher

_LONGEST_NAME = 100  # letters that a teacher's folder in a store may have


class MeanOfProbabilities(nn.Module):
    """Log of the mean probability over networks, float32 [B, C].

    Worked out from log-probabilities by logsumexp, so that it neither overflows nor loses classes
    whose probabilities underflow.
    """

    def __init__(self, networks: Sequence[nn.Module], specs: Sequence[TeacherSpec]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.inputs = nn.ModuleList(_Renormalise(specs[0], spec) for spec in specs)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, 3, S, S], normalised for the first member."""
        return self.mean(self.member_log_probs(x))

    def member_log_probs(self, x: Tensor) -> list[Tensor]:
        """Log-probabilities of each network, float32 [B, C]."""
        return [
            torch.log_softmax(network(prepare(x)).float(), dim=1)
            for prepare, network in zip(self.inputs, self.networks, strict=True)
        ]

    @staticmethod
    def mean(log_probs: Sequence[Tensor]) -> Tensor:
        """Log of the mean of several networks' probabilities."""
        return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))


class _Renormalise(nn.Module):
    """From one teacher's normalised pixels to another's."""

    scale: Tensor
    shift: Tensor

    def __init__(self, first: TeacherSpec, own: TeacherSpec) -> None:
        super().__init__()
        self.turned = first.channel_order != own.channel_order
        step = -1 if self.turned else 1
        mean, std = (torch.tensor(v[::step], dtype=torch.float64) for v in (first.mean, first.std))
        own_mean, own_std = (torch.tensor(v, dtype=torch.float64) for v in (own.mean, own.std))
        self.same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        for name, value in (("scale", std / own_std), ("shift", (mean - own_mean) / own_std)):
            self.register_buffer(name, value.float().view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, 3, S, S] in, the same out."""
        if self.turned:
            x = x.flip(1)
        return x if self.same else x * self.scale + self.shift


def join_specs(members: Sequence[TeacherSpec]) -> TeacherSpec:
    """The specification of an ensemble.

    Raises:
        UsageError: members differ in input size, interpolation, number or order of classes.
    """
    first = members[0]
    for other in members[1:]:
        for what, way_out, ours, theirs in _must_agree(first, other):
            if ours != theirs:
                raise UsageError(
                    f"the ensemble's teachers differ in {what}: {first.canonical} has {ours}, "
                    f"{other.canonical} has {theirs}; {way_out}"
                )
    members = _with_different_names(members)
    libraries = list(dict.fromkeys((m.library, m.version) for m in members))
    return TeacherSpec(
        name=_folder_name(members),
        canonical="ensemble:" + "+".join(m.canonical for m in members),
        library="+".join(library for library, _ in libraries),
        version="+".join(version for _, version in libraries),
        arch="+".join(m.arch for m in members),
        weights=None,
        file=None,
        licence="; ".join(dict.fromkeys(m.licence for m in members)),
        input_size=first.input_size,
        mean=first.mean,
        std=first.std,
        interpolation=first.interpolation,
        num_classes=first.num_classes,
        classes=first.classes,
        channel_order=first.channel_order,
        members=members,
    )


def _must_agree(one: TeacherSpec, other: TeacherSpec) -> list[tuple[str, str, object, object]]:
    names = "name the classes of all with --class-names, or leave one teacher out"
    return [
        ("input size", "give one for all with --size", one.input_size, other.input_size),
        ("interpolation", "give one for all with --interpolation",
         one.interpolation, other.interpolation),
        ("number of classes", "leave one of them out", one.num_classes, other.num_classes),
        ("class order (its hash)", names, _order(one), _order(other)),
    ]  # fmt: skip


def _order(spec: TeacherSpec) -> str:
    return class_order_hash(spec.classes)[:16] if spec.classes else "no class names"


def _with_different_names(members: Sequence[TeacherSpec]) -> tuple[TeacherSpec, ...]:
    """Members of one architecture are told apart by a number, in case their labels are kept."""
    seen: dict[str, int] = {}
    renamed = []
    for member in members:
        seen[member.name] = count = seen.get(member.name, 0) + 1
        renamed.append(member if count == 1 else replace(member, name=f"{member.name}-{count}"))
    return tuple(renamed)


def _folder_name(members: Sequence[TeacherSpec]) -> str:
    name = "+".join(member.name for member in members)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"ensemble-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def ensemble_digest(members: Sequence[Teacher]) -> str:
    """Hex SHA-256 over the members' digests in their order, a line each."""
    lines = "".join(f"{member.digest}\n" for member in members)
    return hashlib.sha256(lines.encode()).hexdigest()
