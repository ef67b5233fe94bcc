"""Bookkeeping between steps: where a run stands, its log, its checkpoints, its stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from storage.errors import TrainingError
from storage.progress import Progress
from trainer.distributed import World
from trainer.loop import FiniteGuard
from trainer.metrics import MetricsLog
from trainer.plan import Pass

LOG_EVERY = 20  # steps between lines of metrics.jsonl
SAVE_SECONDS = 600.0  # between checkpoints inside an epoch
AGREE_EVERY = 10  # steps between looks at the other processes' signals


@dataclass
class RunState:
    """Where a run stands: the next step to take. epoch: passes over the images that are done."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0

    def end_pass(self, done: Pass) -> None:
        """Stand behind the last step of a pass (failed images can cost it some; the schedule goes
        by passes)."""
        self.epoch, self.step_in_epoch = done.number + 1, 0
        self.step = done.first_step + done.steps


class StepRecorder:
    """Counts, logs and checkpoints after each step.

    Args:
        log: of the first process. save_state: writes a checkpoint of the given state.
        describe: a step in words, see FiniteGuard.
        measure: more numbers for a logged line, of the step just taken.
    """

    def __init__(
        self,
        state: RunState,
        log: MetricsLog | None,
        progress: Progress,
        total_steps: int,
        save_state: Callable[[RunState], None],
        describe: Callable[[int], str],
        measure: Callable[[], dict[str, float]],
        world: World = World(),  # noqa: B008 - frozen
    ) -> None:
        self.state = state
        self.crops = 0
        self.seconds = 0.0  # spent training in this process
        self.stop = False  # set by a signal: leave after the step in progress
        self._log, self._progress, self._total_steps = log, progress, total_steps
        self._save_state, self._world = save_state, world
        self._measure = measure
        self._guard = FiniteGuard(LOG_EVERY, describe)
        self._saved_at = self._window_start = time.monotonic()
        self._window_crops = 0

    def on_step(self, step: int, loss: Tensor, num_crops: int) -> None:
        """Called by the loop after each optimiser step.

        Raises:
            TrainingError: the loss was not finite, or a signal asked to stop.
        """
        self._guard.see(step, loss)
        self.state.step = step + 1
        self.state.step_in_epoch += 1
        self.crops += num_crops * self._world.size
        self._window_crops += num_crops * self._world.size
        logged = step % LOG_EVERY == 0 or step == self._total_steps - 1
        self._progress.advance(1, self._write_line(step, float(loss)) if logged else None)
        if self._world.size == 1 or step % AGREE_EVERY == 0:
            self._stop_or_save()

    def _stop_or_save(self) -> None:
        """What all processes must do after the same step, if one of them has to."""
        self.stop = self._world.any(self.stop)
        if self.stop:
            self.save()
            self.check_stop()
        if self._world.any(time.monotonic() - self._saved_at >= SAVE_SECONDS):
            self.save()

    def check_stop(self) -> None:
        """End a run that a signal asked to end; its checkpoint is written.

        Raises:
            TrainingError: it was.
        """
        self.stop = self._world.any(self.stop)
        if self.stop:
            raise TrainingError(
                f"stopped by a signal after step {self.state.step - 1}; run the same command again "
                "to go on"
            )

    def save(self) -> None:
        """Checkpoint, unless the loss has gone wrong since the last one."""
        self._guard.check()
        self._save_state(self.state)
        self._saved_at = time.monotonic()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time spent inside counts as training."""
        started = self._window_start = time.monotonic()
        self._window_crops = 0
        try:
            yield
        finally:
            self.seconds += time.monotonic() - started

    def _write_line(self, step: int, loss: float) -> str:
        now = time.monotonic()
        rate = self._window_crops / max(1e-9, now - self._window_start)
        if self._log is not None:
            self._log.write("train", step, epoch=self.state.epoch, loss=loss, **self._measure(),
                            crops_per_s=round(rate, 1))  # fmt: skip
        self._window_start, self._window_crops = now, 0
        return f"loss {loss:.3f}  {rate:,.0f} crops/s"


@contextmanager
def stop_on_signal(recorder: StepRecorder) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the run after the step in progress, with a checkpoint."""

    def handler(_signal: int, _frame: Any) -> None:
        recorder.stop = True

    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread: the caller's handling stays
        pass
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
