"""One whole run: image folder and teacher in, label store out; what `labelgen run` calls."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelgen.teacher import Teacher
from storage.cli_common import DEFAULT_STORE
from storage.dictionary import default_codec
from storage.errors import IncompleteStore, StoreError, TeachonceError
from storage.format import (
    DEFAULT_KEY_BYTES,
    StoreSpec,
    default_block_images,
    default_plane_views,
    default_segment_views,
    keys_hash,
)
from storage.images import ImageFolder, ImageStatus, class_order_hash, scan_folder
from storage.pixels import PixelContract
from storage.progress import Progress
from storage.views import RandomResizedCrop, Sampler

if TYPE_CHECKING:
    from storage.store import LabelStore
    from storage.tables import ImageTable

DEFAULT_CROPS = 500
DEFAULT_TOP_K = 10
DEFAULT_BATCH_SIZE = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run leaves.

    Attributes:
        store: folder. root: Merkle root of the sealed store.
        images, masked: in the store; masked ones by key with the reason.
        duplicates: images whose bytes another image before them has.
        crops: in the store. new_crops, seconds: labelled by this run, and how long it took.
        resumed: blocks that an earlier run had written.
        measured: what the labels look like (storage.measure.summarise).
    """

    store: Path
    root: str
    images: int
    masked: dict[str, str] = field(default_factory=dict)
    duplicates: int
    crops: int
    new_crops: int
    seconds: float
    resumed: int
    measured: Mapping[str, Any]

    @property
    def crops_per_second(self) -> float:
        """Rate of this run, from the first crop asked for to the last one labelled."""
        return self.new_crops / self.seconds if self.seconds else 0.0


def generate(
    teacher: Teacher,
    data: Path | str,
    out: Path | str = DEFAULT_STORE,
    *,
    crops: int = DEFAULT_CROPS,
    top_k: int | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    batch_size: int | None = None,
    block_images: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    stop: threading.Event | None = None,
) -> Result:
    """Label `crops` views of every image of a folder and seal the store; call it again to resume.

    Args:
        top_k: classes kept; the default of 10 is cut to the teacher's number of classes.
        sampler: RandomResizedCrop() unless given.
        batch_size: crops a forward; a store that exists keeps its own, else 64 on a CPU and 256
            on a GPU.
        workers: processes that cut crops; as many as cores unless given.
        overwrite: delete a store that exists at `out` first.
        stop: set it (from a signal handler, say) to end early; the store stays resumable.
    Raises:
        UsageError: no images, or a setting out of range.
        StoreMismatch: the store at `out` was made with other settings or for other images.
        TeachonceError: see labelgen.engine.label_missing_blocks; or no image can be decoded.
    """
    from labelgen.engine import label_missing_blocks
    from storage.manifest import seal
    from storage.store import LabelStore

    folder, out = scan_folder(data), Path(out)
    if overwrite:
        remove_store(out)
    if batch_size is None:
        batch_size = stored_batch_size(out, teacher.spec.name)
    spec = build_spec(
        folder, teacher, crops=crops, top_k=top_k, seed=seed,
        sampler=sampler or RandomResizedCrop(), block_images=block_images,
        batch_size=batch_size or DEFAULT_BATCH_SIZE[teacher.device.type],
    )  # fmt: skip
    store = LabelStore.open_or_create(out, spec)
    missing = store.missing_blocks()
    images = sum(len(store.block_rows(block)) for block in missing)
    resumed = store.blocks - len(missing)
    store.write_local(folder.root)
    if missing:
        if resumed:
            _say(f"resuming {out}: {resumed} of {store.blocks} blocks are done")
        total = spec.num_images * crops
        with Progress(total, "crops", "labelling", done=total - images * crops) as progress:
            report = label_missing_blocks(
                store, teacher, folder, workers=workers or os.cpu_count() or 1, stop=stop,
                on_batch=lambda count, report: progress.advance(count, _masked_note(report.masked)),
            )  # fmt: skip
        if left := store.missing_blocks():
            raise IncompleteStore(f"{len(left)} blocks of {out} are missing: run again")
        new_crops, seconds, reasons = report.crops, report.seconds, report.masked
        store.write_local(
            folder.root,
            {"crops": new_crops, "seconds": round(seconds, 3), "device": str(teacher.device)},
        )
    else:
        _say(f"{out} is complete: nothing to label")
        new_crops, seconds, reasons = 0, 0.0, {}
    table = store.read_images()
    masked = _masked_images(store, table, reasons)
    duplicates = _count_duplicates(table)
    if duplicates:
        _say(f"{duplicates} images are copies of others and got the same views")
    manifest = seal(store)
    sealed = LabelStore.open(out)
    return Result(
        store=out,
        root=manifest.root,
        images=spec.num_images,
        masked=masked,
        duplicates=duplicates,
        crops=(spec.num_images - len(masked)) * crops,
        new_crops=new_crops,
        seconds=seconds,
        resumed=resumed,
        measured=sealed.spec.teachers[teacher.spec.name].measured,
    )


def build_spec(
    folder: ImageFolder,
    teacher: Teacher,
    *,
    crops: int,
    top_k: int | None,
    seed: int,
    sampler: Sampler,
    batch_size: int,
    block_images: int | None,
) -> StoreSpec:
    """All settings of the store to be; the same call always gives the same.

    Raises:
        UsageError: a setting out of range.
    """
    kept = min(DEFAULT_TOP_K, teacher.spec.num_classes) if top_k is None else top_k
    codec = default_codec(teacher.spec.num_classes, kept, crops)
    record = teacher.record(codec=codec, batch_size=batch_size)
    plane_views = default_plane_views(crops)
    longest = max(len(key.encode("utf-8", "surrogateescape")) for key in folder.keys)
    return StoreSpec(
        num_images=len(folder),
        num_views=crops,
        block_images=block_images or default_block_images(len(folder), crops),
        plane_views=plane_views,
        segment_views=default_segment_views(crops, plane_views),
        sampler=sampler,
        pixel=PixelContract(interpolation=teacher.spec.interpolation, padding=sampler.padding),
        seed=seed,
        dataset={
            "num_images": len(folder),
            "classes": list(folder.classes),
            "class_order_hash": class_order_hash(folder.classes),
            "keys_hash": keys_hash(folder.keys),
        },
        teachers={record.name: record},
        key_bytes=max(DEFAULT_KEY_BYTES, longest),
    )


def stored_batch_size(out: Path, teacher_name: str) -> int | None:
    """Batch size of an existing store's teacher: labels are only repeatable with the same one."""
    from storage.store import ROOT_METADATA, LabelStore

    if not (out / ROOT_METADATA).is_file():
        return None
    record = LabelStore.open(out).spec.teachers.get(teacher_name)
    return record.batch_size if record else None


def remove_store(out: Path) -> None:
    """Delete an existing store; anything else is left alone.

    Raises:
        StoreError: `out` exists and is no label store.
    """
    from storage.store import ROOT_METADATA

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / ROOT_METADATA).is_file():
        raise StoreError(f"{out} exists and is not a label store: --overwrite won't delete it")
    doomed = out.with_name(f".{out.name}.deleted-{os.getpid()}")
    out.rename(doomed)  # first: half a folder must not look like a store
    shutil.rmtree(doomed)


def _masked_images(
    store: LabelStore, table: ImageTable, reasons: Mapping[int, str]
) -> dict[str, str]:
    """Images without labels and why; says so on stderr.

    Raises:
        TeachonceError: there is no image with labels.
    """
    masked = {
        key: reasons.get(row) or ImageStatus(status).name.lower()
        for row, (key, status) in enumerate(zip(table.key, table.status, strict=True))
        if status != ImageStatus.OK
    }
    if len(masked) == len(table.key):
        key, reason = next(iter(masked.items()))
        raise TeachonceError(
            f"none of the {len(masked)} images can be labelled (first {key}: {reason}): "
            f"give another image folder, and replace {store.path} with --overwrite"
        )
    for key, reason in list(masked.items())[:20]:
        _say(f"masked {key}: {reason}")
    if len(masked) > 20:
        kinds = Counter(reason.split(":")[0] for reason in masked.values())
        _say(f"masked {len(masked)} images in all: {dict(kinds)}")
    return masked


def _count_duplicates(table: ImageTable) -> int:
    sound = table.digest[table.status == ImageStatus.OK]
    return len(sound) - len(np.unique(sound, axis=0))


def _masked_note(masked: Mapping[int, str]) -> str:
    return f"{len(masked)} masked" if masked else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
