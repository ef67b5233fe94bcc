"""`transfer report`: all tasks of one student in one table, as JSON, Markdown and HTML."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storage.atomic import write_atomic
from storage.charts import bars
from storage.errors import UsageError
from storage.page import Html, element, facts, figure, grid, page, section, table
from storage.progress import format_seconds
from trainer.config import flatten
from transfer.collect import Collected, Row, Score, Task, collect
from transfer.results import NOTHING, shown
from transfer.starts import SCRATCH

JSON_NAME, MARKDOWN_NAME, HTML_NAME = "report.json", "report.md", "report.html"
_STYLE = """
pre { margin: .5rem 0; overflow-x: auto; font-size: .85rem; }
th { font-weight: 500; } summary { cursor: pointer; color: var(--pale); }
"""


def write_report(places: Sequence[Path], out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write report.json, report.md and report.html; the JSON's values.

    Args:
        places: result files, or folders that hold some.
    Raises:
        UsageError: see `collect`; or there is a report already.
    """
    found = collect(places)
    taken = [name for name in (JSON_NAME, MARKDOWN_NAME, HTML_NAME) if (out / name).exists()]
    if taken and not overwrite:
        raise UsageError(f"{out / taken[0]} is there already: give another --out, or --overwrite")
    values = to_json(found)
    write_atomic(out / JSON_NAME, (json.dumps(values, indent=2) + "\n").encode())
    write_atomic(out / MARKDOWN_NAME, to_markdown(found).encode())
    write_atomic(out / HTML_NAME, to_html(found).encode())
    return values


def to_json(found: Collected) -> dict[str, Any]:
    """Plain values."""
    return {
        "format": 1,
        "arch": found.arch,
        "starts": found.identities,
        "tasks": [
            {
                "task": task.name,
                "data": task.data,
                "result": str(task.path),
                "rows": [asdict(row) for row in task.rows],
                "headlines": task.headlines,
                "seconds": task.seconds,
                "settings": task.values["settings"],
                "notes": task.values["notes"],
            }
            for task in found.tasks
        ],
    }


def to_markdown(found: Collected) -> str:
    """The table of all tasks, times and notes, as GitHub's Markdown."""
    lines = [f"# {found.arch} on other tasks", "", *_markdown_table(*_scores(found)), ""]
    header, rows = _seconds(found)
    if rows:
        lines += ["Training time of a run:", "", *_markdown_table(header, rows), ""]
    lines += [_LEGEND, "", "Weights:", ""]
    lines += [f"* {name}: {identity}" for name, identity in found.identities.items()]
    for task in found.tasks:
        if task.values["notes"]:
            lines += ["", f"Notes of {task.name} on {task.data}:", ""]
            lines += [f"* {note}" for note in task.values["notes"]]
    return "\n".join([*lines, ""])


def to_html(found: Collected) -> str:
    """One page that needs nothing else."""
    header, rows = _scores(found)
    times, time_rows = _seconds(found)
    weights = [(name, identity) for name, identity in found.identities.items()]
    return page(
        f"{found.arch} on other tasks",
        table(header, rows, numbers=range(3, len(header))),
        element("p", _LEGEND, class_="pale"),
        grid(_chart(row) for task in found.tasks for row in task.rows[: task.headlines]),
        section("Training time of a run", table(times, time_rows, numbers=range(2, len(times))))
        if time_rows
        else "",
        section("Weights", facts(weights)),
        *(_details(task) for task in found.tasks),
        style=_STYLE,
    )


_LEGEND = (
    "Percent. With ±: mean and sample deviation over the runs' seeds; the last column is the "
    "student's mean less that of the same network from scratch, in points."
)


def _scores(found: Collected) -> tuple[list[str], list[list[str]]]:
    """The table of all tasks."""
    against = [SCRATCH] if SCRATCH in found.starts else []
    header = ["task", "judged on", "metric", *found.starts, *(f"student − {n}" for n in against)]
    rows = [
        [
            task.name,
            task.data,
            row.metric,
            *(_shown(row.scores.get(name)) for name in found.starts),
            *(_gain(row, found.starts[0], name) for name in against),
        ]
        for task in found.tasks
        for row in task.rows[: task.headlines]
    ]
    return header, rows


def _seconds(found: Collected) -> tuple[list[str], list[list[str]]]:
    header = ["task", "judged on", *found.starts, "seeds"]
    rows = [
        [
            task.name,
            task.data,
            *(
                format_seconds(statistics.fmean(task.seconds[name]))
                if name in task.seconds
                else NOTHING
                for name in found.starts
            ),
            str(max(len(runs) for runs in task.seconds.values())),
        ]
        for task in found.tasks
        if task.seconds
    ]
    return header, rows


def _shown(score: Score | None) -> str:
    return shown(None if score is None else asdict(score))


def _gain(row: Row, student: str, other: str) -> str:
    pair = row.scores.get(student), row.scores.get(other)
    if pair[0] is None or pair[1] is None:
        return NOTHING
    return f"{100 * (pair[0].mean - pair[1].mean):+.2f}"


def _chart(row: Row) -> Html:
    """Means of the starts as bars."""
    caption = f"{row.task}: {row.metric} on {row.data}"
    means = [(name, score.mean) for name, score in row.scores.items()]
    return figure(caption, bars(means, percent=True))


def _details(task: Task) -> Html:
    """Every metric, every seed, settings, machine and notes of one result."""
    every = [
        [row.metric, name, _shown(score), ", ".join(f"{100 * v:.2f}" for v in score.values)]
        for row in task.rows
        for name, score in row.scores.items()
    ]
    values = task.values
    settings = [*flatten(dict(values["settings"])).items(),
                *flatten(dict(values.get("machine") or {})).items()]  # fmt: skip
    notes = element("ul", *(element("li", note) for note in values["notes"]))
    return section(
        f"{task.name}: {task.data}",
        element("p", str(task.path), class_="pale"),
        table(["metric", "start", "mean", "every run"], every, numbers=(2,)),
        notes if values["notes"] else "",
        element("details", element("summary", "Settings and machine"), facts(settings)),
    )


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *(line(row) for row in rows)]
