"""Images that were missing when their block was labelled, and have come back since."""

from __future__ import annotations

import contextlib

from storage import receipts
from storage.errors import StoreError
from storage.images import ImageFolder, ImageStatus, has_image
from storage.manifest import CARD, CHUNKS
from storage.store import MANIFEST, LabelStore


def returned_images(store: LabelStore, folder: ImageFolder) -> dict[int, list[str]]:
    """Keys by block of the images that a store holds as missing and that are files now.

    Found in the receipts: a store that was fetched has none, and is nobody's to change.
    """
    found: dict[int, list[str]] = {}
    for block in range(store.blocks):
        receipt = receipts.read_receipt(store.path, block)
        for masked in receipt.masked if receipt else ():
            row = int(masked["row"])
            key = folder.keys[row]
            if masked["status"] == ImageStatus.MISSING.name and has_image(folder.root, key):
                found.setdefault(block, []).append(key)
    return found


def forget_blocks(store: LabelStore, blocks: dict[int, list[str]]) -> None:
    """Have blocks count as missing, so that they are labelled again; opens a sealed store.

    Raises:
        StoreError: other blocks of a sealed store have no receipts, so that it couldn't be sealed
            again.
    """
    if store.is_sealed and blocks:
        lost = [b for b in range(store.blocks) if receipts.read_receipt(store.path, b) is None]
        if lost:
            raise StoreError(
                f"{store.path} has no receipt of block {lost[0]}, so it can't be opened again: "
                "label anew with another --out"
            )
        for name in (*CARD, CHUNKS, MANIFEST):  # what is said of the store as it was
            with contextlib.suppress(FileNotFoundError):
                (store.path / name).unlink()
    for block in blocks:
        receipts.remove_receipt(store.path, block)
