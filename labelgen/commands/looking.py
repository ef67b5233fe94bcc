"""What `preview` and `stats` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import StoreError, UsageError

if TYPE_CHECKING:
    from storage.store import LabelStore


def refuse_existing(path: Path | None, overwrite: bool, option: str) -> None:
    """Nothing is replaced unasked.

    Raises:
        UsageError: the output exists.
    """
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"{path} exists: choose another {option}, or replace it with --overwrite")


def chosen_teacher(store: LabelStore, name: str | None) -> str:
    """The teacher of that name, or the store's first.

    Raises:
        UsageError: the store has no labels of it.
        StoreError: it has no labels at all.
    """
    teachers = store.spec.teachers
    if not teachers:
        raise StoreError(f"{store.place} has no labels of any teacher")
    if name is not None and name not in teachers:
        raise UsageError(
            f"{store.place} has no labels of teacher {name!r}; it has {', '.join(sorted(teachers))}"
        )
    return name or next(iter(teachers))
