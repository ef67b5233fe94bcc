"""metrics.jsonl: one JSON object a line, the record of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

METRICS_NAME = "metrics.jsonl"


class Tracker(Protocol):
    """Takes every line of the record, too (trainer.trackers)."""

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """The numbers of one line."""

    def close(self) -> None:
        """No line follows."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file (a killed run may leave half a line)."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


class MetricsLog:
    """Appends lines; on resume, those of steps that are taken again are dropped first.

    Args:
        resumed_step: the next step to take; evaluations carry the number of steps before them.
        trackers: get every line as well.
    """

    def __init__(self, path: Path, resumed_step: int, trackers: Sequence[Tracker] = ()) -> None:
        kept = [
            line
            for line in read_metrics(path)
            if line["step"] < resumed_step + (line.get("kind") != "train")
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path, self._trackers = path, trackers

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line; kind is "train", "eval" or "eval_ema".

        A number that isn't finite becomes null: JSON has none.
        """
        plain = {name: _finite(value) for name, value in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
        numbers = {
            name: float(value)
            for name, value in plain.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.write(kind, step, numbers)

    def close(self) -> None:
        """No line follows."""
        for tracker in self._trackers:
            tracker.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
