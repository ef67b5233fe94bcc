"""Parts of one labelling run, written in different places, as the whole store.

The parts have the same settings and lack blocks; the result is the store that one run would have
written, under the same Merkle root. Receipts come along, so its manifest names all devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from storage import receipts
from storage.atomic import write_atomic
from storage.errors import CorruptStore, IncompleteStore, StoreMismatch
from storage.format import ORIGIN, differences
from storage.manifest import Manifest, file_entry
from storage.parents import FIRST_VIEW, first_view
from storage.receipts import Receipt
from storage.rewrite import Progress, begin_store, partial_path, publish
from storage.sealing import seal
from storage.store import LabelStore


def merge_blocks(stores: Sequence[LabelStore], out: Path, progress: Progress | None) -> Manifest:
    """Put the blocks of unfinished stores together.

    Raises:
        StoreMismatch: other settings, or a block that two parts hold differs.
        IncompleteStore: a block is in none of them.
        CorruptStore: a file is not what its receipt says.
    """
    first = stores[0]
    for other in stores[1:]:
        found = differences(first.spec.settings(), other.spec.settings())
        if first_view(first) != first_view(other):
            found.append(f"first_view is {first_view(first)}, not {first_view(other)}")
        if first.attributes.get(ORIGIN) != other.attributes.get(ORIGIN):
            found.append("they were made from different stores")
        if found:
            raise StoreMismatch(
                f"{first.path} and {other.path} are not both sealed, so they can only be parts of "
                f"one run, but their settings differ: {'; '.join(found)}. Finish and seal them"
            )
    holders = [_holder(stores, block) for block in range(first.blocks)]
    missing = [block for block, holder in enumerate(holders) if holder is None]
    if missing:
        raise IncompleteStore(
            f"{len(missing)} of {first.blocks} blocks are in none of the stores (first: "
            f"{missing[0]}): finish one with the same `labelgen run`"
        )
    attributes = {n: first.attributes[n] for n in (FIRST_VIEW, ORIGIN) if n in first.attributes}
    store = begin_store(partial_path(out), first.spec, attributes)
    _copy_constants(store, stores)
    todo = set(store.missing_blocks())
    for block, holder in enumerate(holders):
        if holder is not None and block in todo:
            _copy_block(store, *holder)
        if progress:
            progress(block + 1, store.blocks)
    data = next(filter(None, (part.local_data_folder() for part in stores)), None)
    store.write_local(data, {"command": "merge-blocks", "parts": [str(p.path) for p in stores]})
    manifest = seal(store)
    publish(store.path, out)
    return manifest


def _copy_constants(store: LabelStore, stores: Sequence[LabelStore]) -> None:
    """What targets share, from any part that has it; its hashes are in the settings."""
    for path, target in store.spec.targets.items():
        part = next((part for part in stores if path not in part.missing_constants()), None)
        if part is None:
            raise IncompleteStore(
                f"what {path} shares is in none of the stores: finish one with the same "
                "`labelgen run`"
            )
        store.write_constants(
            path,
            {name: part.read_constant(path, name) for name in target.constants},
            {name: part.target_file(path, name) for name in target.files},
        )


def _holder(stores: Sequence[LabelStore], block: int) -> tuple[LabelStore, Receipt] | None:
    """The first store that has a block; the others that have it agree on every byte."""
    found: tuple[LabelStore, Receipt] | None = None
    for store in stores:
        receipt = receipts.read_receipt(store.path, block)
        if receipt is None or not _whole(store, receipt):
            continue
        if found is None:
            found = store, receipt
        elif receipt.objects != found[1].objects:
            other = sorted(n for n, e in receipt.objects.items() if found[1].objects.get(n) != e)
            raise StoreMismatch(
                f"{found[0].path} and {store.path} both hold block {block}, with different bytes "
                f"({len(other)} files, such as {other[0]}): delete receipts/{block:06d}.json in "
                "the one that shall not count"
            )
    return found


def _whole(store: LabelStore, receipt: Receipt) -> bool:
    """Whether all files of a block are there, in the receipt's sizes."""
    if sorted(receipt.objects) != sorted(store.block_objects(receipt.block)):
        return False
    paths = {store.path / name: size for name, size in receipt.sizes().items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _copy_block(store: LabelStore, part: LabelStore, receipt: Receipt) -> None:
    for name, entry in receipt.objects.items():
        path = part.path / name
        if file_entry(path) != entry:
            raise CorruptStore(
                f"{path} is not what was written (SHA-256 differs): label that block again with "
                "the same `labelgen run`"
            )
        write_atomic(store.path / name, path.read_bytes())
    receipts.write_receipt(store.path, receipt)
