"""More on what a sealed store has: a second teacher, targets, or further views; what `labelgen add`
calls. Nothing that is there is computed or written again.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labelgen.adding_checks import check_pixels, check_same, data_of
from labelgen.adding_views import add_views, run_with_progress
from labelgen.blocks import BlockBuffer
from labelgen.engine import Job, Write
from labelgen.run_targets import plan_for_addition, write_shared
from labelgen.settings import choose_batch_size, teacher_records
from labelgen.stored import StoredBlocks, images_of
from labelgen.tails import DenseOutputs
from labelgen.teacher import Teacher
from storage.adding import begin_addition
from storage.block_values import AddedBlock
from storage.errors import UsageError
from storage.images import ImageFolder, ImageStatus
from storage.parents import Parent
from storage.sealing import seal
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord

if TYPE_CHECKING:
    from labelgen.target_options import TargetOptions
    from labelgen.target_plans import TargetPlan


@dataclass(frozen=True, kw_only=True)
class Added:
    """What a finished addition leaves.

    Attributes:
        store: folder. root: its Merkle root; parent_root: of the store that was added to.
        teachers: whose labels are new. targets: paths of the new ones. views: of every image.
        new_crops, seconds: forwarded by this run, and how long it took.
    """

    store: Path
    root: str
    parent_root: str
    teachers: tuple[str, ...]
    targets: tuple[str, ...]
    views: int
    new_crops: int
    seconds: float


def add(
    teacher: Teacher,
    labels: Path | str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    targets: TargetOptions | None = None,
    crops: int | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    keep_members: bool = False,
    compiled: bool = False,
    workers: int | None = None,
    stop: threading.Event | None = None,
) -> Added:
    """Add to a sealed store's images and views; call it again to resume.

    A teacher that the store doesn't have gets labels of all views. Targets are taken in the same
    forward pass. With `crops`, the store's own teacher labels the views that follow.

    Args:
        labels: the store; it is read and left as it is.
        out: where the larger store is written.
        data: the images; where the store says that they lay unless given.
        crops: views of every image that the new store has in all.
        top_k, keep_members: of a second teacher's labels.
        batch_size, compiled: as labelgen.run.generate has them; a teacher that the store has keeps
            its own.
    Raises:
        UsageError: nothing to add, or more views of boxes that were drawn elsewhere.
        StoreMismatch: changed or lost images; another teacher under the same name.
        StoreError: `out` exists and is sealed, or is something else.
        TeachonceError: see labelgen.engine.label_missing_blocks.
    """
    parent, workers = Parent.open(labels), workers or os.cpu_count() or 1
    folder = images_of(parent, data_of(parent, data), workers)
    if crops is not None:
        if targets is not None and targets.wanted:
            raise UsageError("--crops adds views: add targets to the store with them, afterwards")
        manifest, report = add_views(
            parent, teacher, folder, Path(out), crops, compiled, workers, stop
        )
        return Added(
            store=Path(out), root=manifest.root, parent_root=parent.root, teachers=(), targets=(),
            views=crops, new_crops=report.crops, seconds=report.seconds,
        )  # fmt: skip
    check_pixels(parent, teacher)
    known = parent.spec.teachers.get(teacher.spec.name)
    if known is not None:
        check_same(parent, known, teacher, compiled)
        records: dict[str, TeacherRecord] = {}
        batch_size = known.batch_size
    else:
        batch_size = batch_size or choose_batch_size(teacher)
        records = teacher_records(
            teacher, crops=parent.spec.num_views, top_k=top_k, batch_size=batch_size,
            keep_members=keep_members, compiled=compiled,
        )  # fmt: skip
        pixel = parent.spec.pixel.interpolation
        records = {n: dataclasses.replace(r, interpolation=pixel) for n, r in records.items()}
    plans: Sequence[TargetPlan] = ()
    if targets is not None and targets.wanted:
        blocks = StoredBlocks(parent, parent.spec.num_views)
        plans = plan_for_addition(
            teacher, parent, folder, Path(out), targets, batch_size=batch_size, workers=workers,
            stored=blocks.views, stop=stop,
        )  # fmt: skip
    if not records and not plans:
        raise UsageError(
            f"{parent.store.path} has labels of {teacher.spec.name} already: say what else is "
            "wanted (--features, --dense, --tokens, --heads), more views (--crops), or another "
            "--teacher"
        )
    store = begin_addition(
        parent.store, out, teachers=records, targets={p.record.path: p.record for p in plans}
    )
    write_shared(store, plans)
    store.write_local(folder.root)
    report = run_with_progress(
        addition_job(parent, store, folder, records, plans, teacher, batch_size, compiled),
        store, teacher, workers, stop,
    )  # fmt: skip
    root = seal(store).root
    return Added(
        store=Path(out), root=root, parent_root=parent.root, teachers=tuple(records),
        targets=tuple(plan.record.path for plan in plans), views=parent.spec.num_views,
        new_crops=report.crops, seconds=report.seconds,
    )  # fmt: skip


def addition_job(
    parent: Parent,
    store: LabelStore,
    folder: ImageFolder,
    records: Mapping[str, TeacherRecord],
    plans: Sequence[TargetPlan],
    teacher: Teacher,
    batch_size: int,
    compiled: bool,
) -> Job:
    """The new arrays of every block that lacks them."""
    spec = parent.spec
    num_views = spec.num_views if records else max(plan.views for plan in plans)
    codecs = {name: record.codec for name, record in records.items()}
    stored = StoredBlocks(parent, num_views)

    def write(block: int, buffer: BlockBuffer, dense: Mapping[str, DenseOutputs]) -> Write:
        good = buffer.status == ImageStatus.OK
        mass = {name: each.tail_mass() for name, each in dense.items()}
        data = AddedBlock(
            labels=buffer.labels(),
            tail_mass={name: each for name, each in mass.items() if each is not None},
            samples={name: each.sample(good) for name, each in dense.items()},
            targets=buffer.targets,
        )
        return lambda device: store.put_added(block, data, device=device)

    return Job(
        spec=spec,
        blocks=store.missing_blocks(),
        folder=folder,
        num_views=num_views,
        batch_size=min(batch_size, spec.block_images * num_views),  # no batch of empty slots
        size=teacher.spec.input_size,
        interpolation=spec.pixel.interpolation,
        codecs=codecs,
        plans=plans,
        first_view=parent.first_view,
        compiled=compiled,
        stored=stored.views,
        begin=lambda rows: stored.fill(
            BlockBuffer(rows, num_views, codecs, spec.augment, [plan.record for plan in plans])
        ),
        note_cut=stored.note,
        write=write,
    )
