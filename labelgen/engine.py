"""The labelling engine: crops from workers, one forward a batch, blocks to the writer."""

from __future__ import annotations

import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from labelgen.blocks import BlockBuffer, BlockWriter
from labelgen.crop_pool import STOPPED, CropPool, StoppedError
from labelgen.crop_worker import CropConfig, CutUnit, StoredViews
from labelgen.forward import matmul_precision
from labelgen.labelling import Labeller, Launched
from labelgen.plan import SEGMENT_VIEWS, Unit, plan_batches, plan_units, view_spans
from labelgen.tails import DenseOutputs
from labelgen.teacher import Teacher
from storage.allocator import keep_freed_memory
from storage.block import BlockData
from storage.canaries import canary_views
from storage.codecs import TopKCodec
from storage.errors import TeachonceError
from storage.format import StoreSpec
from storage.images import ImageFolder, ImageStatus
from storage.parents import first_view
from storage.store import LabelStore

if TYPE_CHECKING:
    from labelgen.target_plans import TargetPlan

Write = Callable[[str], None]  # takes the device's name


@dataclass
class RunReport:
    """What one run did.

    Attributes:
        crops: crops labelled, those of masked images left out.
        seconds: from the first crop asked for to the last one labelled.
        masked: reason by row, for the images this run found bad.
    """

    crops: int = 0
    seconds: float = 0.0
    masked: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Blocks to be computed, and where they go.

    Attributes:
        spec: of the store. folder: with a key for every row.
        blocks: their numbers, none twice. It is walked through twice at a time, on two threads,
            each block asked for when its turn comes.
        num_views: views that are forwarded, from the store's first on.
        batch_size: crops a forward. size, interpolation: of the crops.
        codecs: of the labels wanted, by teacher. plans: targets wanted.
        first_view: the sampler's number of the store's first view.
        compiled: whether the network goes through torch.compile.
        stored: views that the store has already; None: the sampler draws them.
        begin: the buffer of a block, from its number and rows.
        note_cut: takes what a worker found out into the buffer, with the file's key.
        write: from a finished buffer and the dense outputs to what the writer's thread does.
    """

    spec: StoreSpec
    blocks: Iterable[int]
    folder: ImageFolder
    num_views: int
    batch_size: int
    size: int
    interpolation: str
    codecs: Mapping[str, TopKCodec]
    plans: Sequence[TargetPlan]
    first_view: int
    compiled: bool = False
    stored: Callable[[Unit], StoredViews] | None = None
    begin: Callable[[range], BlockBuffer]
    note_cut: Callable[[BlockBuffer, CutUnit, str], None]
    write: Callable[[int, BlockBuffer, Mapping[str, DenseOutputs]], Write]


def label_missing_blocks(
    store: LabelStore,
    teacher: Teacher,
    folder: ImageFolder,
    *,
    workers: int,
    blocks: Iterable[int] | None = None,
    targets: Sequence[TargetPlan] = (),
    compiled: bool = False,
    stop: threading.Event | None = None,
    on_batch: Callable[[int, RunReport], None] = lambda crops, report: None,
) -> RunReport:
    """Label every block that the store has no receipt for, and write it.

    Labels and targets come from one forward of each crop.

    Args:
        blocks: which of them, as `Job` has them; all that are missing where None.
        targets: a plan for each target that the store has.
        stop: set it to end after the batch in work.
        on_batch: called with the number of crops just done (masked ones included) and the report
            so far.
    Raises:
        StoppedError: `stop` was set; finished blocks are in the store.
        TeacherError: NaN, infinite or constant outputs, or a failing device; nothing of that
            block is written.
        DeadWorkerError: a crop worker ended by itself.
        OSError: no space left, or another error of writing; finished blocks stay valid.
    """
    spec, record = store.spec, store.spec.teachers[teacher.spec.name]
    codecs = {name: each.codec for name, each in spec.teachers.items()}

    def write(block: int, buffer: BlockBuffer, dense: Mapping[str, DenseOutputs]) -> Write:
        data = block_data(spec, folder, buffer, dense)
        return lambda device: store.write_block(block, data, device=device)

    job = Job(
        spec=spec,
        blocks=store.missing_blocks() if blocks is None else blocks,
        folder=folder,
        num_views=spec.num_views,
        batch_size=record.batch_size,
        size=record.input_size,
        interpolation=spec.pixel.interpolation,
        codecs=codecs,
        plans=targets,
        first_view=first_view(store),
        compiled=compiled,
        begin=lambda rows: BlockBuffer(
            rows, spec.num_views, codecs, spec.augment, spec.targets.values()
        ),
        note_cut=lambda buffer, cut, key: buffer.add_cut(cut, key),
        write=write,
    )
    return run_job(job, teacher, workers=workers, stop=stop, on_batch=on_batch)


def run_job(
    job: Job,
    teacher: Teacher,
    *,
    workers: int,
    stop: threading.Event | None = None,
    on_batch: Callable[[int, RunReport], None] = lambda crops, report: None,
) -> RunReport:
    """Compute and write the blocks of a job; arguments and errors as `label_missing_blocks`."""
    if teacher.device.type == "cpu":
        keep_freed_memory()
    report = RunReport()
    if not job.blocks:
        return report
    labeller = Labeller(teacher, job.codecs, job.plans, compiled=job.compiled)
    run = _Run(job, labeller, device_name(teacher.device), report, on_batch)
    spans = view_spans(job.num_views, [plan.views for plan in job.plans])
    config = CropConfig(
        root=str(job.folder.root.absolute()),
        sampler=job.spec.sampler.to_json(),
        seed=job.spec.seed,
        size=job.size,
        interpolation=job.interpolation,
        slots=ring_batches(job.batch_size, labeller.depth) * job.batch_size,
        first_view=job.first_view,
        pixels=job.spec.pixel_digests,
        augment=job.spec.augment.to_json() if job.spec.augment else None,
        # of views that a store has already its parent's are kept
        canaries=canary_views(job.spec.seed, job.spec.num_images, job.num_views)
        if job.stored is None
        else {},
    )
    units = plan_units(_with_rows(job), spans, job.batch_size)
    waiting: deque[Launched] = deque()
    with (
        matmul_precision(teacher.precision),
        BlockWriter() as writer,
        CropPool(
            units, job.folder.keys, config, batch_size=job.batch_size, workers=workers,
            stored=job.stored,
        ) as pool,
    ):  # fmt: skip

        def finish(launched: Launched) -> None:
            written = run.finish(launched)
            pool.release()
            if written is not None:
                writer.submit(written)
            writer.check()

        for batch in plan_batches(_with_rows(job), spans, job.batch_size):
            end_slot = batch.number * job.batch_size + batch.count
            pixels, cuts = pool.ready(batch.number, end_slot, stop)
            run.note(cuts)
            waiting.append(labeller.launch(batch, pixels))
            if len(waiting) > labeller.depth:
                finish(waiting.popleft())
            if stop is not None and stop.is_set():
                raise StoppedError(STOPPED)
        while waiting:
            finish(waiting.popleft())
    return report


class _Run:
    """The open blocks of a job, and its report."""

    def __init__(
        self,
        job: Job,
        labeller: Labeller,
        device: str,
        report: RunReport,
        on_batch: Callable[[int, RunReport], None],
    ) -> None:
        self._job, self._labeller, self._device = job, labeller, device
        self._report, self._on_batch = report, on_batch
        self._buffers: dict[int, BlockBuffer] = {}
        self._dense: dict[int, dict[str, DenseOutputs]] = {}
        self._start = time.monotonic()

    def note(self, cuts: Sequence[CutUnit]) -> None:
        """Take note of what the workers found out."""
        for cut in cuts:
            row = cut.unit.row
            if cut.status == ImageStatus.MISSING:
                _check_folder(self._job.folder, row)
            buffer = self._buffer(row // self._job.spec.block_images)
            self._job.note_cut(buffer, cut, self._job.folder.keys[row])

    def finish(self, launched: Launched) -> Callable[[], None] | None:
        """Wait for a batch; where its block ends with it, what remains to be done is writing."""
        job, batch, report = self._job, launched.batch, self._report
        buffer = self._buffer(batch.block)
        if batch.block not in self._dense:
            self._dense[batch.block] = {
                name: DenseOutputs(job.spec, buffer.rows, codec)
                for name, codec in job.codecs.items()
            }
        dense = self._dense[batch.block]
        crops = self._labeller.finish(launched, buffer, job.folder.keys, dense)
        report.crops += crops
        report.seconds = time.monotonic() - self._start
        report.masked |= buffer.reasons
        self._on_batch(batch.count, report)
        if not batch.last:
            return None
        del self._buffers[batch.block], self._dense[batch.block]
        write, device = job.write(batch.block, buffer, dense), self._device
        if self._labeller.parts > 1:
            device += f", batches in {self._labeller.parts} parts (out of memory)"
        return lambda: write(device)

    def _buffer(self, block: int) -> BlockBuffer:
        if block not in self._buffers:
            self._buffers[block] = self._job.begin(self._job.spec.block_rows(block))
        return self._buffers[block]


def _with_rows(job: Job) -> Iterator[tuple[int, range]]:
    return ((block, job.spec.block_rows(block)) for block in job.blocks)


def block_data(
    spec: StoreSpec, folder: ImageFolder, buffer: BlockBuffer, dense: Mapping[str, DenseOutputs]
) -> BlockData:
    """A finished block as a store takes it."""
    rows, good = buffer.rows, buffer.status == ImageStatus.OK
    buffer.size[~good] = 0
    mass = {name: each.tail_mass() for name, each in dense.items()}
    return BlockData(
        digest=buffer.digest,
        key=list(folder.keys[rows.start : rows.stop]),
        size=buffer.size,
        target=np.array(folder.targets[rows.start : rows.stop], np.int32),
        status=buffer.status,
        box=buffer.box,
        flip=buffer.flip,
        labels=buffer.labels(),
        targets=buffer.targets,
        pixels=buffer.pixels if spec.pixel_digests else None,
        tail_mass={name: each for name, each in mass.items() if each is not None},
        samples={name: each.sample(good) for name, each in dense.items()},
        draw=buffer.draw,
        canaries=tuple(buffer.canaries),
    )


def ring_batches(batch_size: int, depth: int = 0) -> int:
    """Batches that the ring holds: enough to hide a slow image, and for every unit to fit.

    Args:
        depth: batches launched and not finished, beside the one in work.
    """
    return depth + max(4, 1 + -(-2 * SEGMENT_VIEWS // batch_size))


def _check_folder(folder: ImageFolder, row: int) -> None:
    """One file may vanish and is masked; if its folder did (an unmounted disk), so will all.

    Raises:
        TeachonceError: the folder is gone.
    """
    parent = folder.root if folder.root.is_file() else folder.path(row).parent
    if not parent.exists():
        raise TeachonceError(
            f"{parent} vanished while its images were labelled: bring it back and run the same "
            "command again to resume"
        )


def device_name(device: torch.device) -> str:
    """For receipts: the GPU's or the CPU's own name, and what computes on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
    return f"{name}, torch {torch.__version__}"
