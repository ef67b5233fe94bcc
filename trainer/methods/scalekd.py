"""ScaleKD: a vision transformer's tokens as a target (Fan et al., NeurIPS 2024, arXiv:2411.06786).

The student's third stage, projected, goes through the teacher's own frozen last stage; its fourth
is projected with what comes out as queries; both are asked for the teacher's last tokens, as they
are (spat) and less their mean (alt). Beside that a_kd tau^2 times soft cross-entropy with the
teacher's logits, and 1 - a_kd times the task's own loss. Departs from the published code where that
lets the teacher's drop path run in training: here the tail is in eval mode, as the tokens are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.targets.tokens import MEAN, REMAINDER
from trainer.batch import Batch
from trainer.losses import soft_cross_entropy_topk
from trainer.method_config import ScalekdConfig
from trainer.methods.base import Method
from trainer.methods.scalekd_modules import CrossAttentionProjector, centred, token_distance
from trainer.models.stage_taps import StageShape, StageTaps
from trainer.models.tails import Tail

VIEWS = ("spat", "alt")


class View(nn.Module):
    """The projectors of one view of the features; `stage4` where its loss has a weight."""

    def __init__(self, config: ScalekdConfig, view: str, taps: StageTaps, tail: Tail) -> None:
        super().__init__()
        self.weights = config.weights(view)
        into = tail.settings

        def projector(
            source: StageShape, width: int, grid: tuple[int, int], heads: int, own_queries: bool
        ) -> CrossAttentionProjector:
            return CrossAttentionProjector(
                source.width, source.grid, width, grid, heads=heads, scale=config.softmax_scale,
                norm=config.norm, own_queries=own_queries,
            )  # fmt: skip

        self.stage3 = projector(
            taps.stage3, into.input_width, into.input_grid, config.s3_heads, True
        )
        self.stage4 = (
            projector(taps.stage4, into.width, into.grid, config.s4_heads, False)
            if self.weights[1]
            else None
        )


class ScaleKD(Method):
    """Task loss, soft cross-entropy, and up to four losses of tokens.

    Args:
        taps: on the student. tail: the teacher's; on the student's device.
        basis: float32 [D, r] of the stored remainder, None where it is kept whole.
        head: from the mean token to the teacher's logits; None: the stored labels serve.
        temperature: tau of the logit term.
        autocast_dtype: lower precision of projectors and tail; losses are float32.
    """

    def __init__(
        self,
        config: ScalekdConfig,
        taps: StageTaps,
        tail: Tail,
        basis: Tensor | None = None,
        head: nn.Linear | None = None,
        temperature: float = 1.0,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._config, self._taps, self._temperature = config, taps, temperature
        self._autocast_dtype = autocast_dtype
        # in a tuple, so that no state dict, optimiser or change of mode ever sees them
        self._teacher = (tail, head)
        self.needs_labels = config.kd_weight > 0 and head is None
        self.register_buffer("_basis", basis, persistent=False)
        self.views = nn.ModuleDict(
            {view: View(config, view, taps, tail) for view in VIEWS if any(config.weights(view))}
        )

    @property
    def tail(self) -> Tail:
        """The teacher's last stage."""
        return self._teacher[0]

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"task": ..., "soft_ce": ..., "spat_s3": ..., "alt_s3": ..., "spat_s4": ...}."""
        with self._taps.listening() as maps:
            logits = student(batch.images)
        assert batch.targets is not None
        found: dict[str, Tensor] = {}
        kd_weight = self._config.kd_weight
        if kd_weight < 1:
            found["task"] = (1 - kd_weight) * self._task_loss(logits.float(), batch.target)
        if kd_weight > 0:
            soft = self._soft_loss(logits.float(), batch)
            found["soft_ce"] = kd_weight * self._temperature**2 * soft
        return found | self.feature_terms(maps.stage3, maps.stage4, self.wanted(batch.targets))

    def wanted(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's tokens [B, T, D] in each view, of a store's `mean` and `remainder`.

        The second view takes the remainder as it is stored: its precision doesn't depend on how
        large the mean is beside it.
        """
        rest = targets[REMAINDER]
        if self._basis is not None:
            rest = rest @ self._basis.T
        return {"spat": targets[MEAN].unsqueeze(1) + rest, "alt": centred(rest)}

    def feature_terms(
        self, stage3: Tensor, stage4: Tensor, wanted: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weighted distances of both stages' projected maps to the teacher's tokens.

        Args:
            stage3, stage4: maps float [B, c, h, w]. wanted: as `wanted` gives it.
        """
        found: dict[str, Tensor] = {}
        for name, projectors in self.views.items():
            assert isinstance(projectors, View)
            for stage, weight, tokens in self._projected(projectors, stage3, stage4):
                seen = tokens.float() if name == "spat" else centred(tokens.float())
                if weight:
                    found[f"{name}_{stage}"] = weight * token_distance(seen, wanted[name])
        return found

    def _projected(
        self, projectors: View, stage3: Tensor, stage4: Tensor
    ) -> list[tuple[str, float, Tensor]]:
        """(stage, weight, tokens) of a view; gradients of stage 4's reach stage 3 as queries."""
        dtype = self._autocast_dtype
        with torch.autocast(stage3.device.type, dtype=dtype, enabled=dtype is not None):
            through = self.tail(projectors.stage3(stage3))
            found = [("s3", projectors.weights[0], through)]
            if projectors.stage4 is not None:
                found.append(("s4", projectors.weights[1], projectors.stage4(stage4, through)))
        return found

    def _task_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, or binary cross-entropy summed over classes; mean over crops."""
        if self._config.task == "ce":
            return F.cross_entropy(logits, target, label_smoothing=self._config.smoothing)
        wanted = F.one_hot(target, logits.shape[-1]).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(logits)

    def _soft_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        head = self._teacher[1]
        if head is None:
            assert batch.labels is not None
            return soft_cross_entropy_topk(logits, batch.labels, self._temperature)
        assert batch.targets is not None
        probs = (head(batch.targets[MEAN]) / self._temperature).softmax(dim=-1)
        return F.cross_entropy(logits / self._temperature, probs)
