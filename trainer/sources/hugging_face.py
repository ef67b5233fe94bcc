"""Data sets of the `datasets` library as a source: saved on disk, image folders, or on the Hub.

Nothing is fetched unless a Hub name is given. Data sets that bring a script of their own are
refused: no code of a data set is run.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import StoreError, UsageError
from storage.extras import needs_extra
from trainer.sources.base import (
    CHUNK_IMAGES,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Content,
    pick_column,
    stamp_files,
    targets_by_name,
    unique_keys,
)

PREFIX = "hf:"
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` writes


@dataclass(frozen=True)
class BytesChunk:
    """Images whose bytes the data set's library gave."""

    contents: tuple[bytes | None, ...]
    paths: tuple[str | None, ...]

    def read(self) -> Iterator[Content]:
        """Their bytes, or those of the files that the data set names."""
        for data, path in zip(self.contents, self.paths, strict=True):
            if data is not None:
                yield data
                continue
            try:
                yield Path(path or "").read_bytes()
            except OSError as error:
                yield error


class HubSource:
    """A split of a data set.

    Args:
        location: `hf:PATH[:split]` or `hf:org/name[:split]`.
        label: column of the labels; None: `label`, or the only one with class names.
        names: of the classes, where the data set names none.
    Raises:
        UsageError: no such data set or split, no images, a script, or no package.
    """

    def __init__(
        self, location: str, label: str | None = None, names: Sequence[str] | None = None
    ) -> None:
        self.location = location
        place, split = parse(location)
        self.name = Path(place).name
        self._folder = Path(place) if Path(place).is_dir() else None
        cache = tempfile.mkdtemp(prefix="teachonce-")  # for what the library writes meanwhile
        weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        with _one_line(location):
            found = _open(place, split, self._folder, cache)
            features = found.features or {}
            typed = _typed(features, "Image")[:1]
            column = pick_column(location, list(features), typed, IMAGE_COLUMNS)
            if column is None:
                raise UsageError(f"{location} has no image column: found {', '.join(features)}")
            typed = _typed(features, "ClassLabel")
            label = pick_column(location, list(features), typed, LABEL_COLUMNS, label)
            self._count = _count(location, found)
            from datasets import Image

            wanted = [column] if label is None else [column, label]
            self._data = found.select_columns(wanted).cast_column(column, Image(decode=False))
        self._column, self._label = column, label
        if names is None and label is not None:
            names = getattr(features[label], "names", None)
        self._names = None if names is None else tuple(names)
        self.classes = self._names or ()
        self.targets: Sequence[int] = []
        shard = split or "images"
        if self._folder is not None:
            paths, labels = self._tables()
            self.keys = unique_keys(paths, [shard] * self._count)
            self.targets, self.classes = targets_by_name(labels, names, location)
        else:
            if label is not None and names is None:
                raise UsageError(
                    f"{location} doesn't name the classes of {label!r}: give them with "
                    "--class-names"
                )
            # whether a stream's own names are unique would be known too late
            self.keys = unique_keys([None] * self._count, [shard] * self._count)

    def _tables(self) -> tuple[list[str | None], list[Any]]:
        """Own names and labels of all images on disk."""
        paths: list[str | None] = []
        labels: list[Any] = []
        with _one_line(self.location):
            for table in self._data.with_format("arrow").iter(batch_size=1000):
                for value in table[self._column].to_pylist():
                    paths.append(_relative((value or {}).get("path"), self._folder))
                unknown = self._label is None
                labels += [None] * len(table) if unknown else table[self._label].to_pylist()
        return paths, labels

    def __len__(self) -> int:
        return self._count

    def chunks(self) -> Iterator[BytesChunk]:
        """Images in the data set's order; a stream's classes become known as it is read.

        Raises:
            StoreError: a stream gives fewer or more images than it said.
        """
        seen, stream = 0, self._folder is None
        with _one_line(self.location):
            for batch in self._data.iter(batch_size=CHUNK_IMAGES):
                values = [value or {} for value in batch[self._column]]
                seen += len(values)
                if seen > self._count:
                    break
                if stream:
                    labels = [None] * len(values) if self._label is None else batch[self._label]
                    found, _ = targets_by_name(labels, self._names, self.location)
                    self.targets = [*self.targets[: seen - len(values)], *found]
                yield BytesChunk(
                    tuple(value.get("bytes") for value in values),
                    tuple(value.get("path") for value in values),
                )
        if seen != self._count:
            raise StoreError(
                f"{self.location} gave {seen} images and said that it has {self._count}: run the "
                "same command again"
            )

    def read(self, row: int) -> Content:
        """One image of a data set on disk, by its number."""
        with _one_line(self.location):
            value = self._data[row][self._column] or {}
        return next(BytesChunk((value.get("bytes"),), (value.get("path"),)).read())

    def stamp(self) -> str:
        """Of the folder's files; of a Hub data set its name alone."""
        if self._folder is None:
            return self.location
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return stamp_files(files, map(str, files))


def parse(location: str) -> tuple[str, str | None]:
    """`hf:PATH[:split]` -> (path or Hub name, split)."""
    place, _, split = location.removeprefix(PREFIX).partition(":")
    if not place:
        raise UsageError(f"{location} names no data set: expected hf:PATH or hf:org/name")
    return place, split or None


@contextlib.contextmanager
def _one_line(location: str) -> Iterator[None]:
    """The library's many errors as one that says which data set it was."""
    try:
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise needs_extra(location, "datasets", "data") from error
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{location} can't be read: {lines[0]}") from error


def _open(place: str, split: str | None, folder: Path | None, cache: str) -> Any:
    """The split, of the library's own type."""
    import datasets

    datasets.disable_progress_bars()
    if folder is None:
        if place.count("/") != 1 or place[0] in "./~":
            raise UsageError(
                f"{place} is neither a folder nor a Hub name: expected hf:PATH or hf:org/name"
            )
        found = datasets.load_dataset(place, streaming=True)
    elif any((folder / name).is_file() for name in SAVED):
        found = datasets.load_from_disk(place)
    elif any(folder.glob("*.py")):
        raise UsageError(
            f"{place} has a loading script, which is never run: save the data set with "
            "`save_to_disk` and give that folder"
        )
    else:
        found = datasets.load_dataset("imagefolder", data_dir=place, cache_dir=cache)
    if not isinstance(found, dict):
        if split is not None:
            raise UsageError(f"{place} has no splits: leave out :{split}")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        asked = f"no split {split!r}" if split else "several splits"
        raise UsageError(f"{place} has {asked}: choose one with hf:{place}:{'|'.join(found)}")
    return found[split]


def _count(location: str, found: Any) -> int:
    if hasattr(found, "__len__"):
        return len(found)
    known = (found.info.splits or {}).get(str(found.split))
    if known is None or not known.num_examples:
        raise UsageError(
            f"{location} doesn't say how many images it has: save it with `save_to_disk` and give "
            "that folder"
        )
    return int(known.num_examples)


def _typed(features: Any, kind: str) -> list[str]:
    """Columns of one of the library's types."""
    return [name for name, feature in features.items() if type(feature).__name__ == kind]


def _relative(path: str | None, folder: Path | None) -> str | None:
    """A file's name as it is on every machine: below the data set's folder, or the name alone."""
    if not path:
        return None
    found = Path(path)
    if folder is not None and found.is_absolute():
        root = folder.absolute()
        return found.relative_to(root).as_posix() if found.is_relative_to(root) else found.name
    return found.as_posix()
