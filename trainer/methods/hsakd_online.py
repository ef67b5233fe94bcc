"""HSAKD without a teacher: two networks learn from each other (Yang et al., arXiv:2109.03075).

Both are of one architecture with branches, begin from other random weights and see the same
crops. Here, unlike in the offline student, the branches are asked for the hard joint class, too.
The first network is the student; its peer lives here, and is written beside it at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.batch import Batch
from trainer.losses import cross_entropy, temperature_kl
from trainer.method_config import HsakdConfig
from trainer.methods.hsakd import RotatedMethod, joint_classes
from trainer.models.branches import (
    CLASS_HEAD,
    ROTATIONS,
    BranchedNetwork,
    Branches,
    StageTaps,
    branch_rule,
    turned_rows,
)


class HsakdOnline(RotatedMethod):
    """Sum over both networks of joint cross-entropies and of T^2 KL to the other's answers.

    Args:
        peer: a network of the same architecture with its branches.
    """

    def __init__(
        self,
        config: HsakdConfig,
        student: nn.Module,
        name: str,
        classes: int,
        peer: BranchedNetwork,
        autocast: torch.dtype | None = None,
    ) -> None:
        rule = branch_rule(student, name)
        super().__init__(StageTaps(student, rule), autocast)
        self._temperature = config.temperature
        self.branches = Branches(rule, classes).to(memory_format=torch.channels_last)
        self.peer = peer.to(memory_format=torch.channels_last)

    def peers(self) -> dict[str, nn.Module]:
        """The other network, without its branches."""
        return {"peer": self.peer.backbone}

    def joint_logits(self, stages: Sequence[Tensor]) -> dict[str, Tensor]:
        """[4 B, 4 C] of every branch of the student."""
        found: dict[str, Tensor] = self.branches(stages)
        return found

    def head_terms(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"ce", "ce_branch1", ..., "kl_class", "kl_branch1", ...}, and the peer's `peer_ce` ..."""
        peers = self._peer_logits(turned_rows(batch.images))
        own = self._of_one(logits, peers, batch.target)
        others = self._of_one(peers, logits, batch.target)
        return own | {f"peer_{name}": term for name, term in others.items()}

    def _peer_logits(self, rows: Tensor) -> dict[str, Tensor]:
        low = self._autocast
        with torch.autocast(rows.device.type, dtype=low, enabled=low is not None):
            layers = self.peer.head_layers()
            return {name: layers[name](h) for name, h in self.peer.forward_heads(rows).items()}

    def _of_one(
        self, logits: dict[str, Tensor], other: dict[str, Tensor], target: Tensor
    ) -> dict[str, Tensor]:
        joint = joint_classes(target)
        terms = {"ce": cross_entropy(logits[CLASS_HEAD][::ROTATIONS], target)}
        branches = (name for name in logits if name != CLASS_HEAD)
        terms |= {f"ce_{name}": cross_entropy(logits[name], joint) for name in branches}
        return terms | {
            f"kl_{name}": temperature_kl(rows, other[name].detach(), self._temperature)
            for name, rows in logits.items()
        }
