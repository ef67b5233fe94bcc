"""One forward pass of a teacher that gives all that targets need, its own logits untouched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from labelgen.extract.features import probe_batch, require_head
from labelgen.extract.heads import HeadOutput, HeadSource, find_heads, rotate, run_heads
from labelgen.extract.tokens import TOKENS, TokenSource, find_tokens
from storage.errors import TeacherError, UsageError
from trainer.models.feature_tap import FEATURE, FeatureSource, find_feature, find_head
from trainer.models.taps import Listener, Tap, bare

if TYPE_CHECKING:
    from labelgen.teacher import Teacher

LOGITS = "logits"
HEADS = "heads"
KINDS = (FEATURE, HEADS, TOKENS)


class Extractor(Protocol):
    """What one forward pass of a teacher gives beside logits."""

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Normalised float [B, 3, S, S] on the device -> float32 tensors by name.

        "logits" [B, C]: those of the plain network, bit for bit; "feature" [B, D]; "tokens"
        [B, T, D]; heads as `HeadOutput` has them. Precision is the caller's (autocast around the
        call).
        """


@dataclass(frozen=True)
class Sources:
    """Where a teacher's outputs are taken; None for what wasn't looked for."""

    feature: FeatureSource | None = None
    heads: HeadSource | None = None
    tokens: TokenSource | None = None


def find_sources(teacher: Teacher, kinds: Collection[str]) -> Sources:
    """Look at a network once.

    Args:
        kinds: of KINDS.
    Raises:
        TeacherError: the network can't give what is wanted, or is in train mode.
    """
    _check_mode(teacher)
    batch = probe_batch(teacher)
    feature = heads = tokens = None
    # in full precision: places are told apart by their values
    with torch.autocast(teacher.device.type, enabled=False):
        head = find_head(teacher.model, batch)
        if FEATURE in kinds:
            pooled = require_head(teacher, head, "--features")
            feature = find_feature(teacher.model, pooled, batch)
        if HEADS in kinds:
            heads = find_heads(teacher, head, batch)
        if TOKENS in kinds:
            tokens = find_tokens(teacher, head, batch)
    return Sources(feature, heads, tokens)


def _check_mode(teacher: Teacher) -> None:
    """Drop path and batch statistics would make a crop's targets another one's every time."""
    left = [name or "the network" for name, part in teacher.model.named_modules() if part.training]
    if left:
        raise TeacherError(
            f"teacher {teacher.spec.canonical} is in train mode ({left[0]} and {len(left) - 1} "
            "more of its modules), and targets are those of eval mode: call model.eval()"
        )


class TappedTeacher:
    """An `Extractor` by hooks; the network itself is not changed.

    Un-rotated crops go through the network alone, in the batch they come in, so that logits and
    features don't depend on what else is asked for. Heads of R rotations take R passes.
    """

    def __init__(self, teacher: Teacher, sources: Sources, wants: Collection[str]) -> None:
        self._wants = sorted(set(wants) - {LOGITS})
        self._model, self._heads = bare(teacher.model), sources.heads
        taps: list[Tap] = [
            source.tap for source in (sources.feature, sources.tokens) if source is not None
        ]
        taps += sources.heads.taps if sources.heads else ()
        self._listener = Listener(self._model, taps)
        self._look = self._forward
        self._rotations = max((head.rotations for head in _heads(wants)), default=1)

    def compile(self, **options: Any) -> None:
        """Compile network and taps together; `options` are torch.compile's."""
        self._look = torch.compile(self._forward, **options)

    def close(self) -> None:
        """Take the hooks off the network."""
        self._listener.close()

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """See `Extractor`."""
        turned = [self._look(batch)]
        turned += [self._look(rotate(batch, r)) for r in range(1, self._rotations)]
        outputs = {LOGITS: turned[0][LOGITS]}
        for want in self._wants:
            head = HeadOutput.parse(want)
            outputs[want] = turned[0][want] if head is None else self._rows(head, turned)
        return outputs

    def _rows(self, head: HeadOutput, turned: list[dict[str, Tensor]]) -> Tensor:
        rows = [found[str(HeadOutput(head.head))] for found in turned[: head.rotations]]
        if head.logits and self._heads is not None:
            layer = self._heads.layers[head.head]
            rows = [layer(values).float() for values in rows]
        return torch.stack(rows, dim=1)

    def _forward(self, batch: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        self._listener.found = found
        rows: dict[str, Tensor] = {}
        try:
            if self._heads is not None and not self._heads.taps:
                logits, rows = run_heads(self._model, self._heads.layers, batch)
            else:
                logits = self._model(batch)
        finally:
            self._listener.found = None
        return {LOGITS: logits.float(), **found, **rows}


def extractor_for(teacher: Teacher, wants: Collection[str]) -> TappedTeacher:
    """The extractor of the outputs that are wanted, after one look at the network.

    Args:
        wants: names of outputs, as `Extractor` has them; logits are always given.
    Raises:
        UsageError: an unknown output.
        TeacherError: the network can't give what is wanted.
    """
    heads = _heads(wants)
    known = {LOGITS, FEATURE, TOKENS, *map(str, heads)}
    unknown = sorted(set(wants) - known)
    if unknown:
        raise UsageError(
            f"a forward pass gives {LOGITS}, {FEATURE}, {TOKENS} and {HeadOutput('NAME')}; "
            f"not {unknown[0]!r}"
        )
    kinds = [kind for kind in (FEATURE, TOKENS) if kind in wants] + [HEADS] * bool(heads)
    sources = find_sources(teacher, kinds)
    layers = sources.heads.layers if sources.heads else {}
    missing = sorted({head.head for head in heads} - layers.keys())
    if missing:
        raise TeacherError(
            f"teacher {teacher.spec.canonical} has no head {missing[0]!r}; it has "
            f"{', '.join(sorted(layers))}"
        )
    return TappedTeacher(teacher, sources, wants)


def _heads(wants: Collection[str]) -> list[HeadOutput]:
    return [head for want in wants if (head := HeadOutput.parse(want)) is not None]
