"""The method object: everything that sets one way of training apart from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from trainer.batch import Batch


class Method(nn.Module, ABC):
    """The training-only half of a run.

    Modules that a method adds live here and never in the student, so that the student's state
    dict is the same under every method.
    """

    needs_labels: bool = False  # reads the store's top-k labels
    trains_whole_student: bool = True  # every parameter of the student gets a gradient
    mixes: bool = False  # crops of a batch may be mixed with one another

    def begin_pass(self, epochs_left: int) -> None:
        """Called before each pass, with the epochs from its beginning to the end of the run."""

    def measures(self) -> dict[str, float]:
        """More numbers of the last batch, for a logged line of metrics.jsonl."""
        return {}

    def peers(self) -> Mapping[str, nn.Module]:
        """Networks of the student's architecture that learn beside it and are kept, by name."""
        return {}

    def scores(
        self, student: Callable[[Tensor], Tensor], images: Tensor, target: Tensor
    ) -> Mapping[str, Tensor]:
        """Further scores of validation images, see trainer.evaluate.FurtherScores."""
        return {}

    @abstractmethod
    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """Named scalar loss terms of a batch, already weighted; the loop adds them up.

        Args:
            student: from normalised images [B, 3, S, S] to logits [B, C].
        """
