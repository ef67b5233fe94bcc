"""local.json: where the images lay, and the runs that wrote the store. A hint, never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.atomic import write_atomic
from storage.format import json_bytes
from storage.json_files import read_json

LOCAL = "local.json"
MAX_RUNS = 100


def write_local(store: Path, data_folder: Path | str | None, run: dict[str, Any] | None) -> None:
    """Note the image folder and append a run to the log (the last 100 are kept)."""
    values = _read(store)
    if data_folder is not None:
        values["data"] = str(Path(data_folder).resolve())
    if run is not None:
        runs = values.get("runs")
        values["runs"] = [*(runs if isinstance(runs, list) else []), run][-MAX_RUNS:]
    write_atomic(store / LOCAL, json_bytes(values))


def read_local(store: Path) -> Path | None:
    """The noted image folder, or beton, if it exists on this machine."""
    data = _read(store).get("data")
    if not isinstance(data, str):
        return None
    folder = Path(data)
    return folder if folder.is_absolute() and folder.exists() else None


def _read(store: Path) -> dict[str, Any]:
    try:
        values = read_json(store / LOCAL)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
