"""One whole run: image folder and teacher in, label store out; what `labelgen run` calls."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelgen.settings import (
    DEFAULT_BATCH_SIZE,
    build_spec,
    choose_batch_size,
    remove_store,
    stored_batch_size,
)
from labelgen.teacher import Teacher
from labelgen.teacher_check import TeacherCheck, check_before_run
from storage.cli_common import DEFAULT_STORE
from storage.errors import IncompleteStore, TeachonceError
from storage.images import ImageFolder, ImageStatus, scan_folder
from storage.progress import Progress
from storage.views import RandomResizedCrop, Sampler

if TYPE_CHECKING:
    from labelgen.engine import RunReport
    from labelgen.target_options import TargetOptions
    from labelgen.target_plans import TargetPlan
    from storage.augment import Augment
    from storage.store import LabelStore
    from storage.tables import ImageTable

__all__ = ["DEFAULT_BATCH_SIZE", "Result", "build_spec", "generate"]

DEFAULT_CROPS = 500


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
        teacher_check: what the teacher had right before the run.
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
    teacher_check: TeacherCheck

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
    augment: Augment | None = None,
    targets: TargetOptions | None = None,
    keep_members: bool = False,
    compiled: bool = False,
    batch_size: int | None = None,
    block_images: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    retry_missing: bool = False,
    teacher_check: bool = True,
    stop: threading.Event | None = None,
    label: Callable[..., RunReport] | None = None,
) -> Result:
    """Label `crops` views of every image of a folder and seal the store; call it again to resume.

    Images of an unfinished store that were missing and have come back are labelled after all.

    Args:
        top_k: classes kept; the default of 10 is cut to the teacher's number of classes.
        sampler: RandomResizedCrop() unless given.
        augment: operations on every crop, drawn once and stored.
        targets: what is kept of the same forward beside labels.
        keep_members: whether an ensemble's members get labels of their own.
        compiled: run the network through torch.compile; recorded in the store.
        batch_size: crops a forward; a store that exists keeps its own, else 64 on a CPU and, on a
            GPU, as many as bring more crops a second.
        workers: processes that cut crops; as many as cores unless given.
        overwrite: delete a store that exists at `out` first.
        retry_missing: open a sealed store again for images that were missing and have come back;
            its root changes.
        teacher_check: refuse a teacher near chance on labelled images (labelgen.teacher_check).
        stop: set it (from a signal handler, say) to end early; the store stays resumable.
        label: takes the place of `label_store`: has blocks labelled elsewhere too.
    Raises:
        UsageError: no images, or a setting out of range.
        StoreMismatch: the store at `out` was made with other settings or for other images.
        TeacherError: the teacher is near chance on the folder's labelled images.
        TeachonceError: see labelgen.engine.label_missing_blocks; or no image can be decoded.
    """
    from labelgen.run_targets import write_shared
    from storage.sealing import seal
    from storage.store import LabelStore

    folder, out = scan_folder(data), Path(out)
    workers = workers or os.cpu_count() or 1
    check = TeacherCheck(skipped="not asked for")
    if teacher_check:
        check = check_before_run(teacher, folder, out, overwrite=overwrite, seed=seed)
    if overwrite:
        remove_store(out)
    store, plans = begin_store(
        teacher, folder, out, crops=crops, top_k=top_k, seed=seed, sampler=sampler,
        augment=augment, targets=targets, keep_members=keep_members, compiled=compiled,
        batch_size=batch_size, block_images=block_images, workers=workers, stop=stop,
    )  # fmt: skip
    write_shared(store, plans)
    store.write_local(folder.root, {"teacher_check": check.to_json()} if check.images else None)
    _retry(store, folder, retry_missing)
    missing = store.missing_blocks()
    report = (label or label_store)(
        store, teacher, folder, missing, plans, workers=workers, compiled=compiled, stop=stop
    )
    table = store.read_images()
    masked = _masked_images(store, table, report.masked)
    duplicates = _count_duplicates(table)
    if duplicates:
        _say(f"{duplicates} images are copies of others and got the same views")
    manifest = seal(store)
    sealed = LabelStore.open(out)
    return Result(
        store=out,
        root=manifest.root,
        images=store.spec.num_images,
        masked=masked,
        duplicates=duplicates,
        crops=(store.spec.num_images - len(masked)) * crops,
        new_crops=report.crops,
        seconds=report.seconds,
        resumed=store.blocks - len(missing),
        measured=sealed.spec.teachers[teacher.spec.name].measured,
        teacher_check=check,
    )


def begin_store(
    teacher: Teacher,
    folder: ImageFolder,
    out: Path,
    *,
    crops: int,
    top_k: int | None,
    seed: int,
    sampler: Sampler | None,
    augment: Augment | None,
    targets: TargetOptions | None,
    keep_members: bool,
    compiled: bool,
    batch_size: int | None,
    block_images: int | None,
    workers: int,
    stop: threading.Event | None,
) -> tuple[LabelStore, Sequence[TargetPlan]]:
    """The store of these settings, made or gone on with, and its targets; arguments and errors as
    `generate`.
    """
    from labelgen.basis import CropSample
    from labelgen.run_targets import plan_for_run
    from storage.store import LabelStore

    if batch_size is None:
        batch_size = stored_batch_size(out, teacher.spec.name) or choose_batch_size(teacher)
    sampler = sampler or RandomResizedCrop()
    plans: Sequence[TargetPlan] = ()
    if targets is not None and targets.wanted:
        sample = CropSample(
            folder=folder, sampler=sampler, augment=augment, seed=seed, num_views=crops,
            images=targets.basis_images, batch_size=batch_size, workers=workers,
        )  # fmt: skip
        plans = plan_for_run(teacher, out, targets, sample, crops, stop)
    spec = build_spec(
        folder, teacher, crops=crops, top_k=top_k, seed=seed, sampler=sampler,
        batch_size=batch_size, block_images=block_images, targets=plans,
        keep_members=keep_members, compiled=compiled, augment=augment,
    )  # fmt: skip
    return LabelStore.open_or_create(out, spec), plans


def label_store(
    store: LabelStore,
    teacher: Teacher,
    folder: ImageFolder,
    blocks: Sequence[int],
    plans: Sequence[TargetPlan],
    *,
    workers: int,
    compiled: bool = False,
    stop: threading.Event | None = None,
) -> RunReport:
    """Label blocks of a store with a progress bar, and note the run in its local.json.

    Raises:
        IncompleteStore: blocks are missing afterwards (deleted while the run went on).
        TeachonceError, OSError: see labelgen.engine.label_missing_blocks.
    """
    from labelgen.engine import RunReport, label_missing_blocks

    announce(store, blocks)
    if not blocks:
        return RunReport()
    views = store.spec.num_views
    total = store.spec.num_images * views
    left = sum(len(store.block_rows(block)) for block in blocks) * views
    with Progress(total, "crops", "labelling", done=total - left) as progress:
        report = label_missing_blocks(
            store, teacher, folder, workers=workers, blocks=blocks, targets=plans,
            compiled=compiled, stop=stop,
            on_batch=lambda count, report: progress.advance(count, _masked_note(report.masked)),
        )  # fmt: skip
    if lost := store.missing_blocks():
        raise IncompleteStore(f"{len(lost)} blocks of {store.path} are missing: run again")
    store.write_local(
        folder.root,
        {
            "crops": report.crops,
            "seconds": round(report.seconds, 3),
            "device": str(teacher.device),
        },
    )
    return report


def announce(store: LabelStore, blocks: Sequence[int]) -> None:
    """Say on stderr what is left of a store that was begun before."""
    if not blocks:
        _say(f"{store.path} is complete: nothing to label")
    elif len(blocks) < store.blocks:
        done = store.blocks - len(blocks)
        _say(f"resuming {store.path}: {done} of {store.blocks} blocks are done")


def _retry(store: LabelStore, folder: ImageFolder, retry_sealed: bool) -> None:
    """Have blocks labelled again whose missing images have come back."""
    from labelgen.returned import forget_blocks, returned_images

    back = returned_images(store, folder)
    if not back:
        return
    keys = [key for block in back.values() for key in block]
    what = f"{len(keys)} images that were missing are back (first: {keys[0]})"
    if store.is_sealed and not retry_sealed:
        _say(f"{what}: label them too with --retry-missing, which changes the store's root")
        return
    forget_blocks(store, back)
    _say(f"{what}: labelling {len(back)} blocks again")


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
