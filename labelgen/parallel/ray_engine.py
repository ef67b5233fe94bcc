"""`labelgen run --engine ray`: blocks as tasks for actors that hold the teacher.

The process that starts the run makes the store and seals it; labels go from actors to the store's
folder, which all machines must have under the same path. Nothing but block numbers goes through
Ray. An actor that dies costs at most the block it was at, which another one labels.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelgen.crop_pool import STOPPED, StoppedError, package_environment
from labelgen.engine import RunReport
from labelgen.parallel.leading import note_run, team_progress, team_report
from labelgen.parallel.local import DeadProcessError
from labelgen.run import begin_store
from labelgen.teacher import Teacher
from storage.errors import TeachonceError
from storage.extras import needs_extra
from storage.images import ImageFolder, scan_folder
from storage.store import LabelStore

if TYPE_CHECKING:
    from labelgen.target_plans import TargetPlan

MOST_DEATHS = 3  # of actors, one after the other without a block in between
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an actor needs to know.

    Attributes:
        folder: working directory that paths are relative to.
        teacher: arguments of labelgen.commands.options.load_teacher_from.
        data, out: images and store. workers: crop workers of each actor.
        settings: of labelgen.run.begin_store.
    """

    folder: str
    teacher: Mapping[str, Any]
    data: str
    out: str
    workers: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """An error meant for users, on its way to the process that tells them."""

    message: str
    exit_code: int = 1
    errno: int | None = None
    filename: str | None = None

    def raised(self) -> Exception:
        """The same error, here."""
        if self.errno is not None:
            return OSError(self.errno, self.message, self.filename)
        return DeadProcessError(self.message, self.exit_code)


class Member:
    """An actor: loads the teacher once, then labels the blocks it is given."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._open: tuple[LabelStore, Teacher, ImageFolder, Sequence[TargetPlan]] | None = None

    def label(self, block: int) -> Failure | None:
        """Label a block and write it; the error where there is one."""
        from labelgen.engine import label_missing_blocks

        try:
            if self._open is None:
                self._open = self._begin()
            store, teacher, folder, plans = self._open
            label_missing_blocks(
                store, teacher, folder, workers=self._request.workers, blocks=[block],
                targets=plans, compiled=self._request.settings["compiled"],
            )  # fmt: skip
        except TeachonceError as error:
            return Failure(" ".join(str(error).split()), error.exit_code)
        except OSError as error:
            name = None if error.filename is None else str(error.filename)
            return Failure(error.strerror or str(error), 1, error.errno or 0, name)
        return None

    def _begin(self) -> tuple[LabelStore, Teacher, ImageFolder, Sequence[TargetPlan]]:
        from labelgen.commands.options import load_teacher_from

        request = self._request
        os.chdir(request.folder)
        teacher = load_teacher_from(**request.teacher)
        folder = scan_folder(request.data)
        store, plans = begin_store(
            teacher, folder, Path(request.out), workers=request.workers, stop=None,
            **request.settings,
        )  # fmt: skip
        return store, teacher, folder, plans


def ray_labelling(request: Request, processes: int) -> Callable[..., RunReport]:
    """What labelgen.run.generate is given as `label` to have blocks labelled by Ray actors.

    Args:
        processes: actors; each has a GPU of its own where the teacher is on one.
    Raises:
        UsageError: Ray isn't installed.
    """
    try:
        import ray
    except ImportError as error:
        raise needs_extra("--engine ray", "ray", "ray") from error

    def label(
        store: LabelStore,
        teacher: Teacher,
        folder: ImageFolder,
        blocks: Sequence[int],
        plans: Sequence[TargetPlan],
        *,
        workers: int,
        compiled: bool = False,
        stop: threading.Event | None = None,
    ) -> RunReport:
        on_gpu = teacher.device.type == "cuda"
        if on_gpu:
            teacher.model.to("cpu")  # the memory is an actor's now
        with team_progress(store, blocks) as progress:
            if blocks:
                _start(ray)
                gpus, cpus = (1, 0) if on_gpu else (0, 1)
                actor = ray.remote(max_restarts=0, num_gpus=gpus, num_cpus=cpus)(Member)
                tasks = _Tasks(
                    ray, lambda: actor.remote(request), blocks, processes,
                    is_missing=lambda block: block in store.missing_blocks(),
                )  # fmt: skip
                try:
                    tasks.run(stop)
                finally:
                    ray.shutdown()
        report = team_report(store, blocks, progress.seconds)
        note_run(store, folder, report, str(teacher.device), processes)
        return report

    return label


def _start(ray: Any) -> None:
    """Join the cluster that $RAY_ADDRESS names, else start one on this machine."""
    environment = {"PYTHONPATH": package_environment()["PYTHONPATH"]}
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": environment},
        include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
    )  # fmt: skip
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the run without a word


class _Tasks:
    """Blocks on their way through the actors."""

    def __init__(
        self,
        ray: Any,
        new_actor: Callable[[], Any],
        blocks: Sequence[int],
        processes: int,
        *,
        is_missing: Callable[[int], bool],
    ) -> None:
        self._ray, self._new_actor, self._is_missing = ray, new_actor, is_missing
        self._waiting = deque(blocks)
        self._idle = [new_actor() for _ in range(min(processes, len(blocks)))]
        self._running: dict[Any, tuple[Any, int]] = {}
        self._deaths = 0

    def run(self, stop: threading.Event | None) -> None:
        """Until every block has been labelled.

        Raises:
            StoppedError: `stop` was set. DeadProcessError, OSError: what an actor ran into.
        """
        while self._waiting or self._running:
            while self._idle and self._waiting:
                actor, block = self._idle.pop(), self._waiting.popleft()
                self._running[actor.label.remote(block)] = actor, block
            ready, _ = self._ray.wait(list(self._running), timeout=_LOOK_SECONDS)
            for task in ready:
                self._finish(task, *self._running.pop(task))
            if stop is not None and stop.is_set():
                raise StoppedError(STOPPED)

    def _finish(self, task: Any, actor: Any, block: int) -> None:
        try:
            failure = self._ray.get(task)
        except self._ray.exceptions.RayActorError:
            self._deaths += 1
            if self._deaths > MOST_DEATHS:
                raise DeadProcessError(
                    f"{self._deaths} Ray actors died one after the other, the last at block "
                    f"{block}; they may be out of memory: run the same command again to resume"
                ) from None
            if self._is_missing(block):
                print(f"a Ray actor died: block {block} goes to another one", file=sys.stderr)
                self._waiting.appendleft(block)
            else:  # it died between writing the block and saying so
                print(f"a Ray actor died: block {block} was finished", file=sys.stderr)
            if self._waiting:
                self._idle.append(self._new_actor())
            return
        if failure is not None:
            raise failure.raised()
        self._deaths = 0
        self._idle.append(actor)
