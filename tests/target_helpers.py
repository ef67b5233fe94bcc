"""Small stores with made-up targets of every kind, for tests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.format import StoreSpec
from storage.store import LabelStore
from storage.targets.dense import dense_record
from storage.targets.features import feature_record, stored_features
from storage.targets.heads import HeadSpec, head_record
from storage.targets.record import TargetRecord
from storage.targets.tokens import split_tokens, token_record
from storage.targets.vectors import encode_vectors
from tests.store_helpers import make_block, make_spec

WIDTH, RANK, GRID, CLASSES = 12, 5, (2, 3), 7
TAIL = b"made-up weights of a last stage"
FEATURES, HEADS, TOKENS, DENSE = "features/pooled", "heads/aux", "tokens/last", "dense/logits"


def make_basis(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(basis f4 [D, r] orthonormal, spectrum f8 [D] falling)."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:, :RANK].astype(np.float32)
    return basis, np.sort(rng.uniform(0.1, 2, WIDTH))[::-1].copy()


def make_constants() -> dict[str, dict[str, np.ndarray]]:
    """Constants of the made-up targets by path."""
    basis, spectrum = make_basis()
    rng = np.random.default_rng(4)
    return {
        FEATURES: {
            "mean": rng.normal(size=WIDTH).astype(np.float32), "basis": basis, "spectrum": spectrum
        },
        HEADS: {
            "aux_weight": rng.normal(size=(4 * CLASSES, WIDTH)).astype(np.float32),
            "aux_bias": rng.normal(size=4 * CLASSES).astype(np.float32),
        },
        TOKENS: {"basis": basis, "spectrum": spectrum},
        DENSE: {},
    }  # fmt: skip


def make_files() -> dict[str, dict[str, bytes]]:
    """Files of the made-up targets by path."""
    return {FEATURES: {}, HEADS: {}, TOKENS: {"tail.safetensors": TAIL}, DENSE: {}}


def make_targets(views: int = 4, teacher: str = "toy") -> dict[str, TargetRecord]:
    """One target of every kind; heads have half of the views."""
    constants = make_constants()
    records = [
        feature_record(
            name="pooled", teacher=teacher, views=views, layer="layer4", basis_images=10,
            **constants[FEATURES],
        ),
        head_record(
            name="aux", teacher=teacher, views=max(1, views // 2), rotations=4,
            heads=[
                HeadSpec(name="aux", width=WIDTH, classes=4 * CLASSES, encoding="pooled",
                         stored="int8"),
                HeadSpec(name="class", width=WIDTH, classes=CLASSES, encoding="dense",
                         stored="affine8"),
            ],
            weights=constants[HEADS],
        ),
        token_record(
            name="last", teacher=teacher, views=views, layer="norm", grid=GRID, width=WIDTH,
            tail_sha256=hashlib.sha256(TAIL).hexdigest(), basis_images=10, **constants[TOKENS],
        ),
        dense_record(name="logits", teacher=teacher, views=views, classes=CLASSES,
                     encoding="fp16"),
    ]  # fmt: skip
    return {record.path: record for record in records}


def true_vectors(record: TargetRecord, row: int, first_view: int = 0) -> dict[str, np.ndarray]:
    """float32 [F, *shape] by part: what the made-up teacher gives for one image."""
    found = {}
    for number, part in enumerate(record.parts):
        views = range(first_view, first_view + record.views)
        key = [sum(record.path.encode()), number, row]
        found[part.name] = np.stack(
            [np.random.default_rng([*key, v]).normal(0, 2, part.shape) for v in views]
        ).astype(np.float32)
    if record.kind == "features":
        found["value"] = stored_features(record, found["value"])
    if record.kind == "tokens":
        rng = np.random.default_rng([9, row])
        tokens = rng.normal(size=(100, GRID[0] * GRID[1], WIDTH)).astype(np.float32)
        found = split_tokens(tokens[first_view : first_view + record.views], make_basis()[0])
    return found


def encode_rows(
    records: Mapping[str, TargetRecord], rows: Sequence[int], first_view: int = 0
) -> dict[str, dict[str, Any]]:
    """Encoded targets of some rows of the whole store, as `BlockData.targets`."""
    found: dict[str, dict[str, Any]] = {}
    for path, record in records.items():
        vectors = [true_vectors(record, row, first_view) for row in rows]
        found[path] = {
            name: values
            for part in record.parts
            for name, values in encode_vectors(
                part, np.stack([v[part.name] for v in vectors])
            ).items()
        }
    return found


def make_target_spec(views: int = 4, **changes: Any) -> StoreSpec:
    spec = make_spec(**changes)
    return dataclasses.replace(spec, targets=make_targets(views, next(iter(spec.teachers))))


def write_all_constants(store: LabelStore, paths: Sequence[str] | None = None) -> None:
    constants, files = make_constants(), make_files()
    for path in store.spec.targets if paths is None else paths:
        store.write_constants(path, constants[path], files[path])


def fill_target_store(
    path: Path, spec: StoreSpec | None = None, masked: Sequence[int] = (), first_view: int = 0
) -> LabelStore:
    """A complete store with targets, not sealed."""
    store = LabelStore.open_or_create(path, spec or make_target_spec())
    write_all_constants(store)
    for block in range(store.blocks):
        data = make_block(store.spec, block, masked)
        targets = encode_rows(store.spec.targets, store.block_rows(block), first_view)
        store.write_block(block, dataclasses.replace(data, targets=targets), "cpu")
    return store
