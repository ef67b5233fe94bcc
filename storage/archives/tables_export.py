"""Stores as WebDataset shards and as Parquet tables, for readers that know neither Zarr nor us.

Both hold, for each image with labels: key, digest, target, height, width, and for its M views
box [M, 4] (top, left, height, width in pixels), flip [M], index [M, k] and prob [M, k] (the k most
probable classes) and rest [M] (the mass of all others).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.files import write_renamed
from storage.archives.fkd_export import ExportReport
from storage.archives.rows import StoreRow, only_teacher, store_rows
from storage.errors import StoreError, UsageError
from storage.extras import needs_extra
from storage.format import json_bytes
from storage.manifest import read_manifest
from storage.store import LabelStore
from storage.thresholds import stored_thresholds

INDEX = "index.json"
EXPORT_VERSION = 1
Progress = Callable[[int, int], None]


def _nothing(done: int, blocks: int) -> None:
    """No progress shown."""


def row_arrays(row: StoreRow) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one labelled image."""
    assert row.labels is not None
    return {
        "box": row.box,
        "flip": row.flip,
        "index": row.labels.index,
        "prob": row.labels.probs,
        "rest": row.labels.rest,
    }


def row_facts(row: StoreRow) -> dict[str, Any]:
    """What else is known of one image. Names that aren't Unicode keep their bytes escaped."""
    return {
        "key": row.key,
        "digest": row.digest.hex(),
        "target": row.target,
        "height": row.size[0],
        "width": row.size[1],
    }


def export_webdataset(
    store: LabelStore,
    out: Path,
    *,
    shard_images: int = 1000,
    teacher: str | None = None,
    overwrite: bool = False,
    progress: Progress = _nothing,
) -> ExportReport:
    """Tar shards `labels-000000.tar` with `<number>.json` and `<number>.npz` an image.

    Arrays are plain .npy members, without pickle; `index.json` lists the shards with their SHA-256
    and holds the store's settings. Equal stores give equal bytes.

    Raises:
        UsageError: a folder that isn't empty (without `overwrite`).
    """
    teacher = _prepare(store, out, teacher, overwrite)
    report = ExportReport(str(out))
    shards = []
    for number, rows in enumerate(_groups(store, teacher, shard_images, report, progress)):
        name, buffer = f"labels-{number:06d}.tar", io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                # WebDataset groups members by the name up to its first dot: numbers have none
                facts = json.dumps(row_facts(row), sort_keys=True).encode()
                _add(tar, f"{row.number:08d}.json", facts)
                _add(tar, f"{row.number:08d}.npz", npz_bytes(row_arrays(row)))
        data = buffer.getvalue()
        write_renamed(out / name, data)
        shards.append({"name": name, "images": len(rows), "bytes": len(data),
                       "sha256": hashlib.sha256(data).hexdigest()})  # fmt: skip
        report.files, report.bytes = report.files + 1, report.bytes + len(data)
    _write_index(store, teacher, out, "webdataset", shards)
    return report


def export_parquet(
    store: LabelStore,
    out: Path,
    *,
    shard_images: int = 1000,
    teacher: str | None = None,
    overwrite: bool = False,
    progress: Progress = _nothing,
) -> ExportReport:
    """Tables `labels-00000.parquet`, one row an image, lists of fixed length for its views.

    Raises:
        UsageError: pyarrow isn't installed, a folder that isn't empty (without `overwrite`), or
            labels of which some are left out.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise needs_extra("writing Parquet tables", "pyarrow", "archives") from error
    adapted = stored_thresholds(store.spec.teachers[only_teacher(store, teacher)].adapted)
    if adapted is not None and adapted.leaves_out:
        raise UsageError(
            f"{store.path} has labels that leave views out, and rows of these tables have as many "
            "views each: use `labelstore export webdataset` or `fkd`"
        )
    teacher = _prepare(store, out, teacher, overwrite)
    report = ExportReport(str(out))
    tables = []
    for number, rows in enumerate(_groups(store, teacher, shard_images, report, progress)):
        name, buffer = f"labels-{number:05d}.parquet", io.BytesIO()
        pyarrow.parquet.write_table(_table(rows), buffer, compression="zstd")
        data = buffer.getvalue()
        write_renamed(out / name, data)
        tables.append({"name": name, "images": len(rows), "bytes": len(data),
                       "sha256": hashlib.sha256(data).hexdigest()})  # fmt: skip
        report.files, report.bytes = report.files + 1, report.bytes + len(data)
    _write_index(store, teacher, out, "parquet", tables)
    return report


def _table(rows: list[StoreRow]) -> Any:
    """A pyarrow table; arrays [M, ...] are flat lists of one length."""
    import pyarrow

    facts = [row_facts(row) for row in rows]
    columns: dict[str, Any] = {
        "key": pyarrow.array([f["key"].encode("utf-8", "surrogateescape") for f in facts]),
        "digest": pyarrow.array([row.digest for row in rows], pyarrow.binary(32)),
        **{
            name: pyarrow.array([f[name] for f in facts], pyarrow.int32())
            for name in ("target", "height", "width")
        },
    }
    arrays = [row_arrays(row) for row in rows]
    for name in arrays[0]:
        values = np.stack([found[name].ravel() for found in arrays])
        flat = pyarrow.array(np.ascontiguousarray(values).ravel())
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pyarrow.table(columns)


def npz_bytes(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """numpy's .npz with a fixed date, so that equal arrays give equal bytes."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return output.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _prepare(store: LabelStore, out: Path, teacher: str | None, overwrite: bool) -> str:
    if not store.is_sealed:
        raise StoreError(f"{store.path} is not sealed: close it with `labelstore seal` first")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise UsageError(f"{out} is not empty: choose another --out, or add --overwrite")
        for path in (*out.glob("labels-*.tar"), *out.glob("labels-*.parquet"), out / INDEX):
            path.unlink(missing_ok=True)  # an export with fewer shards must not keep old ones
    return only_teacher(store, teacher)


def _groups(
    store: LabelStore, teacher: str, size: int, report: ExportReport, progress: Progress
) -> Iterator[list[StoreRow]]:
    """Labelled images, `size` at a time."""
    rows: list[StoreRow] = []
    for row in store_rows(store, teacher, progress):
        if row.labels is None:
            report.skipped.append(row.key)
            continue
        rows.append(row)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def _write_index(
    store: LabelStore, teacher: str, out: Path, kind: str, files: list[dict[str, Any]]
) -> None:
    spec = store.spec
    index = {
        "version": EXPORT_VERSION,
        "format": kind,
        "teacher": teacher,
        "views": spec.num_views,
        "top_k": spec.teachers[teacher].codec.top_k,
        "store_root": read_manifest(store.path).root,
        "settings": spec.settings(),
        "files": files,
    }
    write_renamed(out / INDEX, json_bytes(index))
