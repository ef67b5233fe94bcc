"""Targets of an open store: vectors of any rows and views, constants and files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.decode import Part, read_parts
from storage.errors import CorruptStore, IncompleteStore, UsageError
from storage.images import ImageStatus
from storage.layout import constant_layouts, constant_objects
from storage.targets.kinds import value_faults
from storage.targets.record import TargetRecord, VectorPart
from storage.targets.vectors import decode_vectors, filled_vectors

if TYPE_CHECKING:
    from storage.reading import StoreReading

Rows = slice | npt.NDArray[np.integer[Any]]


class TargetReader:
    """Reads targets; keeps constants in memory."""

    def __init__(self, store: StoreReading) -> None:
        self._store = store
        self._constants: dict[tuple[str, str], Array] = {}

    def record(self, path: str) -> TargetRecord:
        """The target at `path`.

        Raises:
            UsageError: the store has none there.
        """
        targets = self._store.spec.targets
        if path not in targets:
            raise UsageError(
                f"{self._store.path} has no target {path!r}; it has "
                f"{', '.join(sorted(targets)) or 'none'}"
            )
        return targets[path]

    def read(
        self, path: str, rows: Rows, views: slice | None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """`LabelStore.read_target`."""
        record = self.record(path)
        numbers, wanted = self._numbers(rows), self._views(record, views)
        names = list(record.arrays())
        found = self._store.read_rows([f"{path}/{name}" for name in names], numbers, wanted)
        arrays = dict(zip(names, found, strict=True))
        masked = self._store.read_status()[numbers] != ImageStatus.OK
        for part in record.parts:
            self._check(record, part, arrays, numbers, masked)
        return {part.name: decode_vectors(part, arrays) for part in record.parts}

    def constant(self, path: str, name: str) -> Array:
        """`LabelStore.read_constant`."""
        record = self.record(path)
        if name not in record.constants:
            raise UsageError(
                f"{path} has no constant {name!r}; it has "
                f"{', '.join(sorted(record.constants)) or 'none'}"
            )
        if (path, name) not in self._constants:
            layout = constant_layouts(self._store.spec)[f"{path}/{name}"]
            self._expect_file(path, layout.object_paths(0)[0])
            values = read_parts(self._store.path, [Part(layout, slice(None), None)])[0]
            if not record.constants[name].holds(values):
                raise CorruptStore(
                    f"{self._store.path / path / name} is not the constant that the store's "
                    "settings name (SHA-256 differs): fetch the store again"
                )
            values.flags.writeable = False
            self._constants[path, name] = values
        return self._constants[path, name]

    def file(self, path: str, name: str) -> bytes:
        """`LabelStore.target_file`."""
        record = self.record(path)
        if name not in record.files:
            raise UsageError(
                f"{path} has no file {name!r}; it has {', '.join(sorted(record.files)) or 'none'}"
            )
        self._expect_file(path, f"{path}/{name}")
        data = (self._store.path / path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != record.files[name]:
            raise CorruptStore(
                f"{self._store.path / path / name} is not the file that the store's settings name "
                "(SHA-256 differs): fetch the store again"
            )
        return data

    def missing(self) -> list[str]:
        """Targets that lack a constant or file."""
        return [
            path
            for path, record in sorted(self._store.spec.targets.items())
            if not all((self._store.path / name).is_file() for name in constant_objects(record))
        ]

    def _expect_file(self, path: str, name: str) -> None:
        self._store.fetch_files([name])
        if (self._store.path / name).is_file():
            return
        if self._store.is_sealed:
            raise CorruptStore(f"{self._store.path / name} is missing: fetch the store again")
        raise IncompleteStore(
            f"{self._store.path}: what {path} shares has not been written yet (run the same "
            "`labelgen` command again)"
        )

    def _numbers(self, rows: Rows) -> npt.NDArray[np.int64]:
        count = self._store.spec.num_images
        if isinstance(rows, slice):
            return np.arange(*rows.indices(count), dtype=np.int64)
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise UsageError(f"rows are {given.dtype} {list(given.shape)}; expected integers")
        numbers: npt.NDArray[np.int64] = given.astype(np.int64)
        outside = (numbers < 0) | (numbers >= count)
        if outside.any():
            raise UsageError(f"row {numbers[outside][0]}; the store has rows 0 to {count - 1}")
        return numbers

    def _views(self, record: TargetRecord, views: slice | None) -> slice:
        if views is None:
            return slice(0, record.views)
        first, last = views.start or 0, record.views if views.stop is None else views.stop
        if views.step not in (None, 1) or not 0 <= first < last <= record.views:
            raise UsageError(
                f"views {first}:{last} of {record.path}; it has views 0:{record.views}, step 1"
            )
        return slice(first, last)

    def _check(
        self,
        record: TargetRecord,
        part: VectorPart,
        arrays: dict[str, Array],
        rows: npt.NDArray[np.int64],
        masked: npt.NDArray[np.bool_],
    ) -> None:
        """Every labelled image has values, every masked one has none."""
        where = None
        for name, bad, what in value_faults(record, part, arrays):
            wrong = bad.any(axis=tuple(range(1, bad.ndim))) & ~masked
            if wrong.any():
                where, found = rows[wrong][0], f"{name} {what}"
                break
        else:
            hidden = {name: values[masked] for name, values in arrays.items()}
            filled = filled_vectors(part, hidden)
            if not filled.all():
                where, found = rows[masked][~filled][0], "it is masked but has values"
        if where is not None:
            raise CorruptStore(
                f"{self._store.path / record.path / part.name}: image {where}: {found}: run "
                "`labelstore verify --full`"
            )
