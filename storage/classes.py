"""Which teacher class each class folder is, by name: what lets accuracy be measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def map_classes(
    folder_classes: Sequence[str], teacher_classes: Sequence[str] | None
) -> npt.NDArray[np.int64] | None:
    """Teacher class index of every folder class, or None when the names don't tell.

    Names are compared exactly first, then without case, spaces and punctuation (ImageFolder
    names often turn "red fox" into "red_fox"). All folder classes must be found, each as
    another teacher class: half a mapping would give an accuracy of something else.

    Args:
        folder_classes: names of the folders, in the order of their targets.
        teacher_classes: names of the teacher's outputs in their order, None when unknown.
    Returns:
        int64 [len(folder_classes)], or None.
    """
    if not folder_classes or not teacher_classes:
        return None
    for spelling in (str, _plain):
        index = _unique_index([spelling(name) for name in teacher_classes])
        found = [index.get(spelling(name), -1) for name in folder_classes]
        if min(found) >= 0 and len(set(found)) == len(found):
            return np.array(found, dtype=np.int64)
    return None


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _unique_index(names: Sequence[str]) -> dict[str, int]:
    """Position by name; names that occur twice (ImageNet has two cranes) are left out."""
    index: dict[str, int] = {}
    repeated = set()
    for position, name in enumerate(names):
        if name in index:
            repeated.add(name)
        index[name] = position
    return {name: position for name, position in index.items() if name not in repeated}
