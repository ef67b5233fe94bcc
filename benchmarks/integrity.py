"""Sealing and verifying beside SHA-256's own speed on the same bytes, and opening many files.

    python benchmarks/integrity.py [--images 16384] [--json]

Everything lies in the page cache. The baseline is one thread that hashes the same bytes, file by
file, from memory. Ratios of the best of several rounds, by the clock and by processor time (which
other work on the machine disturbs less, and where a second thread brings nothing).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from read_plane import make_spec, open_many, write_store

from storage.sealing import seal
from storage.store import MANIFEST, LabelStore
from storage.verify import verify

VIEWS, BLOCK, TOP_K = 64, 1024, 10


def best(work: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Least seconds of a call by the clock and of processor time, after one that doesn't count."""
    work()
    found = []
    for _ in range(rounds):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - clock, time.process_time() - processor))
    return min(clock for clock, _ in found), min(processor for _, processor in found)


def measure(path: Path, images: int, rounds: int) -> dict[str, Any]:
    """Seconds of hashing alone, and of everything else as shares of its speed."""
    store = write_store(path, make_spec(images, TOP_K, BLOCK, VIEWS))
    seal(store)
    data = [p.read_bytes() for p in path.rglob("*") if p.is_file() and "receipts" not in p.parts]

    def seal_anew() -> None:
        (path / MANIFEST).unlink()
        seal(LabelStore.open(path))

    works: dict[str, Callable[[], Any]] = {
        "seal": seal_anew,
        "seal again": lambda: seal(LabelStore.open(path)),
        "verify --hashes": lambda: verify(path, hashes=True),
        "verify --full": lambda: verify(path, full=True),
    }
    clock, processor = best(lambda: [hashlib.sha256(part).digest() for part in data], rounds)
    size = sum(map(len, data))
    result: dict[str, Any] = {
        "files": len(data),
        "bytes": size,
        "sha256_mb_per_s": round(size / clock / 1e6),
    }
    for name, work in works.items():
        seconds, cpu = best(work, rounds)
        result[name] = {"clock": round(clock / seconds, 3), "processor": round(processor / cpu, 3)}
    return result


@click.command()
@click.option("--images", default=16384, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(images: int, rounds: int, as_json: bool) -> None:
    """Measure the checks of label stores."""
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch) / "store.zarr", images, rounds)
        result["opening"] = open_many(Path(scratch) / "many.zarr")
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:18} {value}")


if __name__ == "__main__":
    main()
