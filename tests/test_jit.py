"""Compiled code that is kept on disk is that of the sources that are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.replay.jit import CACHE

OUTER = """
from pathlib import Path
import numba
from trainer.replay.jit import keep_together

here = Path(__file__).parent
if {together}:
    assert keep_together([here / "inner.py", here / "outer.py"])
from inner import number

@numba.njit(cache=True)
def outer():
    return 10 * number()

print(outer(), sum(outer.stats.cache_hits.values()))
"""
INNER = "import numba\n\n@numba.njit(cache=True)\ndef number():\n    return {value}\n"


def run(folder: Path) -> list[int]:
    """What `outer` gives, and whether its code was found on disk."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, folder / "outer.py"], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{root}:{folder}"},
    )  # fmt: skip
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("together", [True, False])
def test_a_change_of_a_file_below_is_seen_by_kept_code(tmp_path: Path, together: bool) -> None:
    """Without it numba goes by the outer file alone: the reason for all this."""
    assert CACHE
    (tmp_path / "outer.py").write_text(OUTER.format(together=together))
    (tmp_path / "inner.py").write_text(INNER.format(value=1))
    assert run(tmp_path) == [10, 0]
    assert run(tmp_path) == [10, 1]
    (tmp_path / "inner.py").write_text(INNER.format(value=2))
    assert run(tmp_path) == ([20, 0] if together else [10, 1])
