"""ScaleKD from a store: the teacher's last stage and head from its tokens, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from storage.errors import StoreMismatch, UsageError
from storage.targets.record import TargetRecord
from storage.targets.tokens import TAIL_FILE, TokenSettings, token_settings
from trainer.config import StudentConfig, TrainConfig
from trainer.method_config import ScalekdConfig
from trainer.methods.scalekd import ScaleKD
from trainer.models.stage_taps import StageTaps, tap_stages
from trainer.models.tails import Tail, load_head, load_tail
from trainer.targets import StoredTarget


def create_scalekd(config: TrainConfig, student: nn.Module, stored: StoredTarget) -> ScaleKD:
    """The method of a run, on the student's device.

    Raises:
        UsageError: no tail, a student without known stages or with a stage of a single place, or
            settings that this store can't serve. StoreMismatch: a tail of another teacher, or for
            another grid of tokens.
    """
    assert config.labels is not None  # checked by TrainConfig
    settings, device = token_settings(stored.record), next(student.parameters()).device
    tail = stored_tail(stored, settings)
    temperature = config.labels.temperature
    head = _head(config.scalekd, stored, settings, temperature)
    _check_heads(config.scalekd, tail)
    taps = tap_stages(student, config.student.input_size, config.student.arch)
    _check_stages(taps, tail, config.student)
    return ScaleKD(
        config.scalekd,
        taps,
        tail.to(device),
        _basis(stored),
        None if head is None else head.to(device),
        temperature,
        torch.bfloat16 if config.precision == "bf16" else None,
    )


def stored_tail(stored: StoredTarget, settings: TokenSettings) -> Tail:
    """The teacher's last stage beside its tokens, after a look whether it belongs to them.

    Raises:
        UsageError: there is none. StoreMismatch: it is another teacher's, or gives other tokens.
    """
    path = stored.record.path
    if not settings.tail or settings.tail_settings is None:
        raise UsageError(
            f"--method scalekd sends the student through the teacher's last stage, which {path} "
            "has not: add tokens that have it with `labelgen add --tokens NAME --tail`"
        )
    described = dict(settings.tail_settings)
    if described.get("teacher") != stored.teacher.digest:
        raise StoreMismatch(
            f"{path}: its tail is of a teacher with digest {described.get('teacher')}, and the "
            f"store's {stored.teacher.name} has {stored.teacher.digest}: add the tokens anew with "
            "`labelgen add --tokens NAME`"
        )
    tail = load_tail(described, stored.file(TAIL_FILE))
    given, expected = tail.settings, (settings.grid, settings.width)
    if (given.grid, given.width) != expected:
        raise StoreMismatch(
            f"{path}: its tail gives {_shape(given.grid, given.width)} and the stored tokens are "
            f"{_shape(*expected)}: add the tokens anew with `labelgen add --tokens NAME`"
        )
    return tail


def _shape(grid: tuple[int, int], width: int) -> str:
    return f"{grid[0]} x {grid[1]} tokens of {width}"


def _basis(stored: StoredTarget) -> Tensor | None:
    if "basis" not in stored.record.constants:
        return None
    return torch.from_numpy(stored.constant("basis").copy())


def _head(
    config: ScalekdConfig, stored: StoredTarget, settings: TokenSettings, temperature: float
) -> nn.Linear | None:
    """What makes the teacher's logits of its mean token; None: stored labels serve."""
    if config.kd_weight == 0:
        return None
    head = None
    if settings.logits is not None and config.logits != "labels":
        head = load_head(stored.file(TAIL_FILE))
    if head is not None:
        return _without_offset(head, stored.teacher.class_offset)
    if config.logits == "mean":
        raise UsageError(_no_head(stored.record, settings))
    if temperature != 1:
        raise UsageError(
            f"labels.temperature is {temperature}, and stored labels are the teacher's at 1: "
            "leave it at 1, or store tokens of a teacher whose logits follow from their mean "
            "(scalekd.logits mean)"
        )
    return None


def _no_head(record: TargetRecord, settings: TokenSettings) -> str:
    if settings.logits is None:
        reason = "its teacher's logits are no linear map of their mean"
        return f"scalekd.logits is 'mean', and of {record.path} {reason}: use 'labels'"
    return (
        f"scalekd.logits is 'mean', and the tail of {record.path} was written without the "
        "teacher's head: use 'labels', or add the tokens anew with `labelgen add --tokens NAME`"
    )


def _without_offset(head: nn.Linear, offset: int) -> nn.Linear:
    """The layer without its first outputs, which are no classes of the store."""
    head.weight = nn.Parameter(head.weight[offset:], requires_grad=False)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[offset:], requires_grad=False)
    return head


def _check_stages(taps: StageTaps, tail: Tail, student: StudentConfig) -> None:
    """All queries of one place get the same answer, so that no grid of tokens comes of it."""
    for name, stage in (("third", taps.stage3), ("fourth", taps.stage4)):
        if stage.grid == (1, 1):
            raise UsageError(
                f"student {student.arch}'s {name} stage is a single place at "
                f"{student.input_size} pixels, and the store has "
                f"{_shape(tail.settings.grid, tail.settings.width)}: give larger crops with "
                "--size, or take another student"
            )


def _check_heads(config: ScalekdConfig, tail: Tail) -> None:
    widths = (("s3_heads", tail.settings.input_width), ("s4_heads", tail.settings.width))
    for name, width in widths:
        heads = getattr(config, name)
        if width % heads:
            fitting = [str(n) for n in range(1, min(width, 64) + 1) if width % n == 0]
            raise UsageError(
                f"scalekd.{name} is {heads}, which doesn't divide the {width} channels that this "
                f"projector makes: use one of {', '.join(fitting)}"
            )
