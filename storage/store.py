"""The label store: a folder that any Zarr v3 reader opens, written in whole blocks.

A block is `block_images` images with all their views. `write_block` puts each of its files in
place atomically and leaves a receipt last, so a block either counts as done or is written again;
what was killed in between changes no byte of the finished store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage import block_writer, reading, receipts
from storage.atomic import TEMPORARY, make_folder, write_atomic
from storage.block import BlockData
from storage.block_values import AddedBlock
from storage.certificate import Divergences
from storage.chunks import Array
from storage.errors import (
    CorruptStore,
    StoreError,
    StoreMismatch,
    UsageError,
)
from storage.format import (
    ATTRIBUTE,
    StoreSpec,
    check_attributes,
    check_version,
    differences,
    json_bytes,
)
from storage.json_files import read_json
from storage.layout import (
    array_layouts,
    constant_layouts,
    group_metadata,
    group_paths,
    node_metadata,
)
from storage.limits import check_limits
from storage.local import read_local, write_local
from storage.locks import locked
from storage.reading import StoreReading

ROOT_METADATA = "zarr.json"
MANIFEST = reading.MANIFEST


class LabelStore(StoreReading):
    """An open store. Made by `create`, `open` or `open_or_create`."""

    @classmethod
    def create(cls, path: Path | str, spec: StoreSpec) -> LabelStore:
        """Start an empty store; a folder that already is one with these settings is opened.

        Raises:
            StoreMismatch: the folder holds a store with other settings.
            StoreError: the folder holds something else.
        """
        path = Path(path)
        check_limits(array_layouts(spec) | constant_layouts(spec))
        if (path / ROOT_METADATA).exists():
            return cls.open_or_create(path, spec)
        cls.refuse_foreign(path, spec)
        make_folder(path)
        with locked(path):
            if not (path / ROOT_METADATA).exists():
                return cls(path, spec, _write_metadata(path, spec))
        return cls.open_or_create(path, spec)  # another process was quicker

    @staticmethod
    def refuse_foreign(path: Path, spec: StoreSpec) -> None:
        """Refuse a folder that holds anything but the beginnings of such a store.

        Raises:
            StoreError: it does.
        """
        if path.exists() and (not path.is_dir() or any(_foreign(path, spec))):
            raise StoreError(
                f"{path} exists and is not a label store: choose another --out, or move it away"
            )

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
            attributes = read_json(root)["attributes"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStore(f"{root} can't be read ({error}): fetch the store again") from error
        if not isinstance(attributes, dict) or ATTRIBUTE not in attributes:
            raise StoreError(f"{path} is a Zarr group, but not a label store of teachonce")
        ours = attributes[ATTRIBUTE]
        try:
            check_version(ours["settings"].get("format_version"))
            check_attributes(ours)
            measured = ours.get("measured", {}).get("teachers", {})
            spec = StoreSpec.from_settings(ours["settings"], measured)
            check_limits(array_layouts(spec) | constant_layouts(spec))
        except (KeyError, TypeError, AttributeError, ValueError, UsageError) as error:
            what = error if isinstance(error, UsageError) else repr(error)
            raise CorruptStore(f"{root} can't be read ({what}): fetch it again") from error
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

    def missing_blocks(self, written: Mapping[int, receipts.Receipt] | None = None) -> list[int]:
        """Blocks that have to be written (again).

        A block is there when its receipt (of a sealed store: the manifest) lists all its files
        and each has the listed size. Contents are `verify`'s business.

        Args:
            written: the receipts of an unsealed store, where they have been read already.
        """
        if self.is_sealed:
            from storage.manifest import read_manifest

            sealed = read_manifest(self.path).sizes()
            return [b for b in range(self.blocks) if not self._has_objects(b, sealed)]
        if written is None:
            written = receipts.read_receipts(self.path, self.blocks)
        return [
            block
            for block in range(self.blocks)
            if block not in written or not self._has_objects(block, written[block].sizes())
        ]

    def _has_objects(self, block: int, sizes: Mapping[str, int]) -> bool:
        folder = str(self.path)
        for name in self.block_objects(block):
            try:
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - thousands
            except OSError:
                return False
            if status.st_size != sizes.get(name):
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
        block_writer.write_block(self, block, data, device)

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
        block_writer.put_block(self, block, objects, arrays, device, samples)

    def put_added(self, block: int, data: AddedBlock, device: str) -> None:
        """Write what is added to a block of a store that `begin_addition` started.

        Args:
            data: labels and targets that the store's parent doesn't have.
        Raises:
            UsageError: not such a store, or data of a wrong shape or type, or out of range.
            StoreError, OSError: as `write_block`.
        """
        from storage.adding import put_added

        put_added(self, block, data, device)

    def write_constants(
        self,
        path: str,
        constants: Mapping[str, Array] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write what a target shares, once, before its blocks; what is there already stays.

        Args:
            path: the target's, such as "features/pooled".
            constants, files: by name, exactly those of the settings.
        Raises:
            UsageError: no such target, or others than the settings name.
            StoreError: a sealed store, and its bytes would change.
        """
        from storage.target_writer import write_constants

        write_constants(self, self._target_reader.record(path), constants or {}, files or {})

    def missing_constants(self) -> list[str]:
        """Targets that `write_constants` has still to be called for; the store can't be sealed."""
        return self._target_reader.missing()

    def write_local(
        self, data_folder: Path | str | None, run: dict[str, Any] | None = None
    ) -> None:
        """Note where the images lay (a hint for the trainer) and what this run was."""
        write_local(self.path, data_folder, run)

    def local_data_folder(self) -> Path | None:
        """Where the images lay when they were labelled, if this machine still has that folder."""
        return read_local(self.path)


def _write_metadata(path: Path, spec: StoreSpec) -> dict[str, Any]:
    """Everything of an empty store; the root's attributes."""
    for node, metadata in node_metadata(spec).items():
        file, content = path / node / ROOT_METADATA, json_bytes(metadata)
        if not file.is_file() or file.read_bytes() != content:  # linked from a parent
            write_atomic(file, content)
    attributes = {"settings": spec.settings(), "software": receipts.software()}
    # last, so that a folder with a root is a whole empty store
    write_atomic(path / ROOT_METADATA, json_bytes(group_metadata({ATTRIBUTE: attributes})))
    return attributes


def _foreign(path: Path, spec: StoreSpec) -> list[str]:
    """What a folder without a root holds besides the beginnings of a store."""
    ours = {receipts.FOLDER, *(group.split("/")[0] for group in group_paths(spec))}
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(TEMPORARY)]
    return [name for name in names if name not in ours]
