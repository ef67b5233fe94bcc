"""Further views of a store's images: `labelgen add --crops`."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from labelgen.adding_checks import same_teachers
from labelgen.blocks import BlockBuffer
from labelgen.engine import Job, RunReport, Write, block_data, run_job
from labelgen.run_targets import stored_plans, write_shared
from labelgen.stored import StoredBlocks
from labelgen.tails import DenseOutputs
from labelgen.teacher import Teacher
from storage.errors import IncompleteStore, UsageError
from storage.extend import continue_store
from storage.images import ImageFolder
from storage.imported import ImportedViews
from storage.manifest import Manifest
from storage.merge import merge_stores
from storage.parents import Parent
from storage.progress import Progress
from storage.rewrite import refuse_existing
from storage.sealing import seal
from storage.store import LabelStore


def add_views(
    parent: Parent,
    teacher: Teacher,
    folder: ImageFolder,
    out: Path,
    crops: int,
    compiled: bool,
    workers: int,
    stop: threading.Event | None,
) -> tuple[Manifest, RunReport]:
    """Label the views after the store's last, then merge both.

    Targets that all of the store's views have are continued. The new views grow in `<out>.views`,
    which goes once the merged store is whole.
    """
    spec = parent.spec
    refuse_existing(out)
    if isinstance(spec.sampler, ImportedViews):
        raise UsageError(
            f"{parent.store.path} was imported: its views were drawn elsewhere, and there is no "
            "rule for more of them; label a new store with `labelgen run`"
        )
    ours = same_teachers(parent, teacher, compiled)
    store = continue_store(parent.store, out.with_name(f"{out.name}.views"), crops)
    store.write_local(folder.root)
    plans = [
        dataclasses.replace(plan, record=store.spec.targets[plan.record.path])
        for plan in stored_plans(parent.store, sorted(store.spec.targets))
    ]
    write_shared(store, plans)
    codecs = {name: record.codec for name, record in ours.items()}
    stored = StoredBlocks(parent, spec.num_views)
    named = dataclasses.replace(folder, keys=tuple(parent.images().key))

    def write(block: int, buffer: BlockBuffer, dense: Mapping[str, DenseOutputs]) -> Write:
        data = block_data(store.spec, named, buffer, dense)
        return lambda device: store.write_block(block, data, device=device)

    job = Job(
        spec=store.spec,
        blocks=store.missing_blocks(),
        folder=folder,
        num_views=store.spec.num_views,
        batch_size=ours[teacher.spec.name].batch_size,
        size=teacher.spec.input_size,
        interpolation=spec.pixel.interpolation,
        codecs=codecs,
        plans=plans,
        first_view=parent.first_view + spec.num_views,
        compiled=compiled,
        stored=stored.digests,
        begin=lambda rows: stored.fill(
            BlockBuffer(
                rows, store.spec.num_views, codecs, spec.augment, store.spec.targets.values()
            )
        ),
        note_cut=stored.note,
        write=write,
    )
    report = run_with_progress(job, store, teacher, workers, stop)
    seal(store)
    manifest = merge_stores([parent.store, store], out)
    shutil.rmtree(store.path)
    return manifest, report


def run_with_progress(
    job: Job, store: LabelStore, teacher: Teacher, workers: int, stop: threading.Event | None
) -> RunReport:
    """Run a job with a progress bar.

    Raises:
        IncompleteStore: blocks are missing afterwards.
    """
    total = store.spec.num_images * job.num_views
    left = sum(len(store.block_rows(block)) for block in job.blocks) * job.num_views
    with Progress(total, "crops", "adding", done=total - left) as progress:
        report = run_job(
            job, teacher, workers=workers, stop=stop,
            on_batch=lambda count, report: progress.advance(count),
        )  # fmt: skip
    if lost := store.missing_blocks():
        raise IncompleteStore(f"{len(lost)} blocks of {store.path} are missing: run again")
    return report
