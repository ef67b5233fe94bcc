"""Which targets stores that are merged have, and whether those go together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from storage.errors import StoreMismatch
from storage.format import differences
from storage.parents import Parent


def joined_targets(parents: Sequence[Parent]) -> dict[str, int]:
    """How many of the stores, which follow each other, a target's views are put together from.

    Raises:
        StoreMismatch: a store in the middle lacks a target's last views, or the first all of them.
    """
    found = dict.fromkeys(parents[0].spec.targets, 1)
    for before, parent in itertools.pairwise(parents):
        for path in parent.spec.targets:
            record = before.spec.targets.get(path)
            if record is None or record.views < before.spec.num_views:
                raise StoreMismatch(
                    f"{parent.store.path} has {path}, but {before.store.path} doesn't have it of "
                    "all its views: leave it out with `labelstore subset --targets`"
                )
            found[path] += 1
    return found


def refuse_other_targets(parents: Sequence[Parent]) -> None:
    """All stores have the same targets, of as many views."""
    for parent in parents[1:]:
        ours, theirs = (
            {path: t.to_json() for path, t in p.spec.targets.items()} for p in (parents[0], parent)
        )
        found = differences(ours, theirs, "targets.")
        if found:
            raise StoreMismatch(
                f"{parents[0].store.path} and {parent.store.path} have different targets: "
                f"{'; '.join(found)}. Leave them out with `labelstore subset --targets`"
            )


def target_homes(parents: Sequence[Parent]) -> dict[str, int]:
    """By path the store that has each target, of stores with the same views.

    Raises:
        StoreMismatch: several have it.
    """
    places: dict[str, int] = {}
    for number, parent in enumerate(parents):
        for path in parent.spec.targets:
            if path in places:
                raise StoreMismatch(
                    f"{parents[places[path]].store.path} and {parent.store.path} both have {path}: "
                    "leave one out with `labelstore subset --targets`"
                )
            places[path] = number
    return places
