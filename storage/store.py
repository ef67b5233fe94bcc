"""The label store: a folder that any Zarr v3 reader opens, written in whole blocks.

A block is `block_images` images with all their views. `write_block` puts each of its files in
place atomically and leaves a receipt last, so a block either counts as done or is written again;
what was killed in between changes no byte of the finished store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage import receipts
from storage.atomic import TEMPORARY, make_folder, write_atomic
from storage.block import BlockData, block_arrays
from storage.certificate import Divergences, measure_sample
from storage.chunks import Array, ArrayReader, encode_block
from storage.codecs import NO_CODE
from storage.decode import Part, read_parts
from storage.dictionary import DictionaryCodec, ImageTail
from storage.errors import (
    CorruptStore,
    IncompleteStore,
    StoreError,
    StoreMismatch,
    UsageError,
)
from storage.format import ATTRIBUTE, StoreSpec, check_version, differences, json_bytes
from storage.images import ImageStatus
from storage.label_reader import LabelReader
from storage.layout import array_layouts, group_metadata, group_paths
from storage.lists import mean_tails
from storage.local import read_local, write_local
from storage.measure import measure_block
from storage.tables import ImageTable, Plane, decode_keys

ROOT_METADATA = "zarr.json"
MANIFEST = "manifest.json"


class LabelStore:
    """An open store. Made by `create`, `open` or `open_or_create`."""

    def __init__(self, path: Path, spec: StoreSpec, attributes: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.attributes = attributes  # ours, as the root group holds them
        self._layouts = array_layouts(spec)
        self._readers: dict[str, ArrayReader] = {}
        self._reader = LabelReader(self)
        self._status: npt.NDArray[np.uint8] | None = None

    @classmethod
    def create(cls, path: Path | str, spec: StoreSpec) -> LabelStore:
        """Start an empty store; a folder that already is one with these settings is opened.

        Raises:
            StoreMismatch: the folder holds a store with other settings.
            StoreError: the folder holds something else.
        """
        path = Path(path)
        if (path / ROOT_METADATA).exists():
            return cls.open_or_create(path, spec)
        if path.exists() and (not path.is_dir() or any(_foreign(path, spec))):
            raise StoreError(
                f"{path} exists and is not a label store: choose another --out, or move it away"
            )
        make_folder(path)
        for group in group_paths(spec):
            write_atomic(path / group / ROOT_METADATA, json_bytes(group_metadata({})))
        for layout in array_layouts(spec).values():
            write_atomic(path / layout.path / ROOT_METADATA, json_bytes(layout.metadata()))
        attributes = {"settings": spec.settings(), "software": receipts.software()}
        # last, so that a folder with a root is a whole empty store
        write_atomic(path / ROOT_METADATA, json_bytes(group_metadata({ATTRIBUTE: attributes})))
        return cls(path, spec, attributes)

    @classmethod
    def open(cls, path: Path | str) -> LabelStore:
        """Open an existing store; only its root metadata is read.

        Raises:
            StoreError: not a store.
            FormatVersion: written by a newer release.
            CorruptStore: its root metadata is damaged.
        """
        path = Path(path)
        root = path / ROOT_METADATA
        if not root.is_file():
            raise StoreError(
                f"{path} is not a label store (no {ROOT_METADATA} in it): "
                "give the folder that `labelgen run` wrote"
            )
        try:
            attributes = json.loads(root.read_bytes())["attributes"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStore(f"{root} can't be read ({error}): fetch the store again") from error
        if not isinstance(attributes, dict) or ATTRIBUTE not in attributes:
            raise StoreError(f"{path} is a Zarr group, but not a label store of teachonce")
        ours = attributes[ATTRIBUTE]
        try:
            check_version(ours["settings"].get("format_version"))
            measured = ours.get("measured", {}).get("teachers", {})
            spec = StoreSpec.from_settings(ours["settings"], measured)
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise CorruptStore(f"{root} can't be read ({error!r}): fetch it again") from error
        return cls(path, spec, ours)

    @classmethod
    def open_or_create(cls, path: Path | str, spec: StoreSpec) -> LabelStore:
        """Open the store to go on with it, or start it.

        Raises:
            StoreMismatch: other settings; the message names every one that differs.
        """
        path = Path(path)
        if not (path / ROOT_METADATA).exists():
            return cls.create(path, spec)
        store = cls.open(path)
        found = differences(spec.settings(), store.spec.settings())
        if found:
            raise StoreMismatch(
                f"{path} was made with other settings than asked for: {'; '.join(found)}. "
                "Use the store's settings, choose another --out, or replace it with --overwrite"
            )
        return store

    @property
    def blocks(self) -> int:
        """Work items of the whole store."""
        return self.spec.num_blocks

    def block_rows(self, block: int) -> range:
        """Rows of one block."""
        return self.spec.block_rows(block)

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
        segments = range(self.spec.num_segments)
        return [
            path
            for layout in self._layouts.values()
            for path in layout.object_paths(block, segments)
        ]

    def missing_blocks(self) -> list[int]:
        """Blocks that have to be written (again).

        A block is there when its receipt (of a sealed store: the manifest) lists all its files
        and each has the listed size. Contents are `verify`'s business.
        """
        if self.is_sealed:
            from storage.manifest import read_manifest

            sealed = read_manifest(self.path).sizes()
            return [b for b in range(self.blocks) if not self._has_objects(b, sealed)]
        return [b for b in range(self.blocks) if not self._has_block(b)]

    def _has_block(self, block: int) -> bool:
        receipt = receipts.read_receipt(self.path, block)
        return receipt is not None and self._has_objects(block, receipt.sizes())

    def _has_objects(self, block: int, sizes: Mapping[str, int]) -> bool:
        for name in self.block_objects(block):
            try:
                if (self.path / name).stat().st_size != sizes.get(name):
                    return False
            except OSError:
                return False
        return True

    def write_block(self, block: int, data: BlockData, device: str) -> None:
        """Write all files of one block, then its receipt. Safe on any thread and process.

        Rows whose status isn't OK get fill values for views and labels, whatever `data` holds.
        In a sealed store only a lost block can be written, with the very bytes it had.

        Raises:
            UsageError: data of a wrong shape or type, or out of range.
            StoreError: a sealed store, and the block is there or its bytes would change.
            OSError: the system's own (no space left ...); the block then counts as missing.
        """
        rows = self.block_rows(block)
        arrays = block_arrays(self.spec, rows, data)
        objects = {
            name: content
            for path, layout in self._layouts.items()
            for name, content in encode_block(layout, rows, arrays[path]).items()
        }
        samples = {
            name: measure_sample(codec, data.labels[name], self._tails_in(name, arrays), sample)
            for name, sample in data.samples.items()
            for codec in [self.spec.teachers[name].codec]
        }
        self.put_block(block, objects, arrays, device, samples)

    def _tails_in(self, teacher: str, arrays: Mapping[str, Array]) -> ImageTail | None:
        """Mean tails of a block's images, where the codec has them."""
        codec, path = self.spec.teachers[teacher].codec, f"labels/{teacher}"
        if not isinstance(codec, DictionaryCodec) or not codec.spread_classes:
            return None
        return mean_tails(codec, arrays[f"{path}/classes"], arrays[f"{path}/spread"])

    def put_block(
        self,
        block: int,
        objects: Mapping[str, bytes],
        arrays: Mapping[str, Array],
        device: str,
        samples: Mapping[str, Divergences] | None = None,
    ) -> None:
        """Put a block's files in place, then its receipt; `write_block` for encoded blocks.

        Args:
            objects: every file's bytes by path; the caller answers for their content.
            arrays: the values in them, by array path.
            samples: for the certificate, by teacher.
        Raises:
            StoreError: a sealed store, and the block's bytes would change.
        """
        rows = self.block_rows(block)
        assert sorted(objects) == sorted(self.block_objects(block)), "zarr wrote other files"
        entries = {
            name: (len(content), hashlib.sha256(content).hexdigest())
            for name, content in objects.items()
        }
        if self.is_sealed:
            self._check_repair(block, entries)
        receipts.remove_receipt(self.path, block)
        for name, content in objects.items():
            write_atomic(self.path / name, content)
        self._status, self._reader = None, LabelReader(self)
        receipts.write_receipt(
            self.path,
            receipts.Receipt(
                block=block,
                objects=entries,
                masked=receipts.masked_rows(
                    rows, decode_keys(arrays["images/key"]), arrays["images/status"]
                ),
                sums=measure_block(self.spec, arrays),
                samples=dict(samples or {}),
                device=device,
                software=receipts.software(),
            ),
        )

    def _check_repair(self, block: int, entries: Mapping[str, tuple[int, str]]) -> None:
        from storage.manifest import read_manifest

        sealed = read_manifest(self.path).objects
        changed = [name for name, entry in entries.items() if sealed.get(name) != entry]
        if changed:
            raise StoreError(
                f"{self.path} is sealed, and block {block} would change {changed[0]}: "
                "write a new store with another --out"
            )

    def read_images(self) -> ImageTable:
        """All images of the store.

        Raises:
            IncompleteStore: a block has not been written yet.
            CorruptStore: a file is missing from a sealed store, or doesn't decode.
        """
        columns = {name: self._read_all(f"images/{name}") for name in
                   ("digest", "key", "size", "target", "status")}  # fmt: skip
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
        paths = ["views/box", "views/flip", *labels]
        box, flip, *found = self.read_arrays(paths, slice(None), views)
        self._check_filled("views/flip", flip)
        if not found:
            return Plane(box, flip)
        assert teacher is not None
        self._check_filled(f"labels/{teacher}/tail", found[-1])
        read = self._reader.labels(teacher, found)
        return Plane(box, flip, read.index, read.code, read.tail)

    def read_image_tails(self, teacher: str) -> ImageTail | None:
        """Mean tails of all images; None where the teacher's codec keeps none."""
        return self._reader.image_tails(teacher)

    def prefetch(self, first: int, count: int, teacher: str | None = None) -> None:
        """Say which plane will be read next; stores that lie elsewhere begin to fetch it."""

    def write_local(
        self, data_folder: Path | str | None, run: dict[str, Any] | None = None
    ) -> None:
        """Note where the images lay (a hint for the trainer) and what this run was."""
        write_local(self.path, data_folder, run)

    def local_data_folder(self) -> Path | None:
        """Where the images lay when they were labelled, if this machine still has that folder."""
        return read_local(self.path)

    def _read_all(self, path: str) -> Array:
        return self.read_array(path, slice(None))

    def read_array(self, path: str, rows: slice, views: slice | None = None) -> Array:
        """A part of one array, after a look whether all its files are there.

        `labels/<teacher>/index` and `gap` can be read whatever codec the labels have.
        """
        if path not in self._layouts:
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
            if path not in self._readers:
                self._readers[path] = ArrayReader(self.path, self._layouts[path])
        direct = [path for path in paths if self._readers[path].is_direct]
        parts = [Part(self._layouts[path], rows, views) for path in direct]
        found = dict(zip(direct, read_parts(self.path, parts), strict=True))
        return [
            found[path] if path in found else self._readers[path].read(rows, views)
            for path in paths
        ]

    def _files_of(self, path: str, rows: slice, views: slice | None) -> Iterator[tuple[int, str]]:
        """(block, file) of a part of one array."""
        spec = self.spec
        first, last, _ = rows.indices(spec.num_images)
        segments = range(spec.num_segments)
        if views is not None:
            segments = range(views.start // spec.segment_views,
                             -(-views.stop // spec.segment_views))  # fmt: skip
        for block in range(first // spec.block_images, -(-last // spec.block_images)):
            for name in self._layouts[path].object_paths(block, segments):
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


def _foreign(path: Path, spec: StoreSpec) -> list[str]:
    """What a folder without a root holds besides the beginnings of a store."""
    ours = {group.split("/")[0] for group in group_paths(spec)}
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(TEMPORARY)]
    return [name for name in names if name not in ours]
