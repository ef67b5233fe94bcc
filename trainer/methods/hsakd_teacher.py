"""Training of HSAKD's teachers (Yang et al., IJCAI 2021): a network with a branch at every stage.

Cross-entropy of the class head on crops that aren't rotated, and of every branch with the joint
class on all four rotations; plain means, all weights 1. Published are two ways: the branches alone
on a finished network (`frozen`), and all together from scratch (`joint`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.batch import Batch
from trainer.losses import cross_entropy
from trainer.method_config import HsakdTeacherConfig
from trainer.methods.hsakd import RotatedMethod, joint_classes
from trainer.models.branches import CLASS_HEAD, ROTATIONS, BranchedNetwork


class HsakdTeacher(RotatedMethod):
    """Joint cross-entropy of the branches beside the class head's.

    The branches are part of the network that is kept: it goes to `labelgen run --heads`.
    """

    def __init__(
        self,
        config: HsakdTeacherConfig,
        network: BranchedNetwork,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(network.taps, autocast)
        self._branches = (network.branches,)  # in a tuple: its parameters are the student's
        if config.mode == "frozen":
            network.freeze_backbone()

    def joint_logits(self, stages: Sequence[Tensor]) -> dict[str, Tensor]:
        """[4 B, 4 C] of every branch of the network."""
        found: dict[str, Tensor] = self._branches[0](stages)
        return found

    def head_terms(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"ce", "ce_branch1", ...}; the first has no gradient where the network is frozen."""
        joint = joint_classes(batch.target)
        terms = {"ce": cross_entropy(logits[CLASS_HEAD][::ROTATIONS], batch.target)}
        branches = (name for name in logits if name != CLASS_HEAD)
        return terms | {f"ce_{name}": cross_entropy(logits[name], joint) for name in branches}
