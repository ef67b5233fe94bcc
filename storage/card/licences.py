"""Three licences, never one: of the labels, of the teacher's weights, of the images."""

from __future__ import annotations

from dataclasses import dataclass

from storage.errors import UsageError

UNKNOWN = "unknown"
# SPDX names (lower case) that the Hub's `license:` field takes as they are
HUB_LICENCES = frozenset(
    ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd", "cc0-1.0", "cc-by-2.0",
     "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
     "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
     "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0",
     "odc-by", "odbl", "pddl", "openrail", "unknown"]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Licences:
    """SPDX names where there is one; "unknown" where nobody said.

    teachers: by teacher.
    """

    labels: str = UNKNOWN
    images: str = UNKNOWN
    teachers: dict[str, str]

    def unstated(self) -> list[str]:
        """Which of the three kinds nobody stated."""
        teachers = sorted(name for name, value in self.teachers.items() if value == UNKNOWN)
        return [
            *(["labels"] if self.labels == UNKNOWN else []),
            *(f"weights of teacher {name}" for name in teachers),
            *(["images"] if self.images == UNKNOWN else []),
        ]


def state_licences(
    recorded: dict[str, str], labels: str | None, teacher: str | None, images: str | None
) -> Licences:
    """Licences from the store's records and the user's statements.

    Args:
        recorded: of each teacher's weights, as the store has it.
        teacher: stated now for teachers whose licence the store doesn't have.
    Raises:
        UsageError: the store says something else, or a name can't be one.
    """
    for value in (labels, teacher, images):
        if value is not None and not (value.strip() and value.isprintable() and len(value) < 200):
            raise UsageError(f"licence {value!r}; expected a name such as CC-BY-4.0, or a URL")
    teachers = {}
    for name, value in recorded.items():
        known = value if value and value.lower() != UNKNOWN else None
        if known and teacher and teacher.lower() != known.lower():
            raise UsageError(
                f"the store says that teacher {name} has licence {known}, not {teacher}: "
                "leave --teacher-licence out"
            )
        teachers[name] = known or teacher or UNKNOWN
    return Licences(labels=labels or UNKNOWN, images=images or UNKNOWN, teachers=teachers)
