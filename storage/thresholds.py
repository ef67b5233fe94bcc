"""FerKD's thresholds (Shen 2023, ICCV; arXiv:2312.17473); its repository has no values for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import UsageError
from storage.typed import check_types

FERKD = "ferkd"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Of s, the largest probability of a label; the defaults leave nothing out and change nothing.

    low, top: crops with s below or above are left out. middle: those with s from low to below it
        are asked for their image's own class with 1 - epsilon.
    """

    low: float = 0.0
    middle: float = 0.0
    top: float = 1.0
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.low <= self.middle <= self.top <= 1:
            raise UsageError(
                f"ferkd.low, middle and top are {self.low}, {self.middle} and {self.top}; expected "
                "0 <= low <= middle <= top <= 1"
            )
        if not 0 <= self.epsilon < 1:
            raise UsageError(f"ferkd.epsilon is {self.epsilon}; expected 0 to 1")

    @property
    def softens(self) -> bool:
        """Whether any label becomes its image's own class."""
        return self.middle > self.low

    @property
    def leaves_out(self) -> bool:
        """Whether any label counts for nothing."""
        return self.low > 0 or self.top < 1


def stored_thresholds(adapted: Mapping[str, Any]) -> Thresholds | None:
    """How a teacher's labels were adapted, from its record; None where they weren't.

    Raises:
        UsageError: in a way that this release doesn't know.
    """
    if not adapted:
        return None
    values = dict(adapted)
    method = values.pop("method", None)
    try:
        if method == FERKD:
            return Thresholds(**values)
    except TypeError:
        pass
    raise UsageError(
        f"labels were adapted by {dict(adapted)!r}, which this release doesn't know: install a "
        "newer teachonce"
    )
