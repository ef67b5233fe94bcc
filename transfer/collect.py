"""Results of several tasks brought together: what one student is worth beside other starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import UsageError
from transfer import probe_run
from transfer.results import FORMAT, TASKS, read_results
from transfer.starts import SCRATCH

PROBE = probe_run.TASK
NAMES = tuple(f"{task}.json" for task in (*TASKS, PROBE))


@dataclass(frozen=True)
class Score:
    """A metric over the runs from one start; shares are 0 to 1.

    Attributes:
        deviation: of a sample, None of one run. values: every run's.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        scores: by start, as in `Collected.starts`.
    """

    task: str
    data: str
    metric: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class Task:
    """One result file.

    Attributes:
        rows: the headline first, then the other metrics.
        headlines: how many of the rows belong into the table of all tasks.
        seconds: of training by start, every run's.
    """

    path: Path
    name: str
    data: str
    rows: tuple[Row, ...]
    headlines: int
    seconds: dict[str, tuple[float, ...]]
    values: dict[str, Any]


@dataclass(frozen=True)
class Collected:
    """All tasks of one student.

    Attributes:
        identities: SHA-256 of the files by start, the student first; `scratch` where weights were
            fresh.
    """

    arch: str
    identities: dict[str, str]
    tasks: tuple[Task, ...]

    @property
    def starts(self) -> tuple[str, ...]:
        """Names, the student first."""
        return tuple(self.identities)


def collect(places: Sequence[Path]) -> Collected:
    """Read results and give equal starts equal names.

    Args:
        places: result files, or folders that hold some.
    Raises:
        UsageError: none there, a damaged one, or results of different students.
    """
    found = [(path, _read(path)) for path in _find(places)]
    first_path, first = found[0]
    student = next(iter(first["starts"].values()))
    identities: dict[str, str] = {}
    tasks = []
    for path, values in found:
        own = next(iter(values["starts"].values()))
        if own["identity"] != student["identity"]:
            raise UsageError(
                f"{path} is of another student ({own['arch']}, {own['identity'][:12]}) than "
                f"{first_path} ({student['arch']}, {student['identity'][:12]}): a report is of one"
            )
        names = {name: _name(name, start["identity"], identities, path)
                 for name, start in values["starts"].items()}  # fmt: skip
        tasks.append(_task(path, values, names))
    return Collected(student["arch"], identities, tuple(tasks))


def _find(places: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for place in places:
        inside = sorted(path for name in NAMES for path in place.rglob(name))
        if place.is_dir() and not inside:
            raise UsageError(f"{place} holds no result ({', '.join(NAMES)})")
        paths += inside if place.is_dir() else [place]
    # a probe's networks are named by their files: names of the other tasks go first
    paths.sort(key=lambda path: path.name == f"{PROBE}.json")
    return list({path.resolve(): path for path in paths}.values())


def _read(path: Path) -> dict[str, Any]:
    if path.name != f"{PROBE}.json":
        return read_results(path)
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT or values["task"] != PROBE:
            raise ValueError(f"format {values['format']!r}")
        return _from_probe(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} can't be read as a probe's result ({error!r}): run `transfer probe` again"
        ) from error


def _from_probe(values: dict[str, Any]) -> dict[str, Any]:
    """A probe in the form of the other tasks: one run, of which only few shots are repeated."""
    starts = {}
    for name, network in values["networks"].items():
        summary = {"linear probe": _once(network["linear"]["top1"])}
        summary |= {f"k-NN, k = {k}": _once(top1) for k, top1 in network["knn"].items()}
        summary |= {
            f"{few['shots']} shots, {few['method']}": {
                "mean": few["mean"],
                "deviation": few["deviation"] if len(few["runs"]) > 1 else None,
                "all": few["runs"],
            }
            for few in network["few_shot"]
        }
        starts[name] = {"arch": network["arch"], "identity": network["identity"], "runs": [],
                        "summary": summary}  # fmt: skip
    data = {"train": values["train"], "val": values["val"]}
    return values | {"data": data, "metric": "linear probe", "starts": starts}


def _once(value: float) -> dict[str, Any]:
    return {"mean": value, "deviation": None, "all": [value]}


def _name(name: str, identity: str, identities: dict[str, str], path: Path) -> str:
    """The name that a start has in all tasks: that of its weights where they were met before."""
    if identity == SCRATCH or identity.startswith(f"{probe_run.RANDOM} "):
        name = identity = SCRATCH  # fresh weights of the same network, whatever the seed
    known = next((known for known, one in identities.items() if one == identity), None)
    if known is not None:
        return known
    if name in identities:
        raise UsageError(
            f"{path} has other weights by the name {name!r} than a result before it: name them "
            "otherwise in --compare NAME=FILE, and run its task again"
        )
    identities[name] = identity
    return name


def _task(path: Path, values: dict[str, Any], names: dict[str, str]) -> Task:
    data = _data_name(values)
    headline = values["metric"]
    metrics = dict.fromkeys(
        [headline, *(name for start in values["starts"].values() for name in start["summary"])]
    )
    rows = tuple(
        Row(
            values["task"],
            data,
            metric,
            {
                names[name]: Score(summary["mean"], summary["deviation"], tuple(summary["all"]))
                for name, start in values["starts"].items()
                if (summary := start["summary"].get(metric)) is not None
            },
        )
        for metric in metrics
    )
    seconds = {
        names[name]: tuple(float(run["seconds"]) for run in start["runs"])
        for name, start in values["starts"].items()
        if start["runs"]
    }
    headlines = len(rows) if values["task"] == PROBE else 1
    return Task(path, values["task"], data, rows, headlines, seconds, values)


def _data_name(values: dict[str, Any]) -> str:
    """What was judged on, for people."""
    data = values["data"]
    places = (side.get("location") for side in (data.get("val") or {}, data))
    return str(next((place for place in places if place), values["settings"].get("data", "?")))
