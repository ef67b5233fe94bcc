"""What `labelgen verify` found, for people and programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from labelgen.sequential import FEW, MANY, ShareTest, upper_bound

NAMED = 10  # wrong crops that a report lists
POWERS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
CLUE_SHARE = 0.8  # of the wrong crops, that a clue has to explain
VIEW_SHARE = 0.5  # likewise of a shift: the last views have no neighbour


@dataclass(frozen=True, kw_only=True)
class WrongCrop:
    """A crop whose label isn't the teacher's, or whose image isn't the one that was labelled.

    why: "image", "classes", "values", "tail" or the path of a target.
    other_views: of the image, whose labels would be right for the crop.
    """

    row: int
    view: int
    key: str
    block: int
    why: str
    other_views: tuple[int, ...] = ()


@dataclass(kw_only=True)
class VerifyReport:
    """What was looked at, what was found, and how much that says.

    decision: "few" (the labels are the teacher's), "many" (they are not) or None: the crops given
    did not suffice to tell.
    settings_clue: other settings of the teacher under which the wrong labels would be right.
    eps: tolerance of log-probabilities in nats. every: whether all crops were looked at.
    """

    teacher: str
    precision: str
    test: ShareTest
    looked: int = 0
    targets: tuple[str, ...] = ()
    eps: float = 0.0
    every: bool = False
    decision: str | None = None
    wrong: list[WrongCrop] = field(default_factory=list)
    settings_clue: str | None = None

    @property
    def exit_code(self) -> int:
        """0 right, 1 wrong, 3 undecided."""
        return {FEW: 0, MANY: 1}.get(self.decision or "", 3)

    @property
    def share_at_most(self) -> float:
        """Share of wrong crops in the store, but for the risk beta that it is larger."""
        if self.every:
            return len(self.wrong) / self.looked
        return upper_bound(self.looked, len(self.wrong), self.test.beta)

    @property
    def clues(self) -> list[str]:
        """What the wrong crops have in common."""
        if not self.wrong:
            return []
        return [
            *_block_clue(self.wrong), *_view_clue(self.wrong), *_image_clue(self.wrong),
            *([self.settings_clue] if self.settings_clue else []),
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": self.decision == FEW,
            "decision": self.decision,
            "teacher": self.teacher,
            "precision": self.precision,
            "targets": list(self.targets),
            "crops": self.looked,
            "every_crop": self.every,
            "wrong": len(self.wrong),
            "share_at_most": round(self.share_at_most, 6),
            "tolerance_nats": self.eps,
            "test": dataclasses.asdict(self.test),
            "power": {str(share): round(self.test.power(share), 4) for share in POWERS},
            "clues": self.clues,
            "examples": [dataclasses.asdict(each) for each in self.wrong[:NAMED]],
        }

    def text(self) -> str:
        """For people."""
        test, said = self.test, {FEW: "the labels are the teacher's", MANY: "the labels are NOT "
                                 "the teacher's"}  # fmt: skip
        every = " (all there are)" if self.every else ""
        return "\n".join([
            f"{self.teacher}: {said.get(self.decision or '', 'undecided: give --most more crops')}",
            f"looked at {self.looked} crops{every}, {len(self.wrong)} wrong; share of wrong ones"
            f" at most {100 * self.share_at_most:.2f} % (risk {100 * test.beta:g} %)",
            f"tolerance {self.eps:.2g} nats at {self.precision}; test of {100 * test.h0:g} % "
            f"against {100 * test.h1:g} %, risks {100 * test.alpha:g} % and {100 * test.beta:g} %; "
            f"a share of {100 * test.h1:g} % is found with {100 * test.power(test.h1):.1f} %, of "
            f"{100 * POWERS[-1]:g} % with {100 * test.power(POWERS[-1]):.2f} %",
            *self.clues,
            *(f"wrong: {w.key} view {w.view} (row {w.row}, block {w.block}): {w.why}"
              for w in self.wrong[:NAMED]),
        ])  # fmt: skip


def _block_clue(wrong: Sequence[WrongCrop]) -> list[str]:
    blocks = [each.block for each in wrong]
    most = max(set(blocks), key=blocks.count)
    if len(wrong) < 2 or blocks.count(most) < CLUE_SHARE * len(wrong):
        return []
    return [f"{blocks.count(most)} of {len(wrong)} wrong crops lie in block {most}: delete its "
            "receipt and label it again, or look at what wrote it"]  # fmt: skip


def _view_clue(wrong: Sequence[WrongCrop]) -> list[str]:
    shifts = [view - each.view for each in wrong for view in each.other_views]
    if not shifts:
        return []
    most = max(set(shifts), key=shifts.count)
    if shifts.count(most) < VIEW_SHARE * len(wrong):
        return []
    return [f"labels lie {most:+d} views from their crops: views are shifted"]


def _image_clue(wrong: Sequence[WrongCrop]) -> list[str]:
    images = sum(each.why == "image" for each in wrong)
    if not images:
        return []
    return [f"{images} of {len(wrong)} wrong crops are of images that are gone or not those that "
            "were labelled: `labelgen doctor` and `labelstore match` say more"]  # fmt: skip
