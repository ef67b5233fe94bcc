"""From what a run asks for to the settings of its store; the same request always gives the same."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labelgen.teacher import Teacher
from storage.box_codec import default_view_codec
from storage.dictionary import default_codec
from storage.errors import StoreError, TeacherError, UsageError
from storage.format import (
    DEFAULT_KEY_BYTES,
    StoreSpec,
    default_block_images,
    default_plane_views,
    default_segment_views,
    keys_hash,
)
from storage.images import ImageFolder, class_order_hash
from storage.pixels import PixelContract
from storage.teacher_record import TeacherRecord
from storage.views import Sampler

if TYPE_CHECKING:
    from labelgen.target_plans import TargetPlan
    from storage.augment import Augment

DEFAULT_TOP_K = 10
DEFAULT_BATCH_SIZE = {"cpu": 64, "cuda": 256}
MOST_CLASSES = 65_535  # class ids are uint16


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
    targets: Sequence[TargetPlan] = (),
    keep_members: bool = False,
    compiled: bool = False,
    augment: Augment | None = None,
) -> StoreSpec:
    """All settings of the store to be.

    Args:
        top_k: classes kept; the default of 10 is cut to the teacher's number of classes.
        block_images: images written at once; None for a number that suits crops and targets.
        keep_members: whether an ensemble's members get labels of their own.
    Raises:
        UsageError: a setting out of range.
        TeacherError: more classes than a label can name.
    """
    records = teacher_records(
        teacher, crops=crops, top_k=top_k, batch_size=batch_size, keep_members=keep_members,
        compiled=compiled,
    )  # fmt: skip
    image_bytes = sum(plan.record.views * plan.record.view_bytes for plan in targets)
    plane_views = default_plane_views(crops)
    longest = max(len(key.encode("utf-8", "surrogateescape")) for key in folder.keys)
    return StoreSpec(
        num_images=len(folder),
        num_views=crops,
        block_images=block_images or default_block_images(len(folder), crops, image_bytes),
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
            **({"reencoded": dict(folder.reencoded)} if folder.reencoded else {}),
        },
        teachers=records,
        key_bytes=max(DEFAULT_KEY_BYTES, longest),
        targets={plan.record.path: plan.record for plan in targets},
        pixel_digests=True,
        augment=augment,
        view_codec=default_view_codec(sampler),
    )


def teacher_records(
    teacher: Teacher,
    *,
    crops: int,
    top_k: int | None,
    batch_size: int,
    keep_members: bool = False,
    compiled: bool = False,
) -> dict[str, TeacherRecord]:
    """Records of the labels that a forward pass gives: the teacher's, and its members' if kept.

    Raises:
        UsageError: members to be kept of a teacher that is no ensemble, or a top-k out of range.
        TeacherError: more classes than a label can name.
    """
    classes = teacher.spec.num_classes
    if classes > MOST_CLASSES:
        raise TeacherError(
            f"teacher {teacher.spec.canonical} has {classes} classes; a store's labels can name "
            f"{MOST_CLASSES}: take a teacher with fewer"
        )
    if keep_members and not teacher.members:
        raise UsageError(
            f"--keep-members: {teacher.spec.canonical} is one network; name several as "
            "ensemble:a+b, or leave it out"
        )
    kept = min(DEFAULT_TOP_K, classes) if top_k is None else top_k
    codec = default_codec(classes, kept, crops)
    several = [teacher, *(teacher.members if keep_members else ())]
    records = [each.record(codec=codec, batch_size=batch_size) for each in several]
    return {r.name: dataclasses.replace(r, compiled=compiled) for r in records}


def stored_batch_size(out: Path, teacher_name: str) -> int | None:
    """Batch size of an existing store's teacher: labels are only repeatable with the same one."""
    from storage.store import ROOT_METADATA, LabelStore

    if not (out / ROOT_METADATA).is_file():
        return None
    record = LabelStore.open(out).spec.teachers.get(teacher_name)
    return record.batch_size if record else None


def choose_batch_size(teacher: Teacher) -> int:
    """Crops a forward: 64 on a CPU; on a GPU as many as bring more crops a second.

    Raises:
        TeacherError: not even one crop fits into the device's memory.
    """
    if teacher.device.type != "cuda":
        return DEFAULT_BATCH_SIZE["cpu"]
    from labelgen.batch_size import grow_batch_size, measured_rate
    from labelgen.forward import Forward, matmul_precision

    forward = Forward(teacher, 1)  # never compiled: every size would be compiled anew
    with matmul_precision(teacher.precision):
        rate = measured_rate(forward, teacher.spec.input_size, teacher.device)
        return grow_batch_size(rate)


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
