"""What the tasks have found: one JSON a task, runs of several seeds from several starts."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.atomic import write_atomic
from storage.errors import UsageError
from trainer.checkpoint import CHECKPOINT_NAME
from trainer.config import differences
from trainer.distributed import World
from trainer.metrics import METRICS_NAME
from trainer.models.device import resolve_device
from trainer.report_facts import environment_facts
from transfer.starts import Start

FORMAT = 1
NOTHING = "–"  # in tables, where there is no value
SCORE_NAME = "score.json"  # of a finished run, in its folder
OVERLAYS_NAME = "overlays"  # likewise, of images with what was predicted
TASKS = ("classify", "segment", "detect")
CHOICE = "nothing was chosen on the images judged on: the headline is the last epoch"


@dataclass(frozen=True)
class RunScore:
    """What one run from one start came to.

    Attributes:
        metrics: by name; shares are 0 to 1. seconds: of training.
        extra: more plain values, such as the best epoch's metrics.
    """

    seed: int
    metrics: dict[str, float]
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)


def run_folder(out: Path, start: Start, seed: int) -> Path:
    """Where a run of a start and a seed writes."""
    return out / start.name / f"seed{seed}"


def save_score(folder: Path, score: RunScore, identity: Mapping[str, Any]) -> None:
    """Note that a run is finished.

    Args:
        identity: all that its outcome depends on, as plain values.
    """
    values = {"identity": dict(identity), "score": asdict(score)}
    write_atomic(folder / SCORE_NAME, _encoded(values))


def load_score(folder: Path, identity: Mapping[str, Any]) -> RunScore | None:
    """The score of a run that is finished, None where it isn't.

    Raises:
        UsageError: the folder is of a run with another identity, or damaged.
    """
    path = folder / SCORE_NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        theirs, score = dict(values["identity"]), RunScore(**values["score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}): start over with --overwrite") from error
    other = differences(json.loads(json.dumps(dict(identity))), theirs)
    if other:
        raise UsageError(
            f"{folder} is of another run ({other[0]}"
            f"{f', and {len(other) - 1} more' if len(other) > 1 else ''}): give another --out, or "
            "--overwrite"
        )
    return score


def run_once(
    folder: Path,
    identity: Mapping[str, Any],
    run: Callable[[], RunScore],
    *,
    overwrite: bool,
    leaves: Sequence[str] = (),
    world: World = World(),  # noqa: B008 - frozen
) -> RunScore:
    """A finished run's score, of a run before where there was one.

    Args:
        run: makes the run in its folder, which is there; every process of `world` calls it.
        overwrite: take away what a run before has left, and nothing else.
        leaves: files of a run beside those that all runs have.
    Raises:
        UsageError: see `load_score`.
    """

    def before() -> RunScore | None:
        if overwrite:
            for name in (SCORE_NAME, CHECKPOINT_NAME, METRICS_NAME, *leaves):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / OVERLAYS_NAME, ignore_errors=True)
        score = load_score(folder, identity)
        if score is None:
            folder.mkdir(parents=True, exist_ok=True)
        return score

    found = world.first(before)
    if found is None:
        found = run()
        if world.is_first:
            save_score(folder, found, identity)
    return found


def summarise(scores: Sequence[RunScore]) -> dict[str, dict[str, Any]]:
    """Mean and sample deviation (None of one run) of every metric that all runs have."""
    names = [name for name in scores[0].metrics if all(name in s.metrics for s in scores)]
    found = {}
    for name in names:
        values = [score.metrics[name] for score in scores]
        found[name] = {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "all": values,
        }
    return found


def write_results(
    path: Path,
    task: str,
    metric: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    starts: Mapping[str, tuple[Start, Sequence[RunScore]]],
    notes: Sequence[str],
    world: World = World(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Write a task's JSON whole, the first process does, and return it.

    Args:
        metric: the headline's name. data: what was learnt and judged on.
        settings: as resolved; `device`, `workers` and `loader` go into `machine`, too.
        starts: by name, the student first.
    """
    device = resolve_device(str(settings.get("device", "auto")))
    workers, loader = int(settings.get("workers", 0)), str(settings.get("loader", "torch"))
    values = {
        "format": FORMAT,
        "task": task,
        "metric": metric,
        "data": dict(data),
        "settings": dict(settings),
        "starts": {
            name: {
                "arch": start.config.arch,
                "identity": start.identity,
                "runs": [asdict(score) for score in scores],
                "summary": summarise(scores),
            }
            for name, (start, scores) in starts.items()
        },
        "notes": [*notes, *(note for start, _ in starts.values() for note in start.notes)],
        "machine": environment_facts(device, world, loader, workers),
    }
    if world.is_first:
        write_atomic(path, _encoded(values))
    return values


def read_results(path: Path) -> dict[str, Any]:
    """A task's JSON, checked.

    Raises:
        UsageError: no such file, damaged, or of another format.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a result ({error}): run its task again") from (
            error
        )
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise UsageError(
            f"{path} is no result of this release (format {found!r}, expected {FORMAT}): give the "
            f"JSON that {', '.join('`transfer ' + task + '`' for task in TASKS)} wrote"
        )
    try:
        if values["task"] not in TASKS:
            raise ValueError(f"task {values['task']!r}")
        for start in values["starts"].values():
            for score in start["runs"]:
                float(score["metrics"][values["metric"]]), float(score["seconds"])
            float(start["summary"][values["metric"]]["mean"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({error!r}): run its task again") from error
    return values


def describe(values: Mapping[str, Any]) -> str:
    """Table for the terminal: starts by metrics, then seconds a run."""
    names = list(dict.fromkeys(
        name for start in values["starts"].values() for name in start["summary"]
    ))  # fmt: skip
    header = ["", *names, "seconds", "seeds"]
    rows = [
        [
            name,
            *(shown(start["summary"].get(metric)) for metric in names),
            f"{statistics.fmean(run['seconds'] for run in start['runs']):,.1f}",
            str(len(start["runs"])),
        ]
        for name, start in values["starts"].items()
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:],
                                                                         strict=True))])
        for row in [header, *rows]
    ]  # fmt: skip
    notes = [f"note: {note}" for note in values["notes"]]
    return "\n".join([f"{values['task']}: {values['metric']} counts", *lines, *notes])


def shown(summary: Mapping[str, Any] | None) -> str:
    """A summary as `mean ± deviation`, in percent."""
    if summary is None:
        return NOTHING
    mean, deviation = summary["mean"], summary["deviation"]
    return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def _encoded(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
