"""What every source of images has in common, and what its parts share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from storage.errors import UsageError
from storage.images import NO_TARGET

Content = bytes | OSError  # an encoded image, or why there is none
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")  # of tables
CHUNK_IMAGES = 16  # images in one piece of work: many small ones would drown in messages


class Chunk(Protocol):
    """Consecutive images that a worker process reads by itself. It is pickled on its way there."""

    def read(self) -> Iterator[Content]:
        """The images' bytes, in order.

        Raises:
            TeachonceError: what holds them is damaged.
        """


class Source(Protocol):
    """Images in an order that never changes, under names that are theirs alone.

    Attributes:
        location: as it was given, for people.
        name: of the beton, where none is given.
        classes: names, sorted or in the source's own order; empty where it has none.
        keys, targets: of the images that `chunks` has given so far, at least.
    """

    @property
    def location(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def targets(self) -> Sequence[int]: ...

    def __len__(self) -> int:
        """Number of images."""

    def chunks(self) -> Iterator[Chunk]:
        """All images, in order."""

    def stamp(self) -> str:
        """Changes when the images may have: names, sizes and times; never trusted as identity."""


def unique_keys(names: Sequence[str | None], shards: Sequence[str]) -> tuple[str, ...]:
    """Names of images: their own where all have one and no two the same, else shard and number.

    Args:
        names: of the images; None or empty where one has none.
        shards: name of the part of the source that each image lies in.
    """
    own = [name for name in names if name]
    if len(own) == len(names) and len(set(own)) == len(own):
        return tuple(own)
    numbers: dict[str, int] = {}
    keys = []
    for shard in shards:
        number = numbers.get(shard, 0)
        numbers[shard] = number + 1
        keys.append(f"{shard}/{number:08d}")
    return tuple(keys)


def targets_by_name(
    labels: Sequence[int | str | None], names: Sequence[str] | None, location: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(class numbers, class names) of labels as a source has them.

    Numbers keep their meaning: `names` in their order, or the numbers themselves as names. Labels
    that are text become classes in sorted order, as folders do. None is an image without a class.

    Raises:
        UsageError: numbers and text mixed, or a number that has no name.
    """
    given = [label for label in labels if label is not None]
    if not given:
        return (NO_TARGET,) * len(labels), tuple(names or ())
    if all(isinstance(label, str) for label in given):
        classes = tuple(names or sorted({str(label) for label in given}))
        number = {name: i for i, name in enumerate(classes)}
        unknown = next((label for label in given if label not in number), None)
        if unknown is not None:
            raise UsageError(f"{location}: class {unknown!r} is none of the names given")
        return tuple(NO_TARGET if x is None else number[str(x)] for x in labels), classes
    if any(isinstance(label, str) for label in given):
        raise UsageError(f"{location}: some labels are numbers and some are text: give one kind")
    numbers = [NO_TARGET if label is None else int(label) for label in labels]
    least, most = min(numbers), max(numbers)
    classes = tuple(names) if names is not None else tuple(map(str, range(most + 1)))
    if least < NO_TARGET or most >= len(classes):
        wrong = least if least < NO_TARGET else most
        raise UsageError(f"{location}: label {wrong} is outside its {len(classes)} classes")
    return tuple(numbers), classes


def pick_column(
    location: str, columns: Sequence[str], typed: Sequence[str], named: Sequence[str],
    asked: str | None = None,
) -> str | None:  # fmt: skip
    """The column that was asked for, has one of the names, or is the only one of its type.

    Raises:
        UsageError: no such column, or several of the type.
    """
    if asked is not None:
        if asked in columns:
            return asked
        raise UsageError(
            f"{location} has no column {asked!r}: choose --label-column from {', '.join(columns)}"
        )
    for name in named:
        if name in columns:
            return name
    if len(typed) > 1:
        raise UsageError(
            f"{location} has several such columns: choose one with --label-column {'|'.join(typed)}"
        )
    return typed[0] if typed else None


def stamp_files(paths: Iterable[Path], names: Iterable[str]) -> str:
    """Hash of every file's name, size and time of change."""
    digest = hashlib.sha256()
    for path, name in zip(paths, names, strict=True):
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()
