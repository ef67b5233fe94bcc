"""Stores as FKD label files, for its own loader: `<dataset>/<split>/<class>/<stem>.tar`.

Written as float32 torch tensors, which open under torch's weights-only loading; FKD's loader
can't use float16. Boxes divide exactly back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from storage.archives.boxes import shares_from_boxes
from storage.archives.files import write_renamed
from storage.archives.rows import StoreRow, only_teacher, store_rows
from storage.archives.torch_file import write_torch_file
from storage.errors import UsageError
from storage.store import LabelStore

EXPORT_TYPES = (
    "marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm_k5", "hard", "smoothing",
    "full",
)  # fmt: skip
_KEPT = {"marginal_smoothing_k5": 5, "marginal_renorm_k5": 5, "marginal_smoothing_k10": 10}


@dataclass
class ExportReport:
    """What was written; skipped: images without labels."""

    out: str
    files: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)


def export_fkd(
    store: LabelStore,
    out: Path,
    *,
    label_type: str = "marginal_smoothing_k5",
    dataset: str = "imagenet",
    split: str = "train",
    teacher: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, blocks: None,
) -> ExportReport:
    """Write one file an image. A killed export is finished by running it again.

    Raises:
        UsageError: a label type that the store can't give, names that FKD's loader can't find, or
            a folder that isn't empty (without `overwrite`).
        StoreError: an unfinished or damaged store.
    """
    teacher = only_teacher(store, teacher)
    kept, top_k = _KEPT.get(label_type), store.spec.teachers[teacher].codec.top_k
    if label_type not in EXPORT_TYPES:
        raise UsageError(f"label type {label_type!r}; FKD has {', '.join(EXPORT_TYPES)}")
    if kept is not None and kept > top_k:
        raise UsageError(
            f"{label_type} needs {kept} classes a label, {store.path} keeps {top_k}: "
            "choose another --label-type"
        )
    for name in (dataset, split):
        if not name or "/" in name or "." in name:
            raise UsageError(f"folder name {name!r}; expected a name without '/' and '.'")
    root = out / dataset / split
    if root.is_dir() and any(root.iterdir()) and not overwrite:
        raise UsageError(f"{root} is not empty: choose another --out, or add --overwrite")
    paths = fkd_paths(store.read_images().key)
    report = ExportReport(str(root))
    for row in store_rows(store, teacher, progress):
        if row.labels is None:
            report.skipped.append(row.key)
            continue
        shares = shares_from_boxes(row.box, *row.size)
        content = write_torch_file([shares, row.flip != 0, _labels(row, label_type)])
        write_renamed(root / paths[row.number], content)
        report.files += 1
        report.bytes += len(content)
    return report


def fkd_paths(keys: list[str]) -> list[str]:
    """`<class>/<stem>.tar` of each image, as FKD's loader cuts names: at the first dot.

    Raises:
        UsageError: an image without a class folder, a class with a dot, or two images of one name.
    """
    owners: dict[str, str] = {}
    paths = []
    for key in keys:
        path = PurePosixPath(key)
        if len(path.parts) < 2 or "." in path.parent.name:
            raise UsageError(
                f"image {key}: FKD's loader needs <class>/<image>, and no dot in the class name"
            )
        name = f"{path.parent.name}/{path.name.split('.')[0]}.tar"
        if name in owners:
            raise UsageError(
                f"images {owners[name]} and {key} would share {name}, because FKD's loader cuts "
                "names at their first dot: rename one"
            )
        owners[name] = key
        paths.append(name)
    return paths


def _labels(row: StoreRow, label_type: str) -> np.ndarray:
    """FKD's label array of one image, float32 (int64 for hard)."""
    assert row.labels is not None
    index, prob = row.labels.index, row.labels.probs
    if label_type == "hard":
        return index[:, 0].astype(np.int64)
    if label_type == "smoothing":
        return np.stack([index[:, 0], prob[:, 0]], axis=1).astype(np.float32)
    if label_type == "full":
        return row.codec.dense(row.labels)
    K = _KEPT[label_type]
    return np.stack([index[:, :K], prob[:, :K]], axis=1).astype(np.float32)
