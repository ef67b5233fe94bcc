"""The labels of one block while they are made, and the thread that writes finished blocks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

import numpy as np
import numpy.typing as npt

from labelgen.crop_worker import CutUnit
from storage.codecs import NO_CODE, NO_INDEX, TopKCodec, TopKLabels
from storage.errors import TeachonceError
from storage.images import ImageStatus


class BlockBuffer:
    """What becomes known of the n images of a block, M views each."""

    def __init__(self, rows: range, num_views: int, codec: TopKCodec) -> None:
        n, k = len(rows), codec.top_k
        self.rows, self._codec, self._num_views = rows, codec, num_views
        self.digest = np.zeros((n, 32), np.uint8)
        self.size = np.zeros((n, 2), np.uint16)
        self.status = np.full(n, ImageStatus.UNWRITTEN, np.uint8)
        self.reasons: dict[int, str] = {}  # row -> why it is masked
        self.box = np.zeros((n, num_views, 4), np.uint16)
        self.flip = np.full((n, num_views), 255, np.uint8)
        # one row per position: index [n * M, k], as batches come
        self._index = np.full((n * num_views, k), NO_INDEX, np.uint16)
        self._code = np.full((n * num_views, k), NO_CODE, np.uint8)
        self._tail = np.full(n * num_views, NO_CODE, np.uint8)

    def add_cut(self, cut: CutUnit, key: str) -> None:
        """Take note of one unit.

        Raises:
            TeachonceError: the file changed between two of its units.
        """
        unit, i = cut.unit, cut.unit.row - self.rows.start
        digest = np.frombuffer(cut.digest, np.uint8)
        if (
            ImageStatus.MISSING not in (cut.status, self.status[i])
            and self.status[i] != ImageStatus.UNWRITTEN
            and (digest != self.digest[i]).any()
        ):
            raise TeachonceError(
                f"{key} changed while it was labelled: keep the images still and run the same "
                "command again to resume"
            )
        if cut.status != ImageStatus.OK:
            self.reasons.setdefault(unit.row, cut.detail)
        if self.status[i] == ImageStatus.UNWRITTEN or cut.status != ImageStatus.OK:
            self.status[i] = cut.status
        if cut.status != ImageStatus.MISSING:
            self.digest[i] = digest
        if cut.box is not None and cut.flip is not None:
            self.size[i] = cut.height, cut.width
            views = slice(unit.first_view, unit.first_view + unit.num_views)
            self.box[i, views], self.flip[i, views] = cut.box, cut.flip

    def is_good(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of `count` positions from `first` on show a sound image, bool [count]."""
        return self.status[self.images_of(first, count)] == ImageStatus.OK

    def images_of(self, first: int, count: int) -> npt.NDArray[np.intp]:
        """Image number in the block of each position, [count]."""
        return np.arange(first, first + count, dtype=np.intp) // self._num_views

    def add_labels(self, first: int, labels: TopKLabels) -> None:
        """Labels of the positions from `first` on."""
        end = first + len(labels.tail)
        self._index[first:end], self._code[first:end] = labels.index, labels.code
        self._tail[first:end] = labels.tail

    def finish(self) -> TopKLabels:
        """Labels [n, M, ...]. The store puts fill values into the rows whose status isn't OK."""
        self.size[self.status != ImageStatus.OK] = 0
        shape = (len(self.rows), self._num_views)
        return TopKLabels(
            self._index.reshape(*shape, -1),
            self._code.reshape(*shape, -1),
            self._tail.reshape(shape),
        )


class BlockWriter:
    """Writes blocks in a thread, one waiting at most; its errors reach the caller.

    Use as a context manager: leaving it without an error waits until all is written.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="block-writer", daemon=True)

    def __enter__(self) -> BlockWriter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self.check()

    def submit(self, write: Callable[[], None]) -> None:
        """Have a block written; waits while another one is waiting.

        Raises:
            OSError, TeachonceError: what writing an earlier block raised.
        """
        self.check()
        self._queue.put(write)

    def check(self) -> None:
        """Raise what writing raised, if anything."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (write := self._queue.get()) is not None:
            if self._error is not None:
                continue  # keep emptying the queue, so that submit never waits for ever
            try:
                write()
            except BaseException as error:
                self._error = error
