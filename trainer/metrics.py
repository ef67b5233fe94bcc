"""metrics.jsonl: one JSON object a line, the record of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file (a killed run may leave half a line)."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class MetricsLog:
    """Appends lines; on resume, lines after the resumed step are dropped first."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path = path

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line; kind is "train" or "eval"."""
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
