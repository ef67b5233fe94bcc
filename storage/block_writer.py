"""Blocks onto the disk: every file whole, the receipt last."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import receipts
from storage.atomic import make_folder, write_atomic
from storage.block import BlockData, block_arrays
from storage.block_values import AddedBlock
from storage.canaries import to_receipt
from storage.certificate import Divergences, measure_sample
from storage.chunks import Array, encode_block
from storage.dictionary import DictionaryCodec, ImageTail
from storage.errors import StoreError
from storage.images import ImageStatus
from storage.layout import ArrayLayout
from storage.lists import mean_tails
from storage.locks import locked
from storage.measure import measure_block
from storage.tables import decode_keys
from storage.teacher_record import TeacherRecord

if TYPE_CHECKING:
    from storage.store import LabelStore

Entries = Mapping[str, tuple[int, str]]  # (bytes, hex SHA-256) by a file's path


def write_block(store: LabelStore, block: int, data: BlockData, device: str) -> None:
    """`LabelStore.write_block`."""
    rows = store.block_rows(block)
    arrays = block_arrays(store.spec, rows, data)
    objects = encode_arrays(store.layouts, rows, arrays)
    masked = (rows.start + np.flatnonzero(data.status != ImageStatus.OK)).tolist()
    put_block(
        store, block, objects, arrays, device, measure_samples(store, data.values(), arrays),
        canaries=to_receipt(data.canaries, masked),
    )  # fmt: skip


def encode_arrays(
    layouts: Mapping[str, ArrayLayout], rows: range, arrays: Mapping[str, Array]
) -> dict[str, bytes]:
    """Every file of a block's arrays by its path."""
    return {
        name: content
        for path, layout in layouts.items()
        for name, content in encode_block(layout, rows, arrays[path]).items()
    }


def measure_samples(
    store: LabelStore, data: AddedBlock, arrays: Mapping[str, Array]
) -> dict[str, Divergences]:
    """For the certificate: how far the sampled labels are from the dense outputs, by teacher."""
    teachers = store.spec.teachers
    return {
        name: measure_sample(
            teachers[name].codec, data.labels[name], _tails_in(teachers[name], arrays), sample
        )
        for name, sample in data.samples.items()
    }


def put_block(
    store: LabelStore,
    block: int,
    objects: Mapping[str, bytes],
    arrays: Mapping[str, Array],
    device: str,
    samples: Mapping[str, Divergences] | None = None,
    kept: Entries | None = None,
    canaries: Sequence[dict[str, Any]] = (),
) -> None:
    """`LabelStore.put_block`.

    Args:
        kept: files of the block that are in place and stay, by path.
        canaries: of the block, for its receipt.
    """
    kept = kept or {}
    rows = store.block_rows(block)
    entries = {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in objects.items()
    }
    wanted = sorted(store.block_objects(block))
    assert sorted([*entries, *kept]) == wanted, "zarr wrote other files"
    measured = {
        name: record
        for name, record in store.spec.teachers.items()
        if f"labels/{name}/tail" in arrays
    }
    receipt = receipts.Receipt(
        block=block,
        objects={**kept, **entries},
        masked=receipts.masked_rows(
            rows, decode_keys(arrays["images/key"]), arrays["images/status"]
        ),
        sums=measure_block(store.spec, arrays, measured),
        samples=dict(samples or {}),
        canaries=list(canaries),
        device=device,
        software=receipts.software(),
    )
    folder = (store.path / wanted[0]).parent
    make_folder(folder)
    # nobody seals meanwhile, and whoever else writes this block does so before or after
    with locked(store.path, shared=True), locked(folder):
        if store.is_sealed:
            _check_repair(store, block, entries)
        receipts.remove_receipt(store.path, block)
        for name, content in objects.items():
            write_atomic(store.path / name, content)
        receipts.write_receipt(store.path, receipt)
    store.forget()


def _tails_in(record: TeacherRecord, arrays: Mapping[str, Array]) -> ImageTail | None:
    """Mean tails of a block's images, where the codec has them."""
    codec, path = record.codec, f"labels/{record.name}"
    if not isinstance(codec, DictionaryCodec) or not codec.spread_classes:
        return None
    return mean_tails(codec, arrays[f"{path}/classes"], arrays[f"{path}/spread"])


def _check_repair(store: LabelStore, block: int, entries: Entries) -> None:
    from storage.manifest import read_manifest

    sealed = read_manifest(store.path).objects
    changed = [name for name, entry in entries.items() if sealed.get(name) != entry]
    if changed:
        raise StoreError(
            f"{store.path} is sealed, and block {block} would change {changed[0]}: "
            "write a new store with another --out"
        )
