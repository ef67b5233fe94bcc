"""Parquet files as a source, in Hugging Face's layout: a struct {bytes, path} and a class number.

Class names are those of the schema's metadata. Row groups are read by the workers.
"""

from __future__ import annotations

import functools
import json
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


@dataclass(frozen=True)
class ParquetChunk:
    """Some rows of one row group."""

    path: Path
    column: str
    group: int
    start: int
    stop: int

    def read(self) -> Iterator[Content]:
        """The images' bytes; where a row has none, why."""
        for value in _group(self.path, self.column, self.group)[self.start : self.stop]:
            data = value["bytes"].as_py() if value.is_valid else None
            yield data if data is not None else FileNotFoundError(2, "the row holds no bytes")


class ParquetSource:
    """The rows of parquet files.

    Args:
        location: as it was given. paths: the files, in order.
        label: column of the labels; None: `label`, or the only one with class names.
        names: of the classes, where the files name none.
    Raises:
        UsageError: a column is missing or of another kind; pyarrow is missing.
        StoreError: a file is damaged.
    """

    def __init__(
        self,
        location: str,
        paths: Sequence[Path],
        label: str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.location, self._paths = location, tuple(paths)
        self.name = self._paths[0].stem if len(self._paths) == 1 else Path(location).name
        schema = _open(self._paths[0]).schema_arrow
        features = _features(schema)
        self._column = _image_column(location, schema, features)
        typed = [n for n, kind in features.items() if kind.get("_type") == "ClassLabel"]
        column = pick_column(location, schema.names, typed, LABEL_COLUMNS, label)
        if names is None and column is not None:
            names = features.get(column, {}).get("names")
        own: list[str | None] = []
        shards: list[str] = []
        labels: list[int | str | None] = []
        self._groups: list[tuple[Path, int, int]] = []  # path, row group, rows
        for path in self._paths:
            file = _open(path)
            count = file.metadata.num_rows
            own += _read(path, file, f"{self._column}.path", count)
            labels += _read(path, file, column, count)
            shards += [path.stem] * count
            for group in range(file.num_row_groups):
                self._groups.append((path, group, file.metadata.row_group(group).num_rows))
        if not shards:
            raise UsageError(f"{location} holds no rows")
        self.keys = unique_keys(own, shards)
        self.targets, self.classes = targets_by_name(labels, names, location)

    def __len__(self) -> int:
        return len(self.keys)

    def chunks(self) -> Iterator[ParquetChunk]:
        """Rows in the order of the files."""
        for path, group, rows in self._groups:
            for start in range(0, rows, CHUNK_IMAGES):
                stop = min(start + CHUNK_IMAGES, rows)
                yield ParquetChunk(path, self._column, group, start, stop)

    def read(self, row: int) -> Content:
        """One image by its number; those of one row group after another are read once."""
        for path, group, rows in self._groups:
            if row < rows:
                return next(ParquetChunk(path, self._column, group, row, row + 1).read())
            row -= rows
        raise IndexError(f"{self.location} has {len(self)} rows")

    def stamp(self) -> str:
        """Of the files."""
        return stamp_files(self._paths, map(str, self._paths))


def _open(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise needs_extra(str(path), "pyarrow", "data") from error
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> StoreError:
    reason = str(error).strip().splitlines()[0]
    return StoreError(f"{path} is not a readable parquet file ({reason}): fetch it again")


def _features(schema: Any) -> dict[str, Any]:
    """What the `datasets` library notes of each column."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    kept = found.items() if isinstance(found, dict) else ()
    return {name: kind for name, kind in kept if isinstance(kind, dict)}


def _image_column(location: str, schema: Any, features: dict[str, Any]) -> str:
    typed = [name for name, kind in features.items() if kind.get("_type") == "Image"]
    name = pick_column(location, schema.names, typed[:1], IMAGE_COLUMNS)
    if name is None or not {"bytes", "path"} <= {field.name for field in schema.field(name).type}:
        raise UsageError(
            f"{location} has no image column: expected a struct of bytes and path named `image`, "
            f"found {', '.join(schema.names)}"
        )
    return name


def _read(path: Path, file: Any, column: str | None, count: int) -> list[Any]:
    """A column's values, None where there is no such column."""
    if column is None:
        return [None] * count
    import pyarrow

    try:
        values = file.read(columns=[column]).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    kind = values.type
    if pyarrow.types.is_struct(kind):
        return [value["path"] for value in values.to_pylist()]
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_string(kind)):
        raise UsageError(f"{path}: column {column} is {kind}; expected class numbers or names")
    return values.to_pylist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=2)
def _group(path: Path, column: str, group: int) -> Any:
    """The image column of a row group: kept, for a worker's next rows are mostly of the same."""
    import pyarrow

    try:
        return _open(path).read_row_group(group, columns=[column]).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
