"""Small sealed stores with an object of every kind, and ways to damage a file and put it back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from store_helpers import make_block, make_spec, make_teacher

from storage.box_codec import BOX_NUMBERS
from storage.dictionary import DictionaryCodec
from storage.errors import TeachonceError
from storage.format import StoreSpec
from storage.manifest import read_manifest
from storage.sealing import seal
from storage.store import LabelStore
from storage.targets.features import feature_record
from storage.targets.vectors import encode_vectors

KINDS = ("labels", "targets")
MEAN, BASIS = np.zeros(5, np.float32), np.eye(5, 2, dtype=np.float32)
SPECTRUM = np.arange(5, 0, -1).astype(np.float64)


def every_spec(kind: str) -> StoreSpec:
    """Settings of a store with both label codecs, or with numbered boxes and a target."""
    sizes: dict[str, Any] = {
        "num_images": 5, "num_views": 3, "block_images": 3, "plane_views": 1, "segment_views": 2,
    }  # fmt: skip
    codec = DictionaryCodec(num_classes=7, top_k=3, spread_classes=4)
    if kind == "labels":
        return make_spec(teachers=[make_teacher(), make_teacher("listed", codec=codec)], **sizes)
    features = feature_record(
        name="pooled", teacher="toy", views=2, layer="last", mean=MEAN, basis=BASIS,
        spectrum=SPECTRUM, basis_images=4,
    )  # fmt: skip
    return make_spec(
        teachers=[make_teacher(codec=codec)], view_codec=BOX_NUMBERS, pixel_digests=True,
        targets={features.path: features}, **sizes,
    )  # fmt: skip


def every_store(path: Path, kind: str) -> LabelStore:
    """A sealed store of `every_spec` with one masked image."""
    store = LabelStore.create(path, every_spec(kind))
    for target in store.spec.targets.values():
        store.write_constants(target.path, {"mean": MEAN, "basis": BASIS, "spectrum": SPECTRUM})
    for block in range(store.blocks):
        data = make_block(store.spec, block, masked=[1])
        if store.spec.pixel_digests:
            data = replace(data, pixels=255 - data.digest)
        rng = np.random.default_rng([3, block])
        targets = {
            path: encode_vectors(
                target.part("value"),
                rng.normal(size=(len(data.key), target.views, 2)).astype(np.float32),
            )
            for path, target in store.spec.targets.items()
        }
        store.write_block(block, replace(data, targets=targets), "cpu")
    seal(store)
    return LabelStore.open(path)


def objects_of(store: LabelStore) -> list[str]:
    """All files that the manifest speaks for, and the manifest."""
    return [*sorted(read_manifest(store.path).objects), "manifest.json"]


@contextlib.contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    """One bit of a file is the other one."""
    handle = os.open(file, os.O_RDWR)
    try:
        good = os.pread(handle, 1, bit // 8)
        os.pwrite(handle, bytes([good[0] ^ 1 << bit % 8]), bit // 8)
        yield
    finally:
        os.pwrite(handle, good, bit // 8)
        os.close(handle)


@contextlib.contextmanager
def away(file: Path) -> Iterator[bytes]:
    """Nothing is at this path; yields what was there."""
    content = file.read_bytes()
    hidden = file.with_name("hidden-for-a-test")
    file.unlink()
    try:
        yield content
    finally:
        assert not hidden.exists()
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        file.write_bytes(content)


def read_or_refuse(path: Path, array: str) -> np.ndarray | None:
    """An array of a freshly opened store; None where reading refuses with an error for users."""
    try:
        store = LabelStore.open(path)
        layout = store.layouts.get(array)
        if layout is None:
            target, _, name = array.rpartition("/")
            return store.read_constant(target, name)
        views = slice(0, layout.shape[1]) if layout.shard else None
        return store.read_array(array, slice(None), views)
    except TeachonceError:
        return None
