"""Digests of decoded pixels in the store: packed anew, an image is known without its original."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import reuse_folders as folders

from storage.block_writer import encode_arrays
from storage.match import match
from storage.pixels import decode_rgb, pixel_digest
from storage.sealing import seal
from storage.store import LabelStore
from storage.verify import verify


def with_pixels(old: LabelStore, path: Path, images: Path) -> LabelStore:
    """The same store, with digests of its images' pixels."""
    spec = dataclasses.replace(old.spec, pixel_digests=True)
    store, keys = LabelStore.create(path, spec), old.read_images().key
    for block in range(store.blocks):
        rows = store.block_rows(block)
        found = [pixel_digest(decode_rgb((images / keys[row]).read_bytes())) for row in rows]
        where = slice(rows.start, rows.stop)
        arrays = {name: old.read_array(name, where) for name in old.layouts}
        arrays["images/pixels"] = np.stack([np.frombuffer(digest, np.uint8) for digest in found])
        store.put_block(block, encode_arrays(store.layouts, rows, arrays), arrays, "cpu")
    seal(store)
    return store


def test_files_packed_anew_are_matched_without_their_originals(tmp_path: Path) -> None:
    images = tmp_path / "images"
    folders.write_images(images, 24)
    old = folders.write_store(tmp_path / "old.zarr", images)
    store = with_pixels(old, tmp_path / "new.zarr", images)
    changed = shutil.copytree(images, tmp_path / "changed")
    folders.repack(changed, random.Random(2))
    folders.touch_pixels(changed, random.Random(3))
    by_original = match(old, changed, was=images)
    by_digest = match(store, changed)
    assert by_original.same_pixels and by_digest.same_pixels == by_original.same_pixels
    assert by_digest.exact == by_original.exact and by_digest.missing == by_original.missing
    assert not match(old, changed, was=tmp_path / "nowhere").same_pixels
    assert verify(store.path, full=True).problems == []
