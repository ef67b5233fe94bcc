"""Runs of several processes from the command line: launchers, faults, kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from parallel_runs import BLOCKS, Runs
from test_labelgen_resume import is_running, worker_pids

from storage.store import LabelStore
from storage.verify import verify

PORT = 29_617


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Images and a teacher, and a store made by one process, `whole`."""
    made = Runs(tmp_path_factory.mktemp("runs"))
    result = made.run("whole", "--processes", "1")
    assert result.returncode == 0, result.stderr
    return made


def family(pid: int) -> set[int]:
    """A process's descendants."""
    children = worker_pids(pid)
    return set(children).union(*map(family, children))


def wait_until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_root(runs: Runs, processes: int) -> None:
    out = f"p{processes}"
    result = runs.run(out, "--processes", str(processes), "--json", slow=0.1, meet=processes)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["root"] == runs.root(out) == runs.root("whole")
    assert found["new_crops"] == BLOCKS * 16
    assert len(runs.writers(out)) == processes
    assert result.stderr.count("labelling: ") >= 1
    again = runs.run(out, "--processes", str(processes), "--json")  # nothing is left to do
    assert json.loads(again.stdout)["new_crops"] == 0


def check_fault(runs: Runs, out: str, words: str, code: int, **more: str) -> None:
    """A fault in the second of two processes: one line, its exit code, and the store resumes."""
    result = runs.run(out, "--processes", "2", slow=0.1, meet=2, **more)
    assert result.returncode == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("labelgen: error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in result.stderr
    elsewhere = runs.folder / "elsewhere"
    if elsewhere.exists():
        elsewhere.rename(runs.folder / "images" / "class2")
    assert not (runs.folder / out / "manifest.json").exists()
    resumed = runs.run(out, "--processes", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert runs.root(out) == runs.root("whole")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("disk", "No space left on device; free some space and run the same command again"),
        ("device", "an illegal memory access was encountered"),
        ("folder", "class2 vanished while its images were labelled"),
        ("crash", "process 1 of 2 ended with signal 9"),
    ],
)
def test_a_fault_in_one_process_is_one_line_and_the_store_resumes(
    runs: Runs, fault: str, words: str
) -> None:
    vanishing = str(runs.folder / "images" / "class2")
    check_fault(runs, f"f-{fault}", words, 1, FAULT=fault, VANISHING=vanishing)


def test_a_failing_first_process_ends_the_others(runs: Runs) -> None:
    process = runs.start("first", "--processes", "2", slow=0.2, meet=2)
    wait_until(lambda: runs.finished("first") >= 4)
    helpers = family(process.pid)
    process.kill()  # not even able to tell them
    process.communicate()
    wait_until(lambda: not any(map(is_running, helpers)), 30)
    assert LabelStore.open(runs.folder / "first").missing_blocks()
    assert runs.run("first", "--processes", "3").returncode == 0
    assert runs.root("first") == runs.root("whole")


@pytest.mark.parametrize("everyone", [True, False])
def test_asked_to_stop_all_stop_and_say_how_to_go_on(runs: Runs, everyone: bool) -> None:
    out = f"stop{everyone}"
    process = runs.start(out, "--processes", "2", slow=0.2, meet=2)
    wait_until(lambda: runs.finished(out) >= 2)
    helpers = family(process.pid)
    if everyone:  # as from a terminal
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "labelgen: error: stopped as asked; run the same command again to resume" in errors
    assert "Traceback" not in errors
    wait_until(lambda: not any(map(is_running, helpers)), 10)
    assert 0 < len(LabelStore.open(runs.folder / out).missing_blocks()) < BLOCKS


def test_torchrun_needs_no_process_group(runs: Runs) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", str(PORT), "-m", "labelgen.cli", *runs.words("torchrun")],
        env=runs.environment(0.1, meet=2), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("root ") == 1  # the first process alone has a result to print
    assert runs.root("torchrun") == runs.root("whole")
    assert len(runs.writers("torchrun")) == 2


def test_ranks_of_srun_take_their_places_from_the_environment(runs: Runs) -> None:
    meeting = str(runs.folder / "srun-meeting")

    def rank(number: int) -> subprocess.Popen[str]:
        place = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NTASKS": "2"}
        return runs.start("srun", slow=0.1, meet=2, MEETING=meeting, **place)

    second = rank(1)  # waits for the first one's store
    time.sleep(1.0)
    both = [rank(0), second]
    results = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert runs.root("srun") in results[0][0]
    assert results[1][0] == ""
    assert runs.root("srun") == runs.root("whole")
    assert len(runs.writers("srun")) == 2


def test_ranks_refuse_what_several_processes_cannot_do(runs: Runs) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2"}
    refused = runs.run("refused", "--overwrite", **place)
    assert (refused.returncode, "--overwrite under torchrun" in refused.stderr) == (2, True)
    refused = runs.run("refused", "--processes", "3", **place)
    assert (refused.returncode, "which started 2" in refused.stderr) == (2, True)
    refused = runs.run("refused", "--no-wait")
    assert (refused.returncode, "for --engine slurm" in refused.stderr) == (2, True)
    alone = runs.run("refused", "--patience", "0", **place)
    assert (alone.returncode, "hasn't made" in alone.stderr) == (3, True)
    assert not (runs.folder / "refused").exists()


def test_slurm_engine_runs_the_ranks_as_jobs(runs: Runs) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    result = runs.run("jobs", "--engine", "slurm", "--processes", "2", slow=0.1, meet=2)
    assert result.returncode == 0, result.stderr
    assert "no Slurm here" in result.stderr
    assert runs.root("jobs") in result.stdout
    assert runs.root("jobs") == runs.root("whole")
    assert len(runs.writers("jobs")) == 2
    failed = runs.run("jobs", "--engine", "slurm", "--crops", "5")
    assert failed.returncode == 1
    assert "num_views" in failed.stderr.splitlines()[-1]


def test_on_a_cluster_further_processes_start_after_the_first(runs: Runs) -> None:
    """sbatch is a script that keeps what it is given: what submitit would submit is looked at."""
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    tools, kept = runs.folder / "bin", runs.folder / "kept"
    tools.mkdir()
    kept.mkdir()
    (tools / "sbatch").write_text(
        f'#!/bin/sh\nn=$(ls {kept} | wc -l)\ncp "$1" {kept}/$n\n'
        'echo "Submitted batch job $((100 + n))"\n'
    )
    (tools / "srun").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    result = runs.run(
        "cluster", "--engine", "slurm", "--processes", "4", "--slurm", "partition=gpu",
        "--slurm", "timeout_min=90", "--no-wait", "--json",
        PATH=f"{tools}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["jobs"] == ["100", "101_0", "101_1", "101_2"]
    first, others = ((kept / name).read_text() for name in "01")
    for script in (first, others):
        assert "#SBATCH --partition=gpu\n" in script
        assert "#SBATCH --time=90\n" in script
    assert "--array" not in first
    assert "#SBATCH --array=0-2" in others
    assert "#SBATCH --dependency=after:100\n" in others


def test_engines_whose_library_is_missing_say_what_to_install(runs: Runs) -> None:
    for engine, library in (("slurm", "submitit"), ("ray", "ray")):
        hidden = runs.folder / f"no-{library}"
        hidden.mkdir()
        (hidden / f"{library}.py").write_text("raise ImportError('hidden')\n")
        result = subprocess.run(
            runs.command("hidden", "--engine", engine), capture_output=True, text=True,
            env=runs.environment() | {"PYTHONPATH": f"{hidden}:{Path(__file__).parents[1]}"},
        )  # fmt: skip
        assert result.returncode == 2
        assert f"pip install -e '.[{engine}]'" in result.stderr


@pytest.mark.long
def test_a_ray_actor_killed_in_mid_run_costs_its_block_alone(runs: Runs) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    process = runs.start("ray", "--engine", "ray", "--processes", "2")
    wait_until(lambda: runs.writers("ray") or process.poll() is not None, 240)
    victim = min(runs.writers("ray"))  # with most of the 24 blocks to go
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors.count("a Ray actor died: block") == 1
    assert runs.root("ray") == runs.root("whole")
    assert victim in runs.writers("ray"), "what it had finished is not made again"


def start_and_kill(runs: Runs, out: str, rng: np.random.Generator, ahead: int) -> None:
    """Kill the first process of a run, the second or both, at some point of it."""
    process, blocks = runs.start(out, "--processes", "2", slow=0.1), int(rng.integers(0, 3))
    wait_until(lambda: process.poll() is not None or runs.finished(out) >= ahead + blocks)
    time.sleep(float(rng.uniform(0, 0.3)))
    helpers, ours = family(process.pid), worker_pids(process.pid)
    victims = [[process.pid], ours[-1:], [process.pid, *ours]][int(rng.integers(3))]
    for victim in filter(is_running, victims):
        os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=120)
    wait_until(lambda: not any(map(is_running, helpers)), 60)


@pytest.mark.long
def test_two_processes_killed_thirty_times_give_the_same_root(runs: Runs) -> None:
    rng, out, ahead = np.random.default_rng(6), "kills", 0
    for _ in range(30):
        start_and_kill(runs, out, rng, ahead)
        # one that is being written a second time has no receipt meanwhile
        assert runs.finished(out) >= ahead - 2
        ahead = runs.finished(out)
        if ahead == BLOCKS:  # all done: start anew
            shutil.rmtree(runs.folder / out)
            ahead = 0
    last = runs.run(out, "--processes", "2")
    assert last.returncode == 0, last.stderr
    assert runs.root(out) == runs.root("whole")
    assert not verify(runs.folder / out, full=True).problems
