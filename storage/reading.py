"""Reading an open store: images, planes of labels, targets of any rows.

Every file is looked for before it is read, and nothing that a damaged store says is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.block import bad_keys
from storage.chunks import Array, ArrayReader
from storage.codecs import NO_CODE
from storage.decode import Part, read_parts, read_rows, row_sources
from storage.dictionary import ImageTail
from storage.errors import CorruptStore, IncompleteStore, StoreError, UsageError
from storage.format import StoreSpec
from storage.images import ImageStatus
from storage.label_reader import LabelReader
from storage.layout import array_layouts
from storage.tables import ImageTable, Plane, decode_keys
from storage.target_reader import Rows, TargetReader
from storage.view_arrays import ViewReader, box_paths, is_box_path

MANIFEST = "manifest.json"


class StoreReading:
    """The reading half of `LabelStore`."""

    def __init__(self, path: Path, spec: StoreSpec, attributes: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.attributes = attributes  # ours, as the root group holds them
        self.layouts = array_layouts(spec)  # of every array with images, by path
        self._readers: dict[str, ArrayReader] = {}
        self._reader = LabelReader(self)
        self._view_reader = ViewReader(self)
        self._target_reader = TargetReader(self)
        self._status: npt.NDArray[np.uint8] | None = None

    @property
    def place(self) -> str:
        """Where the store lies, as people are told: its folder, or the address of a remote one."""
        return str(self.path)

    @property
    def blocks(self) -> int:
        """Work items of the whole store."""
        return self.spec.num_blocks

    def block_rows(self, block: int) -> range:
        """Rows of one block."""
        return self.spec.block_rows(block)

    def forget(self) -> None:
        """Read again what is kept in memory: a block has changed."""
        self._status, self._reader, self._view_reader = None, LabelReader(self), ViewReader(self)

    @property
    def is_sealed(self) -> bool:
        """Whether the store is complete and has its manifest."""
        return (self.path / MANIFEST).is_file()

    @property
    def dataset_fingerprint(self) -> str | None:
        """Which set of images this is (see `format.dataset_fingerprint`); None before sealing."""
        found: str | None = self.attributes.get("measured", {}).get("dataset_fingerprint")
        return found

    def block_objects(self, block: int) -> list[str]:
        """Paths of all files of one block, relative to the store."""
        self.spec.block_rows(block)
        return [path for layout in self.layouts.values() for path in layout.block_objects(block)]

    def read_images(self) -> ImageTable:
        """All images of the store.

        Raises:
            IncompleteStore: a block has not been written yet.
            CorruptStore: a file is missing from a sealed store, or doesn't decode, or a key leads
                out of any image folder.
        """
        columns = {name: self._read_all(f"images/{name}") for name in
                   ("digest", "key", "size", "target", "status")}  # fmt: skip
        bad = np.flatnonzero(bad_keys(columns["key"]))
        if bad.size:
            raise CorruptStore(
                f"{self.path / 'images/key'}: the key of image {bad[0]} is no path below an image "
                "folder: run `labelstore verify --full`"
            )
        return ImageTable(
            digest=columns["digest"],
            key=decode_keys(columns["key"]),
            size=columns["size"],
            target=columns["target"],
            status=columns["status"],
        )

    def read_status(self) -> npt.NDArray[np.uint8]:
        """u1 [N], an `ImageStatus` each; read once."""
        if self._status is None:
            self._status = self._read_all("images/status")
        return self._status

    def read_plane(self, first: int, count: int, teacher: str | None = None) -> Plane:
        """Views `first` to `first + count - 1` of all images, in memory.

        Fast where the views are whole planes of `spec.plane_views`.

        Args:
            teacher: whose labels to read too.
        Raises:
            UsageError: views or a teacher that the store doesn't have.
            IncompleteStore: a block has not been written yet.
            CorruptStore: a file is missing from a sealed store or doesn't decode, or an image
                that counts as labelled has no labels.
        """
        if count < 1 or first < 0 or first + count > self.spec.num_views:
            raise UsageError(
                f"views {first} to {first + count - 1}; the store has views 0 to "
                f"{self.spec.num_views - 1}"
            )
        views = slice(first, first + count)
        if teacher is not None and teacher not in self.spec.teachers:
            raise UsageError(
                f"{self.path} has no labels of teacher {teacher!r}; it has "
                f"{', '.join(sorted(self.spec.teachers)) or 'none'}"
            )
        parts = self._reader.parts(teacher) if teacher else ()
        labels = [f"labels/{teacher}/{part}" for part in parts]
        draws = ["views/draw"] if self.spec.augment else []
        kept = box_paths(self.spec)
        found = self.read_arrays([*kept, *draws, *labels], slice(None), views)
        box, flip = self._view_reader.views(found[: len(kept)])
        del found[: len(kept)]
        self._check_filled(kept[-1], flip)
        draw = found.pop(0) if draws else None
        if not found:
            return Plane(box, flip, draw=draw)
        assert teacher is not None
        self._check_filled(f"labels/{teacher}/tail", found[-1])
        read = self._reader.labels(teacher, found)
        return Plane(box, flip, read.index, read.code, read.tail, draw)

    def read_image_tails(self, teacher: str) -> ImageTail | None:
        """Mean tails of all images; None where the teacher's codec keeps none."""
        return self._reader.image_tails(teacher)

    def prefetch(self, first: int, count: int, teacher: str | None = None) -> None:
        """Say which plane will be read next; stores that lie elsewhere begin to fetch it."""

    def read_target(
        self, path: str, rows: Rows, views: slice | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Vectors of some rows and views, float32 [rows, views, *shape] by part.

        Only the chunks that hold them are read. Rows of masked images are NaN, others never.

        Args:
            path: the target's, such as "features/pooled".
            rows: a slice, or row numbers in any order.
            views: step 1; None: all that have the target.
        Raises:
            UsageError: no such target, row or view.
            IncompleteStore: a block has not been written yet.
            CorruptStore: a file is missing or damaged, or values are.
        """
        return self._target_reader.read(path, rows, views)

    def read_constant(self, path: str, name: str) -> Array:
        """A target's constant, compared with the hash in the settings; read once, don't write.

        Raises:
            UsageError: the target has none of this name.
            IncompleteStore: not written yet. CorruptStore: missing or not the settings'.
        """
        return self._target_reader.constant(path, name)

    def target_file(self, path: str, name: str) -> bytes:
        """A target's file, compared with the hash in the settings.

        Raises:
            As `read_constant`.
        """
        return self._target_reader.file(path, name)

    def fetch_files(self, names: Sequence[str]) -> None:
        """See to it that files are in `path`; stores that lie elsewhere fetch them."""

    def _read_all(self, path: str) -> Array:
        return self.read_array(path, slice(None))

    def read_array(self, path: str, rows: slice, views: slice | None = None) -> Array:
        """A part of one array, after a look whether all its files are there.

        `labels/<teacher>/index` and `gap` can be read whatever codec the labels have, `views/box`
        and `flip` whatever codec the views have.
        """
        if path not in self.layouts and is_box_path(path):
            return self._view_reader.read_logical(path, rows, views)
        if path not in self.layouts:
            return self._reader.read_logical(path, rows, views)
        return self.read_arrays([path], rows, views)[0]

    def read_arrays(
        self, paths: Sequence[str], rows: slice, views: slice | None = None
    ) -> list[Array]:
        """The same part of several arrays (all with a view axis, or `views` None)."""
        for path in paths:
            for block, name in self._files_of(path, rows, views):
                if not (self.path / name).is_file():
                    raise self._missing(block, name)
            self._reader_of(path)
        direct = [path for path in paths if self._readers[path].is_direct]
        parts = [Part(self.layouts[path], rows, views) for path in direct]
        found = dict(zip(direct, read_parts(self.path, parts), strict=True))
        return [
            found[path] if path in found else self._readers[path].read(rows, views)
            for path in paths
        ]

    def read_rows(
        self, paths: Sequence[str], rows: npt.NDArray[np.int64], views: slice
    ) -> list[Array]:
        """Some rows, in their order, of several arrays with views; only the chunks they touch."""
        found = []
        for path in paths:
            layout = self.layouts[path]
            for name in row_sources(layout, rows, views):
                if not (self.path / name).is_file():
                    raise self._missing(int(name.removeprefix(f"{path}/c/").split("/")[0]), name)
            assert self._reader_of(path).is_direct, "targets have codecs of ours"
            found.append(read_rows(self.path, layout, rows, views))
        return found

    def _reader_of(self, path: str) -> ArrayReader:
        if path not in self._readers:
            self._readers[path] = ArrayReader(self.path, self.layouts[path])
        return self._readers[path]

    def _files_of(self, path: str, rows: slice, views: slice | None) -> Iterator[tuple[int, str]]:
        """(block, file) of a part of one array."""
        spec = self.spec
        first, last, _ = rows.indices(spec.num_images)
        layout = self.layouts[path]
        segments = range(layout.num_segments)
        if views is not None and layout.shard is not None:
            segments = layout.segments_of(views.start, views.stop)
        for block in range(first // spec.block_images, -(-last // spec.block_images)):
            for name in layout.object_paths(block, segments):
                yield block, name

    def _missing(self, block: int, name: str) -> StoreError:
        if self.is_sealed:
            return CorruptStore(f"{self.path / name} is missing: fetch the store again")
        return IncompleteStore(
            f"{self.path}: block {block} of {self.blocks} has not been written "
            "(run the same `labelgen run` again to finish the store)"
        )

    def _check_filled(self, path: str, values: npt.NDArray[np.uint8]) -> None:
        """Fill values stand exactly where the image is masked."""
        masked = (self.read_status() != ImageStatus.OK)[:, None]
        wrong = np.flatnonzero(((values == NO_CODE) != masked).any(axis=1))
        if wrong.size:
            raise CorruptStore(
                f"{self.path / path}: image {wrong[0]} has status {self.read_status()[wrong[0]]} "
                f"but {'no values' if not masked[wrong[0], 0] else 'values'} ({wrong.size} such "
                "images): run `labelstore verify --full`"
            )
