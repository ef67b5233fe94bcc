"""The labelling engine: crops from workers, one forward a batch, blocks to the writer."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from labelgen.blocks import BlockBuffer, BlockWriter
from labelgen.crop_pool import STOPPED, CropPool, StoppedError
from labelgen.crop_worker import CropConfig
from labelgen.forward import Forward, matmul_precision
from labelgen.plan import SEGMENT_VIEWS, Batch, plan_batches, plan_units
from labelgen.tails import DenseOutputs
from labelgen.teacher import Teacher
from storage.allocator import keep_freed_memory
from storage.block import BlockData
from storage.codecs import TopKCodec
from storage.errors import TeacherError, TeachonceError
from storage.images import ImageFolder, ImageStatus
from storage.store import LabelStore

# Fewer equal outputs than this may be chance (tiny data sets of near-copies).
CONSTANT_CROPS = 8


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


def label_missing_blocks(
    store: LabelStore,
    teacher: Teacher,
    folder: ImageFolder,
    *,
    workers: int,
    stop: threading.Event | None = None,
    on_batch: Callable[[int, RunReport], None] = lambda crops, report: None,
) -> RunReport:
    """Label every block that the store has no receipt for, and write it.

    Args:
        stop: set it to end after the batch in work.
        on_batch: called with the number of crops just done (masked ones included) and the report
            so far.
    Raises:
        StoppedError: `stop` was set; finished blocks are in the store.
        TeacherError: NaN, infinite or constant outputs; nothing of that block is written.
        DeadWorkerError: a crop worker ended by itself.
        OSError: no space left, or another error of writing; finished blocks stay valid.
    """
    spec, record = store.spec, store.spec.teachers[teacher.spec.name]
    batch_size = record.batch_size
    blocks = [(block, spec.block_rows(block)) for block in store.missing_blocks()]
    config = CropConfig(
        root=str(folder.root.absolute()),
        sampler=spec.sampler.to_json(),
        seed=spec.seed,
        size=record.input_size,
        interpolation=spec.pixel.interpolation,
        slots=ring_batches(batch_size) * batch_size,
    )
    if teacher.device.type == "cpu":
        keep_freed_memory()
    report = RunReport()
    if not blocks:
        return report
    units = plan_units(blocks, spec.num_views, batch_size)
    rows_of = dict(blocks)
    forward = Forward(teacher, record.codec.top_k)
    open_blocks: dict[int, BlockBuffer] = {}
    gathered: dict[int, DenseOutputs] = {}

    def buffer_of(block: int) -> BlockBuffer:
        if block not in open_blocks:
            open_blocks[block] = BlockBuffer(rows_of[block], spec.num_views, record.codec)
        return open_blocks[block]

    start = time.monotonic()
    with (
        matmul_precision(teacher.precision),
        BlockWriter() as writer,
        CropPool(units, folder.keys, config, batch_size=batch_size, workers=workers) as pool,
    ):
        for batch in plan_batches(blocks, spec.num_views, batch_size):
            end_slot = batch.number * batch_size + batch.count
            pixels, cuts = pool.ready(batch.number, end_slot, stop)
            for cut in cuts:
                if cut.status == ImageStatus.MISSING:
                    _check_folder(folder, cut.unit.row)
                block = cut.unit.row // spec.block_images
                buffer_of(block).add_cut(cut, folder.keys[cut.unit.row])
            buffer = buffer_of(batch.block)
            if batch.block not in gathered:
                gathered[batch.block] = DenseOutputs(spec, buffer.rows, record.codec)
            dense = gathered[batch.block]
            _label_batch(forward, teacher, folder, record.codec, buffer, dense, batch, pixels)
            pool.release()
            report.crops += int(buffer.is_good(batch.first, batch.count).sum())
            report.seconds = time.monotonic() - start
            report.masked |= buffer.reasons
            on_batch(batch.count, report)
            if batch.last:
                del open_blocks[batch.block], gathered[batch.block]
                writer.submit(_write(store, teacher, folder, batch.block, buffer, dense))
            writer.check()
            if stop is not None and stop.is_set():
                raise StoppedError(STOPPED)
    return report


def ring_batches(batch_size: int) -> int:
    """Batches that the ring holds: enough to hide a slow image, and for every unit to fit."""
    return max(4, 1 + -(-2 * SEGMENT_VIEWS // batch_size))


def _label_batch(
    forward: Forward,
    teacher: Teacher,
    folder: ImageFolder,
    codec: TopKCodec,
    buffer: BlockBuffer,
    dense: DenseOutputs,
    batch: Batch,
    pixels: npt.NDArray[np.uint8],
) -> None:
    pixels[batch.count :] = 0  # empty slots: the last batch of a block has full size, always
    try:
        outputs = forward.outputs(pixels)
    except torch.OutOfMemoryError as error:
        raise TeacherError(
            f"out of GPU memory with {len(pixels)} crops a batch: give a smaller --batch-size "
            "(and --overwrite, should the store already hold labels made with this one)"
        ) from error
    values, index = outputs.values[: batch.count], outputs.index[: batch.count]
    good = buffer.is_good(batch.first, batch.count)

    def key_at(position: int) -> str:
        image = int(buffer.images_of(batch.first + position, 1)[0])
        return folder.keys[buffer.rows.start + image]

    broken = np.flatnonzero(good & ~np.isfinite(values).all(axis=1))
    if len(broken):
        raise TeacherError(
            f"teacher {teacher.spec.canonical} gives NaN or infinite outputs, first for "
            f"{key_at(int(broken[0]))}: check its weights, and --precision "
            f"({teacher.precision}; fp16 overflows first)"
        )
    rows = np.flatnonzero(good)
    if _is_constant(values[rows], index[rows]) and _differ(pixels[: batch.count][rows]):
        raise TeacherError(
            f"teacher {teacher.spec.canonical} gives the same output for {len(rows)} different "
            f"crops from {key_at(int(rows[0]))} on: check its weights, mean and std"
        )
    dense.add(batch.first, good, outputs)
    values = np.where(good[:, None], values, 0)
    tail = np.where(good, outputs.rest[: batch.count], 1)
    buffer.add_labels(batch.first, codec.encode_topk(values, index, tail))


def _check_folder(folder: ImageFolder, row: int) -> None:
    """One file may vanish and is masked; if its folder did (an unmounted disk), so will all.

    Raises:
        TeachonceError: the folder is gone.
    """
    parent = folder.path(row).parent
    if not parent.is_dir():
        raise TeachonceError(
            f"{parent} vanished while its images were labelled: bring it back and run the same "
            "command again to resume"
        )


def _is_constant(values: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> bool:
    return len(values) >= CONSTANT_CROPS and bool(
        (values == values[0]).all() and (index == index[0]).all()
    )


def _differ(pixels: npt.NDArray[np.uint8]) -> bool:
    return bool((pixels != pixels[0]).any())


def _write(
    store: LabelStore,
    teacher: Teacher,
    folder: ImageFolder,
    block: int,
    buffer: BlockBuffer,
    dense: DenseOutputs,
) -> Callable[[], None]:
    mass, name = dense.tail_mass(), teacher.spec.name

    def write() -> None:
        rows = buffer.rows
        labels = buffer.finish()
        data = BlockData(
            digest=buffer.digest,
            key=list(folder.keys[rows.start : rows.stop]),
            size=buffer.size,
            target=np.array(folder.targets[rows.start : rows.stop], np.int32),
            status=buffer.status,
            box=buffer.box,
            flip=buffer.flip,
            labels={name: labels},
            tail_mass={} if mass is None else {name: mass},
            samples={name: dense.sample(buffer.status == ImageStatus.OK)},
        )
        store.write_block(block, data, device=device_name(teacher.device))

    return write


def device_name(device: torch.device) -> str:
    """For receipts: the GPU's or the CPU's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
