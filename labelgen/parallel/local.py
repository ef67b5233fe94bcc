"""Processes of this machine that label along with the one that starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from labelgen.crop_pool import StoppedError, package_environment
from labelgen.parallel.world import SPAWNED, World
from storage.errors import TeachonceError

COMMAND = "from labelgen.cli import main; main()"
ERROR = "labelgen: error: "
_END_SECONDS = 30.0  # for a process to end that has nothing left to do, or was asked to
_LOOK_SECONDS = 0.1


class DeadProcessError(TeachonceError):
    """One of several processes ended with an error; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Helper:
    world: World
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


class Helpers:
    """Runs `labelgen` with the same words in further processes; a context manager.

    As soon as one of them fails, `stop` is set; leaving raises what that one said. They end when
    this process does, however it ends.

    Args:
        words: of the command line, after `labelgen`.
        world: of this process.
    """

    def __init__(self, words: Sequence[str], world: World, stop: threading.Event) -> None:
        self._words, self._world, self._stop = words, world, stop
        self._helpers: list[_Helper] = []
        self._failure: TeachonceError | None = None
        self._asked = False  # to end: what a helper says of it is no failure
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="helpers", daemon=True)

    def __enter__(self) -> Helpers:
        size = self._world.size
        try:
            for rank in range(1, size):
                self._helpers.append(self._start(World(rank, size, rank, size, SPAWNED)))
        except BaseException:
            self._end(ask=True)
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(ask=error is not None)
        self._ended.set()
        self._thread.join()
        if self._failure is not None and (error is None or isinstance(error, StoppedError)):
            raise self._failure from None

    @property
    def pids(self) -> list[int]:
        """Process ids of the helpers."""
        return [helper.process.pid for helper in self._helpers]

    def _start(self, world: World) -> _Helper:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, *self._words],
            stdin=subprocess.PIPE,  # its end tells the helper that this process is gone
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=package_environment() | world.environment(),
        )
        return _Helper(world, process, errors)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        asked = self._asked or self._stop.is_set()
        failed = [each for each in self._helpers if each.process.poll() not in (None, 0)]
        if failed and self._failure is None and not asked:
            self._failure = _failure(failed[0])
            self._stop.set()

    def _end(self, ask: bool) -> None:
        if ask:
            self._asked = True
            for helper in self._helpers:
                with contextlib.suppress(OSError):
                    helper.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        for helper in self._helpers:
            try:
                helper.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._asked = True
                helper.process.kill()
                helper.process.wait()
        self._look()
        for helper in self._helpers:
            if helper.process.stdin is not None:
                helper.process.stdin.close()
            helper.errors.close()


def stop_with_parent(stop: threading.Event) -> None:
    """Have `stop` set when the process that started this one is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        stop.set()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def said(text: str) -> str | None:
    """What a `labelgen` command's stderr gives as its error; None where there is none."""
    lines = [line for line in text.splitlines() if line.startswith(ERROR)]
    return lines[-1].removeprefix(ERROR) if lines else None


def failure(who: str, code: int, errors: str) -> TeachonceError:
    """The error of a process that ended with a code other than 0, from its stderr.

    A traceback, which only a fault of the program leaves, is passed on to stderr.
    """
    message = said(errors)
    if message is not None:
        return StoppedError(message) if code == 3 else DeadProcessError(f"{who}: {message}", code)
    sys.stderr.write(errors)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    memory = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    return DeadProcessError(
        f"{who} ended with {how}{memory}: run the same command again to resume, with fewer "
        "--processes if it happens again"
    )


def _failure(helper: _Helper) -> TeachonceError:
    helper.errors.seek(0)
    errors = helper.errors.read().decode("utf-8", "replace")
    who = f"process {helper.world.rank} of {helper.world.size}"
    return failure(who, helper.process.returncode, errors)
