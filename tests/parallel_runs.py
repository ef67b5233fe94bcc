"""Command lines of runs in several processes, and faults that strike in one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import write_folder
from labelling import write_weights

from labelgen.parallel.local import COMMAND
from storage.manifest import read_manifest
from storage.receipts import read_receipts

BLOCKS = 24
# Imported by every Python that starts with its folder on PYTHONPATH; crop workers pass it by.
SITE = """
import os, sys
if "labelgen.cli" in " ".join(sys.orig_argv):
    import errno, time
    from pathlib import Path
    import labelgen.forward as forward
    import storage.store as store

    second = os.environ.get("TEACHONCE_RANK", "0").startswith("1/")
    fault = os.environ.get("FAULT") if second else None
    logits, write_block = forward.Forward.logits, store.LabelStore.write_block

    def meet():
        # none may have done all the work before the others have even started
        folder = Path(os.environ["MEETING"])
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()
        end = time.monotonic() + 120
        while len(list(folder.iterdir())) < int(os.environ["MEET"]) and time.monotonic() < end:
            time.sleep(0.02)

    def slow(self, batch):
        if len(batch) > 1:  # not the look at one output when the teacher is loaded
            meet()
            time.sleep(float(os.environ["SLOW"]))
            if fault == "device":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if fault == "folder":
                folder = Path(os.environ["VANISHING"])
                folder.exists() and folder.rename(folder.parent.parent / "elsewhere")
            if fault == "crash":
                os.kill(os.getpid(), 9)
        return logits(self, batch)

    def full(self, block, *args, **more):
        if fault == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "x"))
        write_block(self, block, *args, **more)

    forward.Forward.logits, store.LabelStore.write_block = slow, full
"""


class Runs:
    """Runs of one small folder and teacher: 24 blocks of one batch each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_folder(folder / "images", classes=3, per_class=8)
        write_weights(folder / "tiny.safetensors")
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)

    def words(self, out: str, *more: str) -> list[str]:
        """Of the command line, after `labelgen`."""
        return [
            "run", "--teacher", f"file:{self.folder / 'tiny.safetensors'}",
            "--data", str(self.folder / "images"), "--out", str(self.folder / out),
            "--crops", "16", "--batch-size", "16", "--block-images", "1", "--workers", "1",
            "--device", "cpu", "--no-teacher-check", *more,
        ]  # fmt: skip

    def command(self, out: str, *more: str) -> list[str]:
        """A run as `labelgen` on the command line."""
        return [sys.executable, "-P", "-c", COMMAND, *self.words(out, *more)]

    def environment(self, slow: float = 0.0, meet: int = 1, **more: str) -> dict[str, str]:
        """Finds the packages from anywhere; a batch takes `slow` seconds longer, and the first one
        waits until `meet` processes are at theirs.
        """
        root = Path(__file__).resolve().parents[1]
        return (
            os.environ
            | {
                "PYTHONPATH": f"{self.folder / 'site'}{os.pathsep}{root}",
                "OMP_NUM_THREADS": "1",
                "SLOW": str(slow),
                "MEET": str(meet),
                "MEETING": tempfile.mkdtemp(dir=self.folder),
            }
            | more
        )

    def run(
        self, out: str, *more: str, slow: float = 0.0, meet: int = 1, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self.command(out, *more), env=self.environment(slow, meet, **variables),
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def start(
        self, out: str, *more: str, slow: float = 0.0, meet: int = 1, **variables: str
    ) -> subprocess.Popen[str]:
        """Start a run in a session of its own."""
        return subprocess.Popen(
            self.command(out, *more), env=self.environment(slow, meet, **variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def root(self, out: str) -> str:
        """Merkle root of a sealed store."""
        return read_manifest(self.folder / out).root

    def finished(self, out: str) -> int:
        """Blocks that have a receipt."""
        return len(list((self.folder / out / "receipts").glob("[0-9]*.json")))

    def writers(self, out: str) -> set[int]:
        """Process ids that receipts name."""
        return {r.process for r in read_receipts(self.folder / out, BLOCKS).values()}
