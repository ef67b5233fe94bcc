"""Small label stores with made-up images and a made-up teacher, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.block import BlockData
from storage.codecs import TopKCodec, TopKLabels
from storage.format import StoreSpec
from storage.images import ImageStatus, class_order_hash
from storage.pixels import PixelContract
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord
from storage.views import PaddedCrop, RandomResizedCrop

CLASSES = ("ant", "bee", "cat")


def make_teacher(name: str = "toy", top_k: int = 3, **changes: Any) -> TeacherRecord:
    values: dict[str, Any] = {
        "name": name,
        "spec": f"tv:{name}@TOY",
        "library": "toylib",
        "version": "1.0",
        "arch": "toy",
        "digest": "ab" * 32,
        "licence": "Apache-2.0",
        "input_size": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "interpolation": "bilinear",
        "num_classes": 7,
        "classes": ("dog", "cat", "bee", "elk", "ant", "fox", "gnu"),
        "class_order_hash": "cd" * 32,
        "precision": "fp32",
        "batch_size": 8,
        "codec": TopKCodec(num_classes=7, top_k=top_k),
    }
    return TeacherRecord(**{**values, **changes})


def make_spec(
    num_images: int = 10, num_views: int = 6, teachers: Sequence[TeacherRecord] | None = None,
    **changes: Any,
) -> StoreSpec:  # fmt: skip
    teachers = [make_teacher()] if teachers is None else teachers
    sampler = changes.get("sampler", RandomResizedCrop())
    values: dict[str, Any] = {
        "num_images": num_images,
        "num_views": num_views,
        "block_images": 4,
        "plane_views": 2,
        "segment_views": 4,
        "sampler": sampler,
        "pixel": PixelContract(padding=sampler.padding),
        "seed": 5,
        "dataset": {
            "classes": CLASSES,
            "class_order_hash": class_order_hash(CLASSES),
            "keys_hash": "ef" * 32,
            "num_images": num_images,
        },
        "teachers": {teacher.name: teacher for teacher in teachers},
        "key_bytes": 64,
    }
    return StoreSpec(**{**values, **changes})


def image_digest(row: int) -> bytes:
    return hashlib.sha256(f"image {row}".encode()).digest()


def image_size(row: int, fixed: bool = False) -> tuple[int, int]:
    return (32, 32) if fixed else (40 + 3 * row, 90 - 2 * row)


def make_log_probs(row: int, num_views: int, num_classes: int) -> np.ndarray:
    """float64 [M, C], the made-up teacher's answer."""
    logits = np.random.default_rng([11, row]).normal(0, 3, (num_views, num_classes))
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def make_block(
    spec: StoreSpec, block: int, masked: Sequence[int] = (), keys: Sequence[str] | None = None
) -> BlockData:
    """A block's data; `masked` rows of the whole store hold garbage that must not be stored."""
    rows = spec.block_rows(block)
    fixed = isinstance(spec.sampler, PaddedCrop)
    views = [
        spec.sampler.draw(spec.seed, image_digest(r), *image_size(r, fixed), 0, spec.num_views)
        for r in rows
    ]
    labels: dict[str, TopKLabels] = {}
    mass: dict[str, np.ndarray] = {}
    for name, teacher in spec.teachers.items():
        logs = [make_log_probs(r, spec.num_views, teacher.num_classes) for r in rows]
        labels[name] = teacher.codec.encode(np.stack(logs))
        others = np.exp(np.stack(logs))
        np.put_along_axis(others, labels[name].index.astype(int), 0, axis=-1)
        mass[name] = others.sum(axis=1)
    return BlockData(
        digest=np.stack([np.frombuffer(image_digest(r), np.uint8) for r in rows]),
        key=[keys[r] if keys else f"{CLASSES[r % 3]}/{r:04d}.jpg" for r in rows],
        size=np.array([image_size(r, fixed) for r in rows], np.uint16),
        target=np.array([r % 3 for r in rows], np.int32),
        status=np.array(
            [ImageStatus.UNREADABLE if r in masked else ImageStatus.OK for r in rows], np.uint8
        ),
        box=np.stack([view.box for view in views]),
        flip=np.stack([view.flip for view in views]),
        labels=labels,
        tail_mass=mass,
        draw=make_draws(spec, rows),
    )


def make_draws(spec: StoreSpec, rows: Sequence[int]) -> np.ndarray | None:
    """int16 [n, M, D], what the settings draw; None without augmentations."""
    if spec.augment is None:
        return None
    draws = [spec.augment.draw(spec.seed, image_digest(r), 0, spec.num_views) for r in rows]
    return np.stack(draws)


def fill_store(
    path: Path, spec: StoreSpec | None = None, masked: Sequence[int] = (), **options: Any
) -> LabelStore:
    """A complete store, not sealed."""
    store = LabelStore.open_or_create(path, spec or make_spec())
    for block in range(store.blocks):
        store.write_block(block, make_block(store.spec, block, masked, **options), "cpu")
    return store
