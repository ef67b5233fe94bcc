"""`pack`: an image folder -> a beton of its source bytes, the same bytes for any worker count."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import TEMPORARY, sync_folder, write_atomic
from storage.errors import TrainingError, UsageError
from storage.format import dataset_fingerprint
from storage.images import ImageFolder, ImageStatus, class_order_hash
from storage.pixels import CONTRACT_VERSION
from trainer.replay import turbojpeg
from trainer.replay.encode import MODE_JPEG, NO_DIGEST, EncodedImage, encode_file
from trainer.replay.layout import BetonWriter

BETON_FORMAT = 1
AHEAD = 4  # images in flight per worker: bounds memory


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What `pack` wrote."""

    path: Path
    num_rows: int
    num_bytes: int
    kept_jpeg: int
    stored_raw: int
    masked: tuple[tuple[str, str], ...]  # (key, reason)
    duplicates: tuple[tuple[str, ...], ...]  # keys of files with the same bytes
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**self.__dict__, "path": str(self.path)}


def sidecar_path(beton: Path) -> Path:
    """`train.beton` -> `train.beton.json`."""
    return beton.with_name(beton.name + ".json")


def pack(
    folder: ImageFolder,
    out: Path,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PackReport:
    """Write `out` and its sidecar `<out>.json` from the images of a folder.

    Every image is decoded once to check it. Unreadable files and files that vanish become
    masked rows (`status` not OK) and are listed. The file appears whole or not at all.

    Args:
        workers: processes that read and check images; 1 or less works in this process.
        overwrite: replace an existing file.
        progress: called with the number of rows just finished.
    Raises:
        UsageError: `out` exists, or no image could be read.
        TrainingError: a worker process died.
        OSError: no space left, or the file can't be written; nothing is left behind.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists: give another --out, or --overwrite to replace it")
    turbojpeg.load()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f"{TEMPORARY}{out.name}.{os.getpid()}"
    masked: list[tuple[str, str]] = []
    modes: Counter[int] = Counter()
    try:
        with temporary.open("w+b") as file:
            writer = BetonWriter(file, len(folder))
            for row, image in enumerate(_encode_all(folder, workers)):
                writer.add(image, folder.targets[row], folder.keys[row])
                if image.status == ImageStatus.OK:
                    modes[image.mode] += 1
                else:
                    masked.append((folder.keys[row], image.problem))
                if progress is not None:
                    progress(1)
            if not modes:
                raise UsageError(
                    f"{folder.root}: none of the {len(folder)} images can be read "
                    f"(first: {masked[0][0]}: {masked[0][1]}): give another folder"
                )
            rows = writer.finish()
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.seek(0, os.SEEK_END)
        digests = np.ascontiguousarray(rows["f0"]["digest"])
        duplicates = _duplicates(folder.keys, digests)
        fingerprint = dataset_fingerprint(digests)
        sidecar = {
            "beton_format": BETON_FORMAT,
            "pixel_contract": CONTRACT_VERSION,
            "num_rows": len(folder),
            "classes": list(folder.classes),
            "class_order_hash": class_order_hash(folder.classes),
            "dataset_fingerprint": fingerprint,
            "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
            "masked": [{"key": key, "reason": reason} for key, reason in masked],
            "duplicates": [list(keys) for keys in duplicates],
            "versions": _versions(),
        }
        # The old pair must never mix with the new one: rows_sha256 tells a reader if it does.
        write_atomic(sidecar_path(out), (json.dumps(sidecar, indent=1) + "\n").encode())
        temporary.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(out)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return PackReport(
        path=out,
        num_rows=len(folder),
        num_bytes=num_bytes,
        kept_jpeg=modes[MODE_JPEG],
        stored_raw=sum(modes.values()) - modes[MODE_JPEG],
        masked=tuple(masked),
        duplicates=duplicates,
        fingerprint=fingerprint,
    )


def _encode_all(folder: ImageFolder, workers: int) -> Iterator[EncodedImage]:
    """Encoded images in the folder's order."""
    if workers <= 1:
        yield from (encode_file(folder.path(row)) for row in range(len(folder)))
        return
    pending: deque[Future[EncodedImage]] = deque()
    # "spawn": the parent may run threads, whose locks a fork would copy
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    row = 0
    try:
        for next_row in range(len(folder)):
            pending.append(pool.submit(encode_file, folder.path(next_row)))
            if len(pending) >= AHEAD * workers:
                yield pending.popleft().result()
                row += 1
        while pending:
            yield pending.popleft().result()
            row += 1
    except (BrokenProcessPool, BrokenPipeError) as error:
        raise TrainingError(
            f"a packing worker died near {folder.keys[row]} (killed, or out of memory): "
            "run the same command again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _duplicates(keys: tuple[str, ...], digests: np.ndarray) -> tuple[tuple[str, ...], ...]:
    groups: dict[bytes, list[str]] = {}
    for key, digest in zip(keys, digests, strict=True):
        groups.setdefault(digest.tobytes(), []).append(key)
    groups.pop(NO_DIGEST, None)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import PIL

    return {"teachonce": version("teachonce"), "pillow": PIL.__version__, "ffcv": version("ffcv")}
