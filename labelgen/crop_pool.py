"""Crop workers around a ring of crops in shared memory.

The ring lies in an anonymous memory file (memfd), inherited by the workers: it has no name that
a killed run could leave behind, and is not bound by the size of /dev/shm. A thread of the parent
hands out units and collects results while the main thread is in the forward pass. Workers see
the end of their socket when the parent dies, the parent sees it when a worker dies: neither
waits for the dead.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from labelgen.crop_worker import CropConfig, CutUnit, StoredViews, map_ring
from labelgen.plan import SEGMENT_VIEWS, Unit
from storage.errors import TeachonceError

GROUP_CROPS = 64  # crops in one message: many small images would drown in messages
OUTSTANDING = 2  # groups a worker holds: one in work, one waiting
_STOP_SECONDS = 2.0
_LOOK_SECONDS = 0.5  # between looks at `stop` while no crop arrives
STOPPED = "stopped as asked; run the same command again to resume where it stopped"


class DeadWorkerError(TeachonceError):
    """A crop worker ended by itself: killed, out of memory, or a crash in a decoder."""


class StoppedError(TeachonceError):
    """Asked to stop: finished blocks are written, the rest is for the next run."""

    exit_code = 3


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    groups: deque[Sequence[Unit]]


class CropPool:
    """Cuts units into the ring, in their order, as far ahead as the ring allows.

    Use as a context manager; `ready(number)` and `release()` walk through the batches.

    Args:
        units: in the order of their slots. keys: file of each row, relative to config.root.
        config: its `slots` are whole batches, one batch and SEGMENT_VIEWS crops at least.
        stored: views that a unit has already; where None, the sampler draws them. Called on a
            thread of the pool's, in the order of the units.
    """

    def __init__(
        self,
        units: Iterator[Unit],
        keys: Sequence[str],
        config: CropConfig,
        *,
        batch_size: int,
        workers: int,
        stored: Callable[[Unit], StoredViews] | None = None,
    ) -> None:
        self._stored = stored
        self._units, self._keys, self._config = units, keys, config
        self._batch_size, self._num_workers = batch_size, workers
        if config.slots % batch_size or config.slots < batch_size + SEGMENT_VIEWS:
            raise ValueError(f"ring of {config.slots} slots does not suit batches of {batch_size}")
        self._ring_fd = os.memfd_create("teachonce-ring", os.MFD_CLOEXEC)
        os.ftruncate(self._ring_fd, config.slots * config.size**2 * 3)
        self.ring = map_ring(os.dup(self._ring_fd), config.slots, config.size)
        self._wake_read, self._wake_write = os.pipe()
        self._changed = threading.Condition()
        self._results: list[CutUnit] = []
        self._pending: Counter[int] = Counter()  # batch -> units handed out, not yet cut
        self._dispatched = 0  # slots below this are handed out
        self._released = 0  # batches given back
        self._error: BaseException | None = None
        self._stopping = False
        self._workers: list[_Worker] = []
        self._thread = threading.Thread(target=self._run, name="crop-pool", daemon=True)

    def __enter__(self) -> CropPool:
        try:
            self._workers = [self._start_worker() for _ in range(self._num_workers)]
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        self._wake()
        self._thread.join()
        self._close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def ready(
        self, number: int, end_slot: int, stop: threading.Event | None = None
    ) -> tuple[npt.NDArray[np.uint8], list[CutUnit]]:
        """Wait until batch `number` is cut, up to `end_slot`.

        Returns:
            its pixels uint8 [B, S, S, 3], a view of the ring that is valid until `release`, and
            what has become known of all units since the last call (of later batches too).
        Raises:
            StoppedError: `stop` was set.
            DeadWorkerError: a worker ended by itself.
        """
        with self._changed:
            while not self._is_cut(number, end_slot):
                if stop is not None and stop.is_set():
                    raise StoppedError(STOPPED)
                if self._error is not None:
                    raise self._error
                self._changed.wait(_LOOK_SECONDS)
            results, self._results = self._results, []
            del self._pending[number]
        first = number * self._batch_size % self._config.slots
        return self.ring[first : first + self._batch_size], results

    def release(self) -> None:
        """Give back the oldest batch's part of the ring."""
        with self._changed:
            self._released += 1
        self._wake()

    def _is_cut(self, number: int, end_slot: int) -> bool:
        return self._dispatched >= end_slot and not self._pending[number]

    def _start_worker(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._ring_fd)
            code = "from labelgen.crop_worker import main; main()"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env=package_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        connection = Connection(ours.detach())
        worker = _Worker(process, connection, deque())
        self._workers.append(worker)  # so that it is ended should the next line fail
        connection.send(self._config)
        self._workers.pop()
        return worker

    def _wake(self) -> None:
        os.write(self._wake_write, b"\0")

    def _run(self) -> None:
        try:
            groups = _group(self._units)
            group = next(groups, None)
            while not self._stopping:
                while group and (worker := self._free_worker()) and self._fits(group):
                    self._dispatch(worker, group)
                    group = next(groups, None)
                self._collect()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _free_worker(self) -> _Worker | None:
        worker = min(self._workers, key=lambda each: len(each.groups))
        return worker if len(worker.groups) < OUTSTANDING else None

    def _fits(self, group: Sequence[Unit]) -> bool:
        end = group[-1].slot + group[-1].num_views
        return end <= self._released * self._batch_size + self._config.slots

    def _dispatch(self, worker: _Worker, group: Sequence[Unit]) -> None:
        with self._changed:
            for unit in group:
                self._pending.update(self._batches(unit))
            self._dispatched = group[-1].slot + group[-1].num_views
        worker.groups.append(group)
        stored = self._stored
        items = [(unit, self._keys[unit.row], stored(unit) if stored else None) for unit in group]
        try:
            worker.connection.send(items)
        except OSError:
            raise self._death(worker) from None

    def _collect(self) -> None:
        """Wait for results or a wake-up, and take note of them."""
        connections = {worker.connection: worker for worker in self._workers}
        for source in wait([*connections, self._wake_read]):
            if source is self._wake_read or isinstance(source, int):
                os.read(self._wake_read, 65_536)
                continue
            worker = connections[source]  # type: ignore[index]
            try:
                results = worker.connection.recv()
            except (EOFError, OSError):
                raise self._death(worker) from None
            worker.groups.popleft()
            with self._changed:
                self._results += results
                for result in results:
                    self._pending.subtract(self._batches(result.unit))
                self._changed.notify_all()

    def _batches(self, unit: Unit) -> range:
        last = unit.slot + unit.num_views - 1
        return range(unit.slot // self._batch_size, last // self._batch_size + 1)

    def _death(self, worker: _Worker) -> DeadWorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(_STOP_SECONDS)
        code = worker.process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        rows = [unit.row for group in list(worker.groups)[:1] for unit in group]
        where = f" while cutting {self._keys[rows[0]]}" if rows else ""
        others = f" or one of the {len(rows) - 1} images after it" if len(rows) > 1 else ""
        memory = "; the machine may be out of memory" if code == -9 else ""
        return DeadWorkerError(
            f"crop worker {worker.process.pid} ended with {how}{where}{others}{memory}: "
            "run the same command again to resume, with fewer --workers if it happens again"
        )

    def _close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            try:
                worker.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for fd in (self._ring_fd, self._wake_read, self._wake_write):
            os.close(fd)


def _group(units: Iterator[Unit]) -> Iterator[list[Unit]]:
    """Consecutive units that span at most GROUP_CROPS slots (one unit at least)."""
    group: list[Unit] = []
    for unit in units:
        # counted in slots: the empty ones between two blocks must fit into the ring too
        if group and unit.slot + unit.num_views - group[0].slot > GROUP_CROPS:
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def package_environment() -> dict[str, str]:
    """This process's environment, for one that is to find the same packages."""
    root = str(Path(__file__).parents[1])
    known = os.environ.get("PYTHONPATH")
    path = f"{root}{os.pathsep}{known}" if known else root
    return os.environ | {"PYTHONPATH": path}
