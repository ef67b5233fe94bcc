"""More views of the same images: which stores continue which, and how one is continued.

View v of an image depends on (seed, digest, v) alone, so the store of 500 views begins with the
store of 100. A store may hold views `first_view` onwards (a root attribute; 0 where there is none):
label only the views that follow, then put both together with `merge_stores`, which copies every
file whose views lie in one of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from storage.errors import UsageError
from storage.format import StoreSpec, differences
from storage.parents import FIRST_VIEW, Parent
from storage.rewrite import begin_store
from storage.store import LabelStore
from storage.targets.record import TargetRecord

# how, not what, is stored
FILES = ("block_images", "plane_views", "segment_views", "key_bytes", "view_codec")


def extension_differences(ours: StoreSpec, theirs: StoreSpec) -> list[str]:
    """Settings that keep two stores from holding views of one stream; none: they continue.

    The number of views may differ, which targets there are, and how values are spread over files.
    """
    return differences(_meaning(ours), _meaning(theirs)) + target_differences(ours, theirs)


def target_differences(ours: StoreSpec, theirs: StoreSpec) -> list[str]:
    """Settings of targets that both stores have, but for their number of views."""
    found = []
    for path in sorted({*ours.targets} & {*theirs.targets}):
        mine, other = (_without_views(spec.targets[path]) for spec in (ours, theirs))
        found += differences(mine, other, f"targets.{path}.")
    return found


def continue_store(path: LabelStore | Path | str, out: Path | str, num_views: int) -> LabelStore:
    """Start (or go on with) the store of the views that a sealed store lacks.

    The writer draws views `first_view(store)` onwards, labels all blocks and seals it; then
    `merge_stores([path, out], new)` gives the store of `num_views` views. Targets that the store
    has of every view are continued; those of its first views only stay as they are.

    Args:
        out: where the new views are written; an unfinished one of the same kind is opened.
        num_views: views the two stores will have together.
    Raises:
        UsageError: no views are missing, or the sampler doesn't have so many.
        StoreMismatch: `out` was begun for something else.
    """
    parent = Parent.open(path)
    have = parent.spec.num_views
    if num_views <= have:
        raise UsageError(f"{num_views} views asked for, but {parent.store.path} has {have} already")
    dataclasses.replace(parent.spec, num_views=parent.first_view + num_views)  # checks the number
    targets = {
        path: dataclasses.replace(record, views=num_views - have)
        for path, record in parent.spec.targets.items()
        if record.views == have
    }
    spec = dataclasses.replace(parent.spec, num_views=num_views - have, targets=targets)
    return begin_store(Path(out), spec, {FIRST_VIEW: parent.first_view + have})


def _meaning(spec: StoreSpec) -> dict[str, Any]:
    values = spec.settings()
    for name in ("num_views", "targets", *FILES):
        values.pop(name, None)
    return values


def _without_views(record: TargetRecord) -> dict[str, Any]:
    values = record.to_json()
    del values["views"]
    return values
