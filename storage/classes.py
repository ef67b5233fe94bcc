"""Which teacher class each class folder is, by name: what lets accuracy be measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage.errors import StoreMismatch


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


def number_classes(
    folder_classes: Sequence[str],
    classes: Sequence[str] | None,
    count: int,
    *,
    images: str,
    owner: str,
    way_out: str = "",
) -> npt.NDArray[np.int64]:
    """Number of every folder class among those of a network, for which it can't do without.

    Args:
        classes: the network's, None when unknown: then there must be as many, in the same order.
        count: how many it has.
        images, owner: what has the folder classes and whose the others are, for messages.
        way_out: what else to do, for messages.
    Returns:
        int64 [len(folder_classes)].
    Raises:
        StoreMismatch: classes that can't be matched.
    """
    if classes is None:
        if len(folder_classes) == count:
            return np.arange(count)
        raise StoreMismatch(
            f"{images}: {len(folder_classes)} classes, and {owner} has {count}, whose names are "
            f"not known: their order can't be matched{way_out and '; ' + way_out}"
        )
    numbers = map_classes(folder_classes, classes)
    if numbers is None:
        unknown = [name for name in folder_classes if name not in set(classes)]
        unknown = unknown or list(folder_classes)
        raise StoreMismatch(
            f"{images}: class {unknown[0]!r} is none of the {count} of {owner} (such as "
            f"{classes[0]!r}), nor are {len(unknown) - 1} more of {len(folder_classes)}: the class "
            f"folders must carry the same names{way_out and ', or ' + way_out}"
        )
    return numbers


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
