"""Replay through FFCV: threads of compiled code, one FFCV loader for all epochs."""

from __future__ import annotations

import contextlib
import queue
import warnings
from collections.abc import Iterator
from typing import Any

import numba
import numba.typed
import numpy as np
import torch

from storage.augment import Augment
from storage.beton import FIELDS, REENCODED_FIELDS
from storage.errors import BadImage, TrainingError, UsageError
from trainer.replay.beton import Beton
from trainer.replay.epoch import ReplayBatch, ReplayLoader
from trainer.replay.reference import cut_packed, read_packed


@contextlib.contextmanager
def quiet_ffcv() -> Iterator[None]:
    """Silence FFCV 1.0.2's known noise while it is imported and while it compiles.

    It uses `ast.Index` and `distutils`, which newer Pythons deprecate.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@contextlib.contextmanager
def _plain_dictionaries() -> Iterator[None]:
    """Import FFCV with Python's dict for numba's, which takes 4 seconds to compile.

    FFCV 1.0.2 has one, of the two names of its image modes, and reads it in Python alone.
    """
    compiled, numba.typed.Dict = numba.typed.Dict, dict
    try:
        yield
    finally:
        numba.typed.Dict = compiled


_torch_threads = torch.get_num_threads()
with quiet_ffcv(), _plain_dictionaries():
    from ffcv.loader import Loader, OrderOption
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.compiler import Compiler

    from trainer.replay.colour import compile_program
    from trainer.replay.decoder import ReplayDecoder
    from trainer.replay.field import SourceImageField
    from trainer.replay.row import DECODED, UNDECODABLE


def _set_numba_threads(num_threads: int) -> None:
    Compiler.num_threads = num_threads
    numba.set_num_threads(num_threads)


# FFCV sets torch's threads along with numba's (to 1 when it is imported, to its number of workers
# in every epoch), which would slow the student's step and change its sums.
torch.set_num_threads(_torch_threads)
Compiler.set_num_threads = staticmethod(_set_numba_threads)

POLL_SECONDS = 0.2  # how often a waiting consumer looks whether the thread still lives
AHEAD = 3  # batches prepared in advance


@contextlib.contextmanager
def _no_compiled_reader() -> Iterator[None]:
    """Build an FFCV loader without its compiled page reader, which our decoder does not use.

    FFCV compiles it (a second) for a type that it gets by changing numba's one shared
    `uint8[::1]` to read-only: writes to such arrays may then be refused anywhere in the
    process, and numba's own tables, keyed by that type, break when they are freed.
    """
    original = OSCacheManager.compile_reader
    OSCacheManager.compile_reader = lambda self: None
    try:
        yield
    finally:
        OSCacheManager.compile_reader = original


class _GuardedEpoch(EpochIterator):  # type: ignore[misc]
    """FFCV's epoch thread, whose failure reaches the consumer and which can be stopped.

    FFCV's own prints an exception and leaves the consumer waiting for ever, and its thread
    waits for ever to hand over the end of an epoch that nobody reads any more.
    """

    def __init__(self, loader: Loader, order: np.ndarray) -> None:
        self.error: BaseException | None = None
        super().__init__(loader, order)  # starts the thread

    def run(self) -> None:
        """The thread: keep what went wrong for the consumer."""
        try:
            super().run()
        except BaseException as error:
            self.error = error

    def __next__(self) -> Any:
        while True:
            try:
                item = self.output_queue.get(timeout=POLL_SECONDS)
                break
            except queue.Empty:
                if self.is_alive() or not self.output_queue.empty():
                    continue
                if self.error is None:
                    raise TrainingError("FFCV's loading thread ended without a word") from None
                raise TrainingError(
                    f"FFCV's loading thread failed: {type(self.error).__name__}: {self.error}"
                ) from self.error
        if item is None:
            raise StopIteration
        slot, result = item
        if self.cuda_streams[slot] is not None:
            self.current_stream.wait_stream(self.cuda_streams[slot])
        return result

    def stop(self) -> None:
        """End the thread, wherever it is; returns when it has gone."""
        self.terminate_event.set()
        while self.is_alive():
            with contextlib.suppress(queue.Empty):
                self.output_queue.get_nowait()
            self.join(0.01)
        self.close()
        self.closed = True


class FFCVReplayLoader(ReplayLoader):
    """Replays views with FFCV's threads; see `ReplayLoader`.

    Compiled once, at the first epoch (seconds). One epoch at a time: the threads read the
    epoch's tables of boxes, flips and draws, which the next epoch refills.
    """

    def __init__(
        self,
        beton: Beton,
        *,
        size: int,
        views: int,
        interpolation: str = "bilinear",
        padding: int = 0,
        augment: Augment | None = None,
        batch_images: int,
        workers: int,
    ) -> None:
        super().__init__(
            beton, size=size, views=views, interpolation=interpolation, padding=padding,
            augment=augment, batch_images=batch_images, workers=workers,
        )  # fmt: skip
        self._box = np.zeros((beton.num_rows, views, 4), np.uint16)
        self._flip = np.zeros((beton.num_rows, views), np.uint8)
        columns = augment.columns if augment else 0
        self._draw = np.zeros((beton.num_rows, views, columns), np.int16)
        self._program = compile_program(augment)
        self._running: _GuardedEpoch | None = None
        decoder = self._decoder = ReplayDecoder(
            box=self._box, flip=self._flip, draw=self._draw, size=size,
            interpolation=interpolation, padding=padding, program=self._program,
        )  # fmt: skip
        fields = FIELDS if beton.origins is None else REENCODED_FIELDS
        unread = {name: None for name in fields if name != "image"}
        with quiet_ffcv(), _no_compiled_reader():
            self._loader = Loader(
                str(beton.path),
                batch_size=batch_images,
                num_workers=min(max(workers, 1), numba.config.NUMBA_NUM_THREADS),
                os_cache=True,
                order=OrderOption.SEQUENTIAL,  # never used: every epoch brings its own order
                seed=0,
                drop_last=False,
                batches_ahead=AHEAD,
                pipelines={"image": [decoder], **unread},
                custom_fields={"image": SourceImageField},
            )

    def _batches(
        self, rows: np.ndarray, box: np.ndarray, flip: np.ndarray, draw: np.ndarray | None
    ) -> Iterator[ReplayBatch]:
        if self._running is not None:
            raise UsageError(
                "an epoch of this loader is still running: finish or close it first, "
                "or make a second loader"
            )
        self._decoder.size = self.size  # FFCV asks for memory by it in every epoch
        np.copyto(self._box, box)
        np.copyto(self._flip, flip)
        if draw is not None:
            np.copyto(self._draw, draw)
        with quiet_ffcv():
            epoch = self._running = _GuardedEpoch(self._loader, rows.astype(np.uint64))
        try:
            start = 0
            for ((images, digests, status),) in epoch:
                taken = rows[start : start + len(images)]
                start += len(images)
                failed = status != DECODED
                for slot in np.flatnonzero(status == UNDECODABLE):
                    row = int(taken[slot])
                    given = None if draw is None else draw[row]
                    failed[slot] = not self._settled(row, box[row], flip[row], given, images[slot])
                yield ReplayBatch(
                    images=torch.from_numpy(images), rows=taken, digests=digests, failed=failed
                )
            if start != len(rows):
                raise TrainingError(f"FFCV gave {start} of the epoch's {len(rows)} images")
        finally:
            epoch.stop()
            self._running = None

    def _settled(
        self, row: int, box: np.ndarray, flip: np.ndarray, draw: np.ndarray | None, out: np.ndarray
    ) -> bool:
        """Have Pillow decide on what libjpeg-turbo warned of; whether `out` has the views now.

        Not every ordinary JPEG is decoded while packing (trainer.replay.encode), so odd bytes in
        one may be met here first. Bytes that have changed since stay a failure.
        """
        record = self.beton.records[row]
        try:
            image = read_packed(self.beton.path, record, self.contract, unchanged_jpeg=True)
        except BadImage:
            return False
        cut_packed(image, box, flip, draw, self.contract, self.augment, out)
        return True
