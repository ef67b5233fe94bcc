"""HSAKD: hierarchical self-supervised augmented distillation (Yang et al., IJCAI 2021).

Every crop is seen in its four rotations. A branch at each stage of the student tells class and
rotation together and is asked, as the class head is, for what the teacher's head of the same place
answered to the same pixels. The branches learn nothing from the hard class, live here, and are
left behind with the method: the student is the plain network.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from storage.errors import StoreMismatch, UsageError
from storage.targets.heads import HeadSettings, HeadSpec, head_settings
from storage.targets.top_k_heads import INDEX, LOGIT, TAIL, TopK
from trainer.batch import Batch
from trainer.losses import cross_entropy, temperature_kl
from trainer.method_config import HsakdConfig
from trainer.methods.base import Method
from trainer.models.branches import (
    CLASS_HEAD,
    ROTATIONS,
    BranchedNetwork,
    Branches,
    StageTaps,
    branch_name,
    branch_rule,
    turned_rows,
)
from trainer.targets import StoredTarget


class RotatedMethod(Method):
    """A method that shows the student all rotations of a crop and reads its branches.

    Args:
        autocast: lower precision of the branches' forward, None for float32.
    """

    def __init__(self, taps: StageTaps, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self._taps, self._autocast = taps, autocast
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor], Tensor] | None = None

    @abstractmethod
    def joint_logits(self, stages: Sequence[Tensor]) -> dict[str, Tensor]:
        """Outputs of the stages to [4 B, 4 C] of every branch."""

    @abstractmethod
    def head_terms(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms from logits of 4 B rows, by head."""

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """Terms of the batch in its four rotations, row 4 n + r."""
        rows = turned_rows(batch.images)
        with self._taps.listening() as heard:
            logits = {CLASS_HEAD: student(rows)}
        low = self._autocast
        with torch.autocast(rows.device.type, dtype=low, enabled=low is not None):
            logits |= self.joint_logits(heard.stages)
        terms = self.head_terms(logits, batch)
        self._seen = _detached(logits), _detached(terms), batch.target
        return terms

    def measures(self) -> dict[str, float]:
        """Terms and accuracies of the last batch: `class_top1` of the class head on crops that
        aren't rotated, `joint_top1/branchN` over all 4 B rows. Waits for the device."""
        if self._seen is None:
            return {}
        logits, terms, target = self._seen
        found = {name: float(value) for name, value in terms.items()}
        found["class_top1"] = _top1(logits[CLASS_HEAD][::ROTATIONS], target)
        joint = joint_classes(target)
        branches = (name for name in logits if name != CLASS_HEAD)
        return found | {f"joint_top1/{name}": _top1(logits[name], joint) for name in branches}

    def scores(
        self, student: Callable[[Tensor], Tensor], images: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """`joint_top1/branchN` of validation images; branches and student in eval mode."""
        was_training = self.training
        self.eval()
        found = joint_scores(self._taps, self.joint_logits, student, images, target)
        self.train(was_training)
        return found


class Hsakd(RotatedMethod):
    """The offline student: hard cross-entropy, and T^2 KL to every stored head.

    Args:
        classes: C of the student. stored: the heads of a store.
    Raises:
        UsageError: a student that no branches are known for.
        StoreMismatch: heads that aren't those of the student.
    """

    def __init__(
        self,
        config: HsakdConfig,
        student: nn.Module,
        name: str,
        classes: int,
        stored: StoredTarget,
        autocast: torch.dtype | None = None,
    ) -> None:
        rule = branch_rule(student, name)
        super().__init__(StageTaps(student, rule), autocast)
        _check_heads(
            head_settings(stored.record), stored.record.path, name, len(rule.taps), classes
        )
        self._temperature = config.temperature
        self.branches = Branches(rule, classes).to(memory_format=torch.channels_last)
        self.stored = StoredHeads(stored, config.temperature)

    def joint_logits(self, stages: Sequence[Tensor]) -> dict[str, Tensor]:
        """[4 B, 4 C] of every branch; its loss reaches the student."""
        found: dict[str, Tensor] = self.branches(stages)
        return found

    def head_terms(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"ce", "kl_class", "kl_branch1", ...}; all weigh 1, and each KL is a mean of 4 B rows."""
        assert batch.targets is not None
        wanted = self.stored(batch.targets)
        terms = {"ce": cross_entropy(logits[CLASS_HEAD][::ROTATIONS], batch.target)}
        return terms | {
            f"kl_{name}": temperature_kl(rows, wanted[name], self._temperature)
            for name, rows in logits.items()
        }


class StoredHeads(nn.Module):
    """Logits of a teacher's heads from what a store keeps of them.

    Args:
        temperature: at which their softmax will be taken.
    Raises:
        StoreMismatch: a head of which only the largest logits were kept, for other temperatures.
    """

    def __init__(self, stored: StoredTarget, temperature: float) -> None:
        super().__init__()
        self._heads = head_settings(stored.record).heads
        self._temperature = temperature
        for head in self._heads:
            _check_temperature(head, stored.record.path, temperature)
            for name in head.constants():  # the store has them: not part of a checkpoint
                values = torch.from_numpy(stored.constant(name).copy())
                self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """float32 [B, 4, d] or [B, 4, C] by head to logits [4 B, C], row 4 n + r."""
        found = {}
        for head in self._heads:
            if head.top_k is not None:
                found[head.name] = self._all_logits(head, head.top_k, values)
                continue
            rows = values[head.name].flatten(0, 1)
            if head.encoding == "pooled":
                weight = self.get_buffer(f"{head.name}_weight")
                rows = rows @ weight.T + self.get_buffer(f"{head.name}_bias")
            found[head.name] = rows
        return found

    def _all_logits(self, head: HeadSpec, kept: TopK, values: Mapping[str, Tensor]) -> Tensor:
        """`storage.targets.top_k_heads.all_logits` on the device, as rows."""
        index, logit, tail = (
            values[f"{head.name}_{name}"].flatten(0, 1) for name in (INDEX, LOGIT, TAIL)
        )
        weight = tail[:, kept.place(self._temperature)] - math.log(head.classes - kept.k)
        level = (self._temperature * weight)[:, None].expand(-1, head.classes)
        return level.scatter(1, index.long(), logit)


def joint_classes(target: Tensor) -> Tensor:
    """Joint class of every row: int64 [B] to [4 B], 4 y + r at row 4 n + r."""
    turns = torch.arange(ROTATIONS, device=target.device)
    return (ROTATIONS * target[:, None] + turns).flatten()


@torch.no_grad()
def joint_scores(
    taps: StageTaps,
    branches: Callable[[Sequence[Tensor]], Mapping[str, Tensor]],
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    target: Tensor,
) -> dict[str, Tensor]:
    """For each branch the sum over B images of the share of rotations whose joint class is right.

    Args:
        branches: outputs of the stages to [4 B, 4 C] by name. images: [B, 3, S, S].
        target: int64 [B].
    """
    with taps.listening() as heard:
        network(turned_rows(images))
    joint = joint_classes(target)
    return {
        f"joint_top1/{name}": (rows.argmax(dim=-1) == joint).sum() / ROTATIONS
        for name, rows in branches(heard.stages).items()
    }


def branch_scores(
    network: nn.Module,
) -> Callable[[Tensor, Tensor], dict[str, Tensor]] | None:
    """`joint_scores` of a network that has its branches with it; None for others."""
    if not isinstance(network, BranchedNetwork):
        return None
    return functools.partial(joint_scores, network.taps, network.branches, network)


def _check_heads(settings: HeadSettings, path: str, name: str, branches: int, classes: int) -> None:
    if settings.rotations != ROTATIONS:
        raise StoreMismatch(
            f"{path} has heads of {settings.rotations} rotation, and --method hsakd learns from "
            f"{ROTATIONS}: add heads with --rotations {ROTATIONS}"
        )
    stored = [head.name for head in settings.heads]
    wanted = {CLASS_HEAD: classes}
    wanted |= {branch_name(number): ROTATIONS * classes for number in range(1, branches + 1)}
    if set(stored) != set(wanted):
        raise StoreMismatch(
            f"student {name} has {branches} branches, and {path} has the heads "
            f"{', '.join(stored)}: take a student of as many stages, or a teacher of `trainer fit "
            "--method hsakd-teacher` with as many branches"
        )
    for head in settings.heads:
        if head.classes != wanted[head.name]:
            raise StoreMismatch(
                f"{path}: head {head.name} has {head.classes} outputs; expected "
                f"{wanted[head.name]} for the student's {classes} classes"
            )


def _check_temperature(head: HeadSpec, path: str, temperature: float) -> None:
    if head.top_k is None:
        return
    try:
        head.top_k.place(temperature)
    except UsageError as error:
        raise StoreMismatch(f"{path}, head {head.name} and hsakd.temperature: {error}") from error


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


def _top1(logits: Tensor, target: Tensor) -> float:
    return float((logits.argmax(dim=-1) == target).float().mean())
