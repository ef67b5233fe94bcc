"""What is known of one block while it is made, and the thread that writes finished blocks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from labelgen.crop_worker import CutUnit
from storage.augment import NO_DRAW, Augment
from storage.canaries import Canary
from storage.codecs import NO_CODE, NO_INDEX, TopKCodec, TopKLabels
from storage.errors import TeachonceError
from storage.images import ImageStatus
from storage.targets.record import TargetRecord

Positions = npt.NDArray[np.intp]


class BlockBuffer:
    """What becomes known of the n images of a block, M views each.

    Attributes:
        digest u1 [n, 32]; pixels u1 [n, 32] (digest of the decoded image, zeros where unknown);
        size u2 [n, 2]; status u1 [n]; box u2 [n, M, 4]; flip u1 [n, M]; draw i2
        [n, M, D] with augmentations: as in a store.
        reasons: row -> why it is masked.
        targets: by path and array name, encoded, [n, F, ...].
        canaries: of the block's crops, as the workers noted them.
    """

    def __init__(
        self,
        rows: range,
        num_views: int,
        codecs: Mapping[str, TopKCodec],
        augment: Augment | None = None,
        targets: Iterable[TargetRecord] = (),
    ) -> None:
        n = len(rows)
        self.rows, self._num_views = rows, num_views
        self.digest = np.zeros((n, 32), np.uint8)
        self.pixels = np.zeros((n, 32), np.uint8)
        self.size = np.zeros((n, 2), np.uint16)
        self.status = np.full(n, ImageStatus.UNWRITTEN, np.uint8)
        self.reasons: dict[int, str] = {}
        self.canaries: list[Canary] = []
        self.box = np.zeros((n, num_views, 4), np.uint16)
        self.flip = np.full((n, num_views), 255, np.uint8)
        self.draw: npt.NDArray[np.int16] | None = None
        if augment is not None:
            self.draw = np.full((n, num_views, augment.columns), NO_DRAW, np.int16)
        self.targets: dict[str, dict[str, npt.NDArray[Any]]] = {
            target.path: {
                name: np.zeros((n, target.views, *array.shape), array.dtype)
                for name, array in target.arrays().items()
            }
            for target in targets
        }
        self._labels = {
            name: TopKLabels(
                np.full((n, num_views, codec.top_k), NO_INDEX, np.uint16),
                np.full((n, num_views, codec.top_k), NO_CODE, np.uint8),
                np.full((n, num_views), NO_CODE, np.uint8),
            )
            for name, codec in codecs.items()
        }

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
        if cut.pixels is not None:
            self.pixels[i] = np.frombuffer(cut.pixels, np.uint8)
        self.canaries += cut.canaries
        if cut.box is not None and cut.flip is not None:
            self.size[i] = cut.height, cut.width
            views = slice(unit.first_view, unit.first_view + unit.num_views)
            self.box[i, views], self.flip[i, views] = cut.box, cut.flip
            if self.draw is not None and cut.draw is not None:
                self.draw[i, views] = cut.draw

    def add_labels(
        self, teacher: str, images: Positions, views: Positions, labels: TopKLabels
    ) -> None:
        """Labels [count, ...] of some crops: number of the image in the block, and view."""
        ours = self._labels[teacher]
        ours.index[images, views] = labels.index
        ours.code[images, views] = labels.code
        ours.tail[images, views] = labels.tail

    def add_target(
        self, path: str, images: Positions, views: Positions, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """Encoded values [count, ...] of some crops of a target, by array name."""
        for name, values in arrays.items():
            self.targets[path][name][images, views] = values

    def labels(self) -> dict[str, TopKLabels]:
        """Labels [n, M, ...] by teacher; the store puts fill values into masked rows."""
        return self._labels


class BlockWriter:
    """Writes blocks in a thread, one at a time and none waiting: a killed run loses the one that is
    being written and the one in work. Its errors reach the caller.

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
        """Have a block written; waits while another one is being written.

        Raises:
            OSError, TeachonceError: what writing an earlier block raised.
        """
        self._queue.join()
        self.check()
        self._queue.put(write)

    def check(self) -> None:
        """Raise what writing raised, if anything."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (write := self._queue.get()) is not None:
            try:
                if self._error is None:
                    write()
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
