"""SIGKILL and SIGTERM at any time: the same command again gives the same store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder
from labelling import write_weights

from storage.manifest import read_manifest
from storage.store import LabelStore
from storage.verify import verify


def command(folder: Path, out: Path) -> list[str]:
    """A run of 24 blocks of one batch each."""
    return [
        sys.executable, "-m", "labelgen_main", "run",
        "--teacher", f"file:{folder / 'tiny.safetensors'}", "--data", str(folder / "images"),
        "--out", str(out), "--crops", "16", "--batch-size", "16", "--block-images", "1",
        "--workers", "2", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Finds the packages from anywhere, and a module that is `labelgen` on the command line.

    The teacher is slowed down, so that kills fall into the middle of the work.
    """
    (tmp_path / "labelgen_main.py").write_text(
        "import time\n"
        "import labelgen.forward as forward\n"
        "from labelgen.cli import main\n"
        "logits = forward.Forward.logits\n"
        "def slow(self, batch):\n"
        "    time.sleep(0.05)\n"
        "    return logits(self, batch)\n"
        "forward.Forward.logits = slow\n"
        "main()\n"
    )
    root = Path(__file__).resolve().parents[1]
    return os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
        "OMP_NUM_THREADS": "1",
    }


def worker_pids(parent: int) -> list[int]:
    """Children of a process, while it lives."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # an orphan that has ended waits for init


def kill_and_resume(tmp_path: Path, environment: dict[str, str], kills: int) -> None:
    write_folder(tmp_path / "images", classes=3, per_class=8)
    write_weights(tmp_path / "tiny.safetensors")
    run = {"env": environment, "capture_output": True, "text": True}
    whole = subprocess.run(command(tmp_path, tmp_path / "whole"), **run)
    assert whole.returncode == 0, whole.stderr
    rng = np.random.default_rng([5, kills])
    out, killed, ahead = tmp_path / "killed", 0, 0
    while killed < kills:
        process = subprocess.Popen(
            command(tmp_path, out), env=environment, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        # from some point of the start-up or of the labelling on, at any place in it
        blocks = int(rng.integers(0, max(2, 40 // kills)))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if finished_blocks(out) >= ahead + blocks:
                break
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.12)))
        workers = worker_pids(process.pid)
        process.kill()
        process.wait()
        killed += 1
        before, ahead = ahead, finished_blocks(out)
        assert ahead >= before  # nothing that was finished is lost
        wait_until_gone(workers)
        if ahead == 24:  # all done: start anew
            subprocess.run(["rm", "-r", str(out)], check=True)
            ahead = 0
    last = subprocess.run(command(tmp_path, out), **run)
    assert last.returncode == 0, last.stderr
    assert read_manifest(out).root == read_manifest(tmp_path / "whole").root
    assert not verify(out, full=True).problems


def finished_blocks(out: Path) -> int:
    return len(list((out / "receipts").glob("[0-9]*.json")))


def wait_until_gone(pids: list[int]) -> None:
    """Workers end by themselves when their parent was killed."""
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"orphans: {pids}"
        time.sleep(0.02)


def test_run_killed_five_times_gives_the_same_root(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    kill_and_resume(tmp_path, environment, kills=5)


@pytest.mark.long
def test_run_killed_thirty_times_gives_the_same_root(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    kill_and_resume(tmp_path, environment, kills=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_says_how_to_go_on_and_leaves_no_worker(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    write_folder(tmp_path / "images", classes=3, per_class=8)
    write_weights(tmp_path / "tiny.safetensors")
    out = tmp_path / "s"
    process = subprocess.Popen(
        command(tmp_path, out), env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while finished_blocks(out) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    workers = worker_pids(process.pid)
    os.killpg(process.pid, number)  # workers get it too, as from a terminal or a scheduler
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "labelgen: error: stopped as asked; run the same command again to resume" in errors
    assert "Traceback" not in errors
    assert len(workers) == 2
    assert not any(is_running(pid) for pid in workers)
    assert 0 < len(LabelStore.open(out).missing_blocks()) < 24
