"""Whether a store and an image folder mean the same by their class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.classes import map_classes
from storage.format import StoreSpec
from storage.images import class_order_hash


@dataclass(frozen=True)
class ClassReport:
    """Class names of a store and of a folder.

    state: "same" (names and order; their hashes are equal), "different", or "unknown" where the
        store or the folder has no classes.
    only_store, only_data: names that the other lacks.
    teachers: for each teacher, whether every class of the folder is one of its classes by name.
    problems: recorded hashes that don't fit the recorded names.
    """

    state: str
    store_hash: str
    data_hash: str
    only_store: list[str] = field(default_factory=list)
    only_data: list[str] = field(default_factory=list)
    teachers: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_json(self, examples: int) -> dict[str, Any]:
        """Plain values; long lists are cut."""
        return {
            "state": self.state,
            "store_hash": self.store_hash,
            "data_hash": self.data_hash,
            "only_store": {"count": len(self.only_store), "examples": self.only_store[:examples]},
            "only_data": {"count": len(self.only_data), "examples": self.only_data[:examples]},
            "teachers": self.teachers,
            "problems": self.problems,
        }


def compare_classes(spec: StoreSpec, classes: Sequence[str]) -> ClassReport:
    """Compare the class names of a store's settings with those of a folder, in their order."""
    ours = list(spec.dataset["classes"])
    store_hash, data_hash = class_order_hash(ours), class_order_hash(classes)
    problems = []
    recorded = spec.dataset.get("class_order_hash")
    if recorded not in (None, store_hash):
        problems.append(f"the store's class_order_hash is {recorded}, its names give {store_hash}")
    for name, teacher in sorted(spec.teachers.items()):
        if teacher.classes is not None and teacher.class_order_hash is not None:
            found = class_order_hash(teacher.classes)
            if teacher.class_order_hash != found:
                problems.append(
                    f"teacher {name}'s class_order_hash is {teacher.class_order_hash}, its names "
                    f"give {found}"
                )
    known = bool(ours) and bool(classes)
    return ClassReport(
        state="unknown" if not known else "same" if store_hash == data_hash else "different",
        store_hash=store_hash,
        data_hash=data_hash,
        only_store=sorted(set(ours) - set(classes)) if known else [],
        only_data=sorted(set(classes) - set(ours)) if known else [],
        teachers={
            name: map_classes(classes, teacher.classes) is not None
            for name, teacher in sorted(spec.teachers.items())
            if teacher.classes is not None and classes
        },
        problems=problems,
    )
