"""A sealed label store that lies elsewhere, read through the local cache.

Opening fetches the manifest and the metadata. Reading fetches what the read needs: whole files
checked against their SHA-256, or where only some planes of a file are wanted and the publisher
gave digests of chunks, those chunks.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.atomic import write_atomic
from storage.block import BlockData
from storage.block_values import AddedBlock
from storage.chunks import Array
from storage.decode import row_sources
from storage.errors import CorruptStore, StoreError, StoreMismatch, TeachonceError
from storage.manifest import CARD, CHUNKS, Manifest, expected_objects, parse_manifest
from storage.receipts import Receipt
from storage.remote.cache import STORES, Cache
from storage.remote.digests import digests_from_bytes, sharded_files
from storage.remote.location import RemoteError
from storage.remote.transport import Cancelled, Transport
from storage.shards import chunks_per_shard, held_chunks
from storage.store import MANIFEST, ROOT_METADATA, LabelStore
from storage.threads import for_each

MOST_MANIFEST = 1 << 30
MOST_METADATA = 64 << 20
MOST_CARD = 16 << 20
EXIT_WAIT = 5.0


class RemoteStore(LabelStore):
    """A `LabelStore` whose files come from a `Transport` when they are first read.

    `path` is its folder in the cache. It can't be written.
    """

    transport: Transport
    manifest: Manifest
    cache: Cache
    whole: bool
    _digests: dict[str, list[bytes]]
    _ahead: threading.Thread | None

    @classmethod
    def connect(
        cls,
        transport: Transport,
        cache: Path,
        limit: int,
        root: str | None = None,
        whole: bool = False,
    ) -> RemoteStore:
        """Open the store at a transport's URL.

        Args:
            cache: folder of all cached stores; limit: bytes to keep there.
            root: the Merkle root it must have.
            whole: fetch whole files only, each checked against the manifest.
        Raises:
            RemoteError: unreachable, or not a sealed store.
            StoreMismatch: another root than asked for.
            CorruptStore: manifest or metadata are damaged.
            FormatVersion: written by a newer release.
        """
        manifest, data = _fetch_manifest(transport, cache)
        if root is not None and manifest.root != root.lower():
            raise StoreMismatch(
                f"{transport.url} has the root {manifest.root}, not {root}: it is another store, "
                "or another version of it"
            )
        name = hashlib.sha256(f"{transport.url}\n{manifest.root}".encode()).hexdigest()[:24]
        folder = cache / STORES / name
        files = Cache(folder, transport, limit)
        write_atomic(folder / MANIFEST, data)
        metadata = [n for n in manifest.objects if n.split("/")[-1] == ROOT_METADATA]
        if ROOT_METADATA not in metadata:
            raise CorruptStore(f"{transport.url}/{MANIFEST} doesn't name {ROOT_METADATA}")
        for n in metadata:
            if manifest.objects[n][0] > MOST_METADATA:
                raise CorruptStore(f"{transport.url}/{n}: {manifest.objects[n][0]:,} bytes of JSON")
        for_each(metadata, lambda n: files.need_whole(n, *manifest.objects[n]))
        opened = LabelStore.open(folder)
        _check_names(transport.url, opened, manifest)
        store = cls(folder, opened.spec, opened.attributes)
        store.transport, store.manifest, store.cache = transport, manifest, files
        store.whole, store._ahead = whole, None
        store._digests = {} if whole else _fetch_digests(store)
        atexit.register(_stop, weakref.ref(store))
        return store

    @property
    def place(self) -> str:
        """The store's address."""
        return self.transport.url

    @property
    def is_sealed(self) -> bool:
        """Only sealed stores are read from elsewhere."""
        return True

    def missing_blocks(self, written: Mapping[int, Receipt] | None = None) -> list[int]:
        """None: the manifest names the files of every block."""
        return []

    def write_block(self, block: int, data: BlockData, device: str) -> None:
        """Refused.

        Raises:
            StoreError: always.
        """
        raise self._read_only()

    def write_constants(self, path: str, constants: Any = None, files: Any = None) -> None:
        """Refused, as `write_block`."""
        raise self._read_only()

    def put_added(self, block: int, data: AddedBlock, device: str) -> None:
        """Refused, as `write_block`."""
        raise self._read_only()

    def missing_constants(self) -> list[str]:
        """None: the manifest names them all."""
        return []

    def _read_only(self) -> StoreError:
        return StoreError(f"{self.transport.url} can't be written: pull it, then write the copy")

    def write_local(self, data_folder: Path | str | None, run: Any = None) -> None:
        """Nothing is noted about a store that lies elsewhere."""

    def local_data_folder(self) -> Path | None:
        """None: the images of another place."""
        return None

    def read_arrays(
        self, paths: Sequence[str], rows: slice, views: slice | None = None
    ) -> list[Array]:
        """Parts of arrays, fetched first where they aren't in the cache."""
        wanted = [item for path in paths for item in self._needed(path, rows, views)]
        with self.cache.pinned([name for name, _, _ in wanted]):
            self._fetch(wanted)
            try:
                return super().read_arrays(paths, rows, views)
            except CorruptStore:
                if all((self.path / name).is_file() for name, _, _ in wanted):
                    raise
                # another process has made room in the cache in between
                self._fetch(wanted)
                return super().read_arrays(paths, rows, views)

    def read_rows(
        self, paths: Sequence[str], rows: npt.NDArray[np.int64], views: slice
    ) -> list[Array]:
        """Some rows of arrays with views, fetched first where they aren't in the cache."""
        wanted = [item for path in paths for item in self._needed_rows(path, rows, views)]
        with self.cache.pinned([name for name, _, _ in wanted]):
            self._fetch(wanted)
            return super().read_rows(paths, rows, views)

    def fetch_files(self, names: Sequence[str]) -> None:
        """Fetch whole files into the cache; they stay there at least until the next are fetched.

        Files that the manifest doesn't name are left to the reader to miss.
        """
        known = [name for name in names if name in self.manifest.objects]
        with self.cache.pinned(known):
            for_each(known, lambda name: self.cache.need_whole(name, *self.manifest.objects[name]))
            self.cache.evict()

    def prefetch(self, first: int, count: int, teacher: str | None = None) -> None:
        """Fetch the files of a plane in the background; `read_plane` waits for what is under way.

        Problems are left to `read_plane`, which meets them again.
        """
        if self._ahead is not None and self._ahead.is_alive():
            return
        views = slice(first, first + count)

        def work() -> None:
            with contextlib.suppress(TeachonceError, OSError, Cancelled):
                paths = self._plane_arrays(teacher)
                wanted = [item for p in paths for item in self._needed(p, slice(None), views)]
                with self.cache.pinned([name for name, _, _ in wanted]):
                    self._fetch(wanted)

        self._ahead = threading.Thread(target=work, name="teachonce-prefetch", daemon=True)
        self._ahead.start()

    def files_of_views(self, first: int, last: int) -> list[str]:
        """All files but those that hold only views outside `first` to `last - 1`, sorted."""
        others = {
            name
            for layout in self.layouts.values()
            if layout.shard is not None
            for wanted in [layout.segments_of(first, last)]
            for block in range(self.blocks)
            for name in layout.object_paths(
                block, (s for s in range(layout.num_segments) if s not in wanted)
            )
        }
        return sorted(set(self.manifest.objects) - others)

    def fetch_all(self) -> Path:
        """The whole store as a folder, every file checked against the manifest.

        The cache must hold it all; use `pull` for a lasting copy.
        """
        self.fetch_files(list(self.manifest.objects))
        return self.path

    def fetch_card(self, folder: Path) -> None:
        """Put what is said about the store (card, signature) into a folder, as far as it is there.

        It is under no checksum; a signature is compared with the manifest by whoever reads it.
        """
        for name in CARD:
            data = self.transport.get(name, MOST_CARD)
            if data is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_atomic(folder / name, data)

    def close(self) -> None:
        """Stop fetching ahead."""
        self.transport.cancel()
        if self._ahead is not None:
            self._ahead.join(EXIT_WAIT)

    def _plane_arrays(self, teacher: str | None) -> list[str]:
        parts = (f"labels/{teacher}/",) if teacher else ()
        return [p for p in self.layouts if p.startswith(("views/", *parts))]

    def _needed(
        self, path: str, rows: slice, views: slice | None
    ) -> list[tuple[str, list[int], int]]:
        """Files of a part of an array, which of their inner chunks, and how many they hold."""
        layout = self.layouts[path]
        if layout.shard is None:
            return [(name, [0], 1) for _, name in self._files_of(path, rows, None)]
        first, last, _ = rows.indices(layout.shape[0])
        return self._needed_rows(path, np.arange(first, last), views or slice(None))

    def _needed_rows(
        self, path: str, rows: npt.NDArray[np.int64], views: slice
    ) -> list[tuple[str, list[int], int]]:
        """`_needed` for rows in any order of an array with views."""
        layout = self.layouts[path]
        return [
            (name, [chunk.number for chunk in chunks], held_chunks(layout, chunks[0]))
            for name, chunks in row_sources(layout, rows, views).items()
        ]

    def _fetch(self, wanted: Sequence[tuple[str, list[int], int]]) -> None:
        def need(item: tuple[str, list[int], int]) -> None:
            name, chunks, held = item
            size, digest = self.manifest.objects[name]
            known = self._digests.get(name)
            if known is None or len(chunks) >= held:
                self.cache.need_whole(name, size, digest)
            else:
                self.cache.need_chunks(name, size, digest, chunks, known)

        for_each(wanted, need)
        self.cache.evict()


def _fetch_manifest(transport: Transport, cache: Path) -> tuple[Manifest, bytes]:
    data = transport.get(MANIFEST, MOST_MANIFEST)
    if data is None:
        found = transport.get(ROOT_METADATA, MOST_METADATA) is not None
        raise RemoteError(
            f"{transport.url} is not sealed (no {MANIFEST}): its publisher has to run "
            "`labelstore seal` and push it"
            if found
            else f"{transport.url} is not a label store (no {MANIFEST} there): check the address"
        )
    return parse_manifest(data, f"{transport.url}/{MANIFEST}"), data


def _check_names(url: str, store: LabelStore, manifest: Manifest) -> None:
    """The manifest names exactly the files that the settings ask for."""
    if store.blocks > len(manifest.objects):
        raise CorruptStore(f"{url}: the settings ask for more files than the manifest names")
    expected = set(expected_objects(store))
    odd = sorted(expected ^ set(manifest.objects))
    if odd:
        side = "lacks" if odd[0] in expected else "names"
        raise CorruptStore(f"{url}/{MANIFEST} {side} {odd[0]}, against the store's settings")


def _fetch_digests(store: RemoteStore) -> dict[str, list[bytes]]:
    data = store.transport.get(CHUNKS, MOST_MANIFEST)
    if data is None:
        return {}
    wanted = {name: chunks_per_shard(layout) for name, layout in sharded_files(store)}
    where = f"{store.transport.url}/{CHUNKS}"
    return digests_from_bytes(data, store.manifest.root, wanted, where) or {}


def _stop(reference: weakref.ref[RemoteStore]) -> None:
    store = reference()
    if store is not None:
        store.close()
