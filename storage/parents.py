"""Stores that a new store is made from, read so that no damage passes into it.

Every file is compared with the parent's manifest before any of it is used: what is copied or
decoded is what the parent's Merkle root names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import CorruptStore, IncompleteStore
from storage.layout import array_layouts
from storage.manifest import Manifest, file_entry, store_manifest
from storage.remote.opening import as_store
from storage.store import ROOT_METADATA, LabelStore
from storage.tables import ImageTable, decode_keys
from storage.view_arrays import SIZE, box_paths, convert_views, is_box_path

Array = npt.NDArray[Any]
FIRST_VIEW = "first_view"  # root attribute: the sampler's number of the store's first view


class Parent:
    """A sealed store, read only."""

    def __init__(self, store: LabelStore, manifest: Manifest) -> None:
        self.store = store
        self.spec = store.spec
        self.manifest = manifest
        self.root = manifest.root
        self._layouts = array_layouts(store.spec)
        self._checked: set[str] = set()
        self._images: ImageTable | None = None

    @classmethod
    def open(cls, path: LabelStore | Path | str) -> Parent:
        """Open a sealed store, on this machine or elsewhere.

        Raises:
            StoreError: no store.
            IncompleteStore: it isn't sealed.
            CorruptStore: its settings aren't those of its manifest, or it lists other files.
        """
        store = as_store(path)
        if not store.is_sealed:
            raise IncompleteStore(
                f"{store.path} is not sealed: finish it with the same `labelgen run`, or close it "
                "with `labelstore seal`, then use it"
            )
        parent = cls(store, store_manifest(store))
        parent.check(ROOT_METADATA)
        return parent

    @property
    def first_view(self) -> int:
        """Number of the store's first view in the sampler's stream."""
        return first_view(self.store)

    def check(self, name: str) -> None:
        """Compare a file with the manifest, once.

        Raises:
            CorruptStore: it is missing or has other bytes.
        """
        if name in self._checked:
            return
        self.store.fetch_files([name])
        path = self.store.path / name
        if not path.is_file() or file_entry(path) != self.manifest.objects.get(name):
            raise self._damaged(name)
        self._checked.add(name)

    def content(self, name: str) -> bytes:
        """A file's bytes, compared with the manifest."""
        self.store.fetch_files([name])
        try:
            data = (self.store.path / name).read_bytes()
        except FileNotFoundError:
            raise self._damaged(name) from None
        if (len(data), hashlib.sha256(data).hexdigest()) != self.manifest.objects.get(name):
            raise self._damaged(name)
        return data

    def gather(self, path: str, rows: npt.NDArray[np.int64], first: int, count: int) -> Array:
        """Some rows of one array, in their order; one block of the parent is held at a time.

        Args:
            path: one of its arrays; boxes and flips also as those of the other view codec.
            rows: row numbers of the parent, in any order.
            first, count: which of the parent's views (ignored where there is no view axis).
        """
        if path not in self._layouts and is_box_path(path):
            return self._gather_views(path, rows, first, count)
        layout, spec = self._layouts[path], self.spec
        views = slice(first, first + count) if layout.shard else None
        inner = (count, *layout.shape[2:]) if layout.shard else layout.shape[1:]
        segments = layout.segments_of(first, first + count) if layout.shard else range(1)
        found = np.empty((len(rows), *inner), layout.dtype)
        self.check(f"{path}/{ROOT_METADATA}")
        for block in np.unique(rows // spec.block_images).tolist():
            names = layout.object_paths(block, segments)
            self.store.fetch_files(names)
            for name in names:
                self.check(name)
            inside = np.flatnonzero(rows // spec.block_images == block)
            wanted = rows[inside]
            low, high = int(wanted.min()), int(wanted.max()) + 1
            values = self.store.read_array(path, slice(low, high), views)
            found[inside] = values[wanted - low]
        return found

    def _gather_views(
        self, path: str, rows: npt.NDArray[np.int64], first: int, count: int
    ) -> Array:
        found = {name: self.gather(name, rows, first, count) for name in box_paths(self.spec)}
        size = self.gather(SIZE, rows, 0, 0)
        return convert_views(self.spec, found, size, path, str(self.store.path))

    def images(self) -> ImageTable:
        """The images of the store; read once."""
        if self._images is None:
            rows = np.arange(self.spec.num_images)
            digest, key, size, target, status = (
                self.gather(f"images/{name}", rows, 0, 0)
                for name in ("digest", "key", "size", "target", "status")
            )
            self._images = ImageTable(digest, decode_keys(key), size, target, status)
        return self._images

    def summary(self) -> dict[str, Any]:
        """What a descendant keeps of this store."""
        found = {
            "root": self.root,
            "num_images": self.spec.num_images,
            "num_views": self.spec.num_views,
            "first_view": self.first_view,
            "dataset_fingerprint": self.store.dataset_fingerprint,
            "teachers": {name: t.digest for name, t in sorted(self.spec.teachers.items())},
            "provenance": {
                name: value for name, value in self.manifest.provenance.items() if name != "masked"
            },
        }
        certificates = {
            name: teacher.measured["certificate"]
            for name, teacher in sorted(self.spec.teachers.items())
            if teacher.measured.get("certificate")
        }
        if certificates:
            found["certificates"] = certificates
        origin = self.store.attributes.get("origin")
        if origin:
            found["origin"] = {k: v for k, v in origin.items() if k != "ancestors"}
        return found

    def _damaged(self, name: str) -> CorruptStore:
        return CorruptStore(
            f"{self.store.path / name} is not the file that was sealed: run `labelstore verify "
            "--full`, and fetch the store again"
        )


def first_view(store: LabelStore) -> int:
    """Number of a store's first view in the sampler's stream; 0 unless it was cut or continues."""
    return int(store.attributes.get(FIRST_VIEW, 0))
