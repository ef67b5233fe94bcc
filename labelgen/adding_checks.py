"""Whether a teacher, and images, go with a store that is to be added to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from labelgen.teacher import Teacher
from storage.errors import StoreMismatch, UsageError
from storage.format import differences
from storage.parents import Parent
from storage.teacher_record import TeacherRecord


def data_of(parent: Parent, data: Path | str | None) -> Path:
    """Where the images are: given, or where the store says that they lay.

    Raises:
        UsageError: neither is known.
    """
    found = Path(data) if data is not None else parent.store.local_data_folder()
    if found is None:
        raise UsageError(
            f"{parent.store.path} doesn't say where its images are on this machine: give them with "
            "--data"
        )
    return found


def check_pixels(parent: Parent, teacher: Teacher) -> None:
    """All teachers of a store see the same pixels but for their size.

    Raises:
        UsageError: the teacher asks for another filter.
    """
    ours, theirs = parent.spec.pixel.interpolation, teacher.spec.interpolation
    if ours != theirs:
        raise UsageError(
            f"{parent.store.path} has {ours} crops, {teacher.spec.canonical} was trained on "
            f"{theirs} ones: allow the other filter with --interpolation {ours}"
        )


def check_same(
    parent: Parent, known: TeacherRecord, teacher: Teacher, compiled: bool
) -> TeacherRecord:
    """A teacher under a stored teacher's name is that teacher.

    Raises:
        StoreMismatch: it isn't; names every setting that differs.
    """
    record = teacher.record(codec=known.codec, batch_size=known.batch_size)
    record = dataclasses.replace(record, compiled=compiled)
    ours, theirs = record.to_json(), known.to_json()
    for name in ("version", "licence", "spec"):  # of the software, or told otherwise; no values
        ours[name] = theirs[name]
    found = differences(ours, theirs)
    if found:
        raise StoreMismatch(
            f"{parent.store.path} has labels of another {known.name}: {'; '.join(found)}. Give "
            "the teacher that made them"
        )
    return known


def same_teachers(parent: Parent, teacher: Teacher, compiled: bool) -> dict[str, TeacherRecord]:
    """The store's teachers, if they are this one (and its members).

    Raises:
        UsageError: the store has others. StoreMismatch: another teacher under the same name.
    """
    given = {each.spec.name: each for each in (teacher, *teacher.members)}
    records = parent.spec.teachers
    others = sorted(set(records) - set(given))
    if others or teacher.spec.name not in records:
        raise UsageError(
            f"{parent.store.path} has labels of {', '.join(sorted(records)) or 'no teacher'}, and "
            f"more views need labels of them all: {teacher.spec.name} is given; cut the store to "
            "one teacher with `labelstore subset --labels`"
        )
    return {
        name: check_same(parent, record, given[name], compiled) for name, record in records.items()
    }
