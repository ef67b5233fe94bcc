"""`pack`: images of any source -> a beton, the same bytes for any number of workers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import TEMPORARY, sync_folder, write_atomic
from storage.beton import FORMAT, REENCODED_FORMAT, sidecar_path
from storage.errors import TrainingError, UsageError
from storage.format import dataset_fingerprint
from storage.images import ImageFolder, ImageStatus, class_order_hash
from storage.pixels import CONTRACT_VERSION
from trainer.replay import turbojpeg
from trainer.replay.encode import MODE_JPEG, NO_DIGEST, EncodedImage, encode_bytes, missing
from trainer.replay.layout import BetonWriter
from trainer.replay.reencode import Reencoding
from trainer.sources.base import Chunk, Source
from trainer.sources.folders import FolderSource

FLUSH_ROWS = 256  # rows between two requests to put what is written on disk
AHEAD = 3  # chunks in flight per worker: bounds memory
CHECKS = ("sample", "all")


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
    reencoded: dict[str, Any] | None = None  # settings, where images were encoded anew

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**self.__dict__, "path": str(self.path)}


def pack(
    images: Source | ImageFolder,
    out: Path,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    reencoding: Reencoding | None = None,
    check: str = "sample",
) -> PackReport:
    """Write `out` and its sidecar `<out>.json` from the images of a source.

    Every image is checked (`encode.encode_bytes`). Unreadable ones and files that vanish become
    masked rows (`status` not OK) and are listed. The file appears whole or not at all.

    Args:
        workers: threads, or processes where all images are decoded, that read and check them; 1
            or less works in this thread.
        overwrite: replace an existing file.
        progress: called with the number of rows just finished.
        reencoding: encode all images anew, in a pixel contract of the beton's own.
        check: `all` decodes every image, `sample` one in 64 of the ordinary JPEGs.
    Raises:
        UsageError: `out` exists, or no image could be read.
        TrainingError: a worker process died, or this machine's decoders differ.
        StoreError: what holds the images is damaged.
        OSError: no space left, or the file can't be written; nothing is left behind.
    """
    source = FolderSource(images) if isinstance(images, ImageFolder) else images
    out = Path(out)
    if check not in CHECKS:
        raise UsageError(f"--check is {check!r}; expected one of {', '.join(CHECKS)}")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists: give another --out, or --overwrite to replace it")
    turbojpeg.load()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f"{TEMPORARY}{out.name}.{os.getpid()}"
    masked: list[tuple[str, str]] = []
    modes: Counter[int] = Counter()
    origins = hashlib.sha256()
    try:
        with temporary.open("w+b") as file, ThreadPoolExecutor(1, "flush") as flusher:
            writer = BetonWriter(file, len(source), reencoded=reencoding is not None)
            work = _Work(reencoding, check == "all")
            for row, image in enumerate(_encode_all(source, work, workers)):
                key = source.keys[row]
                writer.add(image, source.targets[row], key)
                if row % FLUSH_ROWS == FLUSH_ROWS - 1:  # so that the end need not wait for it all
                    flusher.submit(os.fdatasync, file.fileno())
                origins.update(image.origin)
                if image.status == ImageStatus.OK:
                    modes[image.mode] += 1
                else:
                    masked.append((key, image.problem))
                if progress is not None:
                    progress(1)
            if not modes:
                raise UsageError(
                    f"{source.location}: none of the {len(source)} images can be read "
                    f"(first: {masked[0][0]}: {masked[0][1]}): give other images"
                )
            rows = writer.finish()
            flusher.shutdown()
            os.fsync(file.fileno())
            num_bytes = file.seek(0, os.SEEK_END)
        sidecar = _sidecar(source, rows, masked, reencoding, origins.hexdigest())
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
        num_rows=len(source),
        num_bytes=num_bytes,
        kept_jpeg=modes[MODE_JPEG],
        stored_raw=sum(modes.values()) - modes[MODE_JPEG],
        masked=tuple(masked),
        duplicates=tuple(map(tuple, sidecar["duplicates"])),
        fingerprint=sidecar["dataset_fingerprint"],
        reencoded=None if reencoding is None else reencoding.to_json(),
    )


@dataclass(frozen=True)
class _Work:
    """What is done with every image; pickled on its way to the workers."""

    reencoding: Reencoding | None
    check_all: bool

    def start_pool(self, workers: int) -> Executor:
        """Threads where little more than reading and hashing is done, which lets go of Python;
        processes where every image is decoded."""
        if self.reencoding is None and not self.check_all:
            return ThreadPoolExecutor(workers, "pack")
        # "spawn": the parent may run threads, whose locks a fork would copy
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    def __call__(self, chunk: Chunk) -> list[EncodedImage]:
        return [
            missing(content.strerror or str(content))
            if isinstance(content, OSError)
            else encode_bytes(content, self.reencoding, self.check_all)
            for content in chunk.read()
        ]


def _encode_all(source: Source, work: _Work, workers: int) -> Iterator[EncodedImage]:
    """Encoded images in the source's order."""
    if workers <= 1:
        for chunk in source.chunks():
            yield from work(chunk)
        return
    pending: deque[Future[list[EncodedImage]]] = deque()
    pool = work.start_pool(workers)
    row = 0
    try:
        for chunk in source.chunks():
            pending.append(pool.submit(work, chunk))
            if len(pending) > AHEAD * workers:
                for image in pending.popleft().result():
                    yield image
                    row += 1
        while pending:
            for image in pending.popleft().result():
                yield image
                row += 1
    except (BrokenProcessPool, BrokenPipeError) as error:
        raise TrainingError(
            f"a packing worker died near {source.keys[row]} (killed, or out of memory): "
            "run the same command again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sidecar(
    source: Source,
    rows: np.ndarray,
    masked: Sequence[tuple[str, str]],
    reencoding: Reencoding | None,
    origins: str,
) -> dict[str, Any]:
    """What `<out>.json` says."""
    digests = np.ascontiguousarray(rows["f0"]["digest"])
    found = {
        "beton_format": FORMAT if reencoding is None else REENCODED_FORMAT,
        "pixel_contract": CONTRACT_VERSION,
        "num_rows": len(source),
        "classes": list(source.classes),
        "class_order_hash": class_order_hash(source.classes),
        "dataset_fingerprint": dataset_fingerprint(digests),
        "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "masked": [{"key": key, "reason": reason} for key, reason in masked],
        "duplicates": [list(keys) for keys in _duplicates(source.keys, digests)],
        "versions": _versions(),
    }
    if reencoding is not None:
        found |= {"reencoded": reencoding.to_json(), "origins_sha256": origins}
    return found


def _duplicates(keys: Sequence[str], digests: np.ndarray) -> tuple[tuple[str, ...], ...]:
    groups: dict[bytes, list[str]] = {}
    for key, digest in zip(keys, digests, strict=True):
        groups.setdefault(digest.tobytes(), []).append(key)
    groups.pop(NO_DIGEST, None)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import PIL

    return {"teachonce": version("teachonce"), "pillow": PIL.__version__, "ffcv": version("ffcv")}
