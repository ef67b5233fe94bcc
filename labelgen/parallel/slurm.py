"""`labelgen run --engine slurm`: the processes of a run as jobs of a Slurm cluster (submitit).

The job of the first process is submitted alone; the others are an array that Slurm may start once
that one has started. Where there is no Slurm, submitit runs them all as processes of this machine.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelgen.crop_pool import STOPPED, StoppedError, package_environment
from labelgen.parallel.local import COMMAND, failure
from labelgen.parallel.world import World
from storage.errors import UsageError
from storage.extras import needs_extra

LAUNCHER = "slurm"
MINUTES = 24 * 60  # of a job, unless --slurm timeout_min=... says otherwise
_LOOK_SECONDS = 1.0
# Parameters that submitit has for every kind of cluster; Slurm's own begin with the prefix.
_SHARED, _PREFIX = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"), "slurm_"


@dataclass(frozen=True)
class Ended:
    """What a job's process left: its exit code and what it wrote."""

    code: int
    output: str
    errors: str


def run_rank(words: Sequence[str], world: World) -> Ended:
    """Runs in a job: `labelgen` with the same words, as one of several."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=package_environment() | world.environment(),
    )
    lines = []
    assert process.stderr is not None and process.stdout is not None
    for line in process.stderr:  # also into the job's own log, as it comes
        sys.stderr.write(line)
        lines.append(line)
    output = process.stdout.read()  # a result is short: the pipe has held it
    return Ended(process.wait(), output, "".join(lines))


@dataclass
class Jobs:
    """Jobs of a run that have been submitted; `jobs[0]` is the first process's."""

    jobs: Sequence[Any]
    folder: Path

    @property
    def ids(self) -> list[str]:
        """As the cluster names them."""
        return [job.job_id for job in self.jobs]

    def wait(self, stop: threading.Event) -> str:
        """Wait for all jobs; returns what the first one's process wrote to stdout.

        Raises:
            StoppedError: `stop` was set; the jobs have been cancelled.
            TeachonceError: one failed, with its own message.
        """
        while not all(job.done() for job in self.jobs):
            if stop.wait(_LOOK_SECONDS):
                self.cancel()
                raise StoppedError(STOPPED)
            self._raise_failures()
        self._raise_failures()
        return str(self.jobs[0].result().output)

    def cancel(self) -> None:
        """End all jobs; finished blocks are in the store."""
        for job in self.jobs:
            job.cancel(check=False)

    def _raise_failures(self) -> None:
        for rank, job in enumerate(self.jobs):
            if not job.done():
                continue
            who = f"process {rank} of {len(self.jobs)} (job {job.job_id}, log {job.paths.stderr})"
            crash = job.exception()
            if crash is not None:
                self.cancel()
                raise failure(who, 1, f"{crash}\n")
            ended = job.result()
            if ended.code:
                self.cancel()
                raise failure(who, ended.code, ended.errors)


def submit(
    words: Sequence[str], processes: int, folder: Path, parameters: Mapping[str, Any]
) -> Jobs:
    """Submit a run.

    Args:
        words: of the command line, after `labelgen`. folder: of the jobs' logs.
        parameters: of submitit.AutoExecutor.update_parameters, for every job.
    Raises:
        UsageError: submitit isn't installed, or knows no such parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise needs_extra("--engine slurm", "submitit", "slurm") from error
    executor = submitit.AutoExecutor(folder=folder)
    if executor.cluster != "slurm":
        print("no Slurm here (no srun): jobs are processes of this machine", file=sys.stderr)
    worlds = [World(rank, processes, 0, 1, LAUNCHER) for rank in range(processes)]
    try:
        executor.update_parameters(**_parameters(parameters))
        jobs = [executor.submit(run_rank, words, worlds[0])]
        if processes > 1 and executor.cluster == "slurm":
            after = {"dependency": f"after:{jobs[0].job_id}"}
            executor.update_parameters(slurm_additional_parameters=after)
        if processes > 1:
            jobs += executor.map_array(run_rank, [words] * (processes - 1), worlds[1:])
    except (NameError, ValueError, TypeError) as error:
        raise UsageError(f"--slurm: {' '.join(str(error).split())}") from error
    return Jobs(jobs, folder)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "labelgen", "timeout_min": MINUTES} | dict(given)


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts as parameters; whole numbers become numbers.

    Raises:
        UsageError: a text without "=".
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--slurm is {pair!r}; expected KEY=VALUE, as in partition=gpu")
        key = name if name in _SHARED or name.startswith(_PREFIX) else _PREFIX + name
        found[key] = int(value) if value.isdecimal() else value
    return found
