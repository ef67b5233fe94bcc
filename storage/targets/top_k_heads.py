"""The largest logits of a head, and what the others weigh together at given temperatures.

With z the C logits of a row, m the largest, and the k largest kept as z - m, what is left out
weighs

    l_T = log sum over the others of exp((z - m) / T)

at temperature T. Read back at a T for which l_T was kept, each of the C - k others gets the logit T
(l_T - log(C - k)), so that all of them together weigh what they did and no one of them more than
another. At another T they would not: HSAKD's T = 3 lifts a tail whose mass at T = 1 is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.record import VectorPart
from storage.typed import check_types

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

TEMPERATURES = (1.0, 3.0)  # labels' own, and HSAKD's
INDEX, LOGIT, TAIL = "index", "logit", "tail"


@dataclass(frozen=True, kw_only=True)
class TopK:
    """What is kept of a head's logits.

    k: classes. temperatures: at which the others' weight is kept.
    variation: mean total variation between the answer and what is read back, by temperature.
    crops: how many crops that was measured on, each in all its rotations.
    """

    k: int
    temperatures: tuple[float, ...]
    variation: tuple[float, ...]
    crops: int

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("temperatures", "variation"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if self.k < 1 or not self.temperatures or min(self.temperatures) <= 0:
            raise UsageError(
                f"the {self.k} largest logits at temperatures {self.temperatures}; expected at "
                "least one, and positive temperatures"
            )
        if len(self.variation) != len(self.temperatures):
            raise UsageError(f"variation {self.variation} of temperatures {self.temperatures}")

    def parts(self, head: str, rotations: int) -> tuple[VectorPart, ...]:
        """Its vectors of one view: classes and logits [R, k], weights of the others [R, t]."""
        kept, others = (rotations, self.k), (rotations, len(self.temperatures))
        return (
            VectorPart(name=f"{head}_{INDEX}", shape=kept, encoding="uint16"),
            VectorPart(name=f"{head}_{LOGIT}", shape=kept, encoding="fp16"),
            VectorPart(name=f"{head}_{TAIL}", shape=others, encoding="fp16"),
        )

    def place(self, temperature: float) -> int:
        """Which of the kept temperatures this is.

        Raises:
            UsageError: none of them.
        """
        if temperature not in self.temperatures:
            raise UsageError(
                f"temperature {temperature:g} is none of those that the {self.k} largest logits "
                f"were kept for, {', '.join(f'{t:g}' for t in self.temperatures)}: take one of "
                "these, or add heads of another encoding with `labelgen add --heads`"
            )
        return self.temperatures.index(temperature)


def all_logits(
    kept: TopK, head: str, classes: int, values: Mapping[str, Array], temperature: float
) -> Floats:
    """Logits float32 [..., R, C] that have the kept ones and the others' weight at `temperature`.

    Args:
        values: decoded parts by name.
    Raises:
        UsageError: see `TopK.place`.
    """
    tail = values[f"{head}_{TAIL}"][..., kept.place(temperature)]
    index = values[f"{head}_{INDEX}"].astype(np.int64)
    level = np.float32(temperature) * (tail - np.float32(math.log(classes - kept.k)))
    logits: Floats = np.repeat(level[..., None], classes, axis=-1).astype(np.float32)
    np.put_along_axis(logits, index, values[f"{head}_{LOGIT}"], axis=-1)
    return logits


def index_faults(
    part: VectorPart, classes: int, arrays: Mapping[str, Array]
) -> Iterator[tuple[str, Array, str]]:
    """Classes that a head doesn't have, or twice in a row: as `vectors.vector_faults`."""
    index = np.sort(arrays[part.name], axis=-1)
    yield part.name, index[..., -1] >= classes, f"has a class beyond the head's {classes}"
    yield part.name, (index[..., 1:] == index[..., :-1]).any(axis=-1), "has a class twice"
