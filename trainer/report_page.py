"""report.html: a run's curves, results, labels, settings and machine on one page.

Made from the run's folder alone (config.json, metrics.jsonl, run.json), so that it can be made
again at any time, of a run in progress too.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.atomic import write_atomic
from storage.certificate import certificate_lines
from storage.charts import lines, number
from storage.errors import TrainingError, UsageError
from storage.inherited import inherited_lines
from storage.page import (
    Html,
    element,
    facts,
    figure,
    grid,
    page,
    section,
    shorten,
    table,
)
from storage.progress import format_seconds
from trainer.config import flatten
from trainer.metrics import METRICS_NAME, read_metrics
from trainer.report_facts import RUN_NAME, read_facts

CONFIG_NAME, REPORT_NAME = "config.json", "report.html"
MOST_POINTS = 120  # of a curve; more are averaged in equal groups
MOST_ROWS = 15  # of evaluations; a longer table is folded
SCORES = ("top-1", "top-5", "loss")
LEGEND = 0.12  # of a chart's height, above the curves
LISTED = 12  # of a list among the settings
_STYLE = """
.key { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.key div { background: var(--panel); border-radius: .5rem; padding: .6rem 1rem; }
.key b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.columns { columns: 26rem auto; } .columns .wide { overflow: visible; }
pre { margin: .5rem 0; overflow-x: auto; font-size: .85rem; }
th { font-weight: 500; } summary { cursor: pointer; color: var(--pale); }
"""

Line = Mapping[str, Any]
Points = list[tuple[float, float]]


def write_report(out: Path) -> Path:
    """Make the report of a run folder, in place of an earlier one.

    Raises:
        UsageError: the folder holds no run. TrainingError: its config.json can't be read.
    """
    path = out / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except FileNotFoundError as error:
        raise UsageError(
            f"{out} is not the folder of a run (it has no {CONFIG_NAME}): give the --out of a "
            "`trainer fit`"
        ) from error
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} can't be read ({error}): run the same `trainer fit` again, it writes it anew"
        ) from error
    metrics, run = read_metrics(out / METRICS_NAME), read_facts(out)
    try:
        document = render(out.resolve().name, config, metrics, run)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(
            f"{out}: {CONFIG_NAME} or {RUN_NAME} is not what `trainer fit` writes ({error!r}): run "
            "it again, or move the file away"
        ) from error
    write_atomic(out / REPORT_NAME, document.encode())
    return out / REPORT_NAME


def render(
    name: str, config: Mapping[str, Any], metrics: Sequence[Line], run: Mapping[str, Any]
) -> str:
    """The page.

    Args:
        name: of the run's folder. config: config.json. metrics: lines of metrics.jsonl.
        run: run.json, {} where there is none.
    """
    student = config.get("student", {})
    result = run.get("result") or {}
    return page(
        f"{config.get('method')}: {student.get('arch')}",
        element("p", _state(name, config, metrics, result), class_="pale"),
        _key_numbers(metrics, result),
        section("Curves", grid(_curves(metrics))),
        _evaluations(metrics),
        _labels(run["labels"]) if "labels" in run else "",
        section("Settings", element("div", facts(_settings(config)), class_="columns")),
        section("Environment", facts(_named(run["environment"]))) if "environment" in run else "",
        _notes(run.get("notes") or ()),
        style=_STYLE,
    )


def _state(name: str, config: Line, metrics: Sequence[Line], result: Line) -> str:
    if result:
        return f"{name}: finished, {result['epochs']} epochs, {result['steps']:,} steps"
    steps = max((line["step"] + 1 for line in _of("train", metrics)), default=0)
    return f"{name}: not finished; {steps:,} steps are logged of {config.get('epochs')} epochs"


def _key_numbers(metrics: Sequence[Line], result: Line) -> Html:
    """The few numbers that a run is looked up for."""
    train, shown = _of("train", metrics), []
    for kind, whose in (("eval", ""), ("eval_ema", " of the average")):
        for line in _of(kind, metrics)[-1:]:
            shown += [(f"{name}{whose}", _percent(line.get(key)))
                      for key, name in (("top1", "top-1"), ("top5", "top-5"))]  # fmt: skip
    for key, name, write in (("loss", "last training loss", number),
                             ("agreement", "last agreement", _share)):  # fmt: skip
        values = [value for _, value in _points(train, key)]
        shown += [(name, write(values[-1]))] if values else []
    rates = [value for _, value in _points(train, "crops_per_s")]
    shown += [("crops/s, median", f"{statistics.median(rates):,.0f}")] if rates else []
    if result.get("parameters"):
        shown.append(("parameters", f"{result['parameters'] / 1e6:,.2f} M"))
    if result.get("seconds"):
        shown.append(("training time of the last process", format_seconds(result["seconds"])))
    return element("div", *(element("div", element("b", v), n) for n, v in shown), class_="key")


def _curves(metrics: Sequence[Line]) -> list[Html]:
    train = _of("train", metrics)
    loss = _points(train, "loss")
    drawn = [
        _chart("Training loss", {"loss": loss}, "step", "nats"),
        _chart("Learning rate", {"lr": _points(train, "lr")}, "step", "rate", zero=True),
        _chart("Agreement with the teacher's first class", {"agreement": _points(
            train, "agreement", 100)}, "step", "% of a batch's crops", zero=True),
        _chart("Throughput", {"crops": _points(train, "crops_per_s")}, "step", "crops/s",
               zero=True),
    ]  # fmt: skip
    for key, name, scale, unit in (("top1", "Top-1", 100, "% of validation images"),
                                   ("top5", "Top-5", 100, "% of validation images"),
                                   ("loss", "Validation loss", 1, "nats")):  # fmt: skip
        curves = {whose: _points(_of(kind, metrics), key, scale, "epoch")
                  for kind, whose in (("eval", "student"), ("eval_ema", "average"))}  # fmt: skip
        drawn.append(_chart(name, curves, "epoch", unit))
    found = [one for one in drawn if one is not None]
    return found or [element("p", "Nothing is logged yet.", class_="pale")]


def _chart(
    caption: str, curves: Mapping[str, Points], x_label: str, y_label: str, zero: bool = False
) -> Html | None:
    """A figure of those curves that have points, over the places of all; None without any.

    zero: the axis begins at 0.
    """
    thinned = {name: _thin(points) for name, points in curves.items() if points}
    if not thinned:
        return None
    places = sorted({x for points in thinned.values() for x, _ in points})
    drawn = [
        (name, [dict(points).get(x, math.nan) for x in places]) for name, points in thinned.items()
    ]
    values = [y for points in thinned.values() for _, y in points]
    low, high = min(values), max(values)
    low = min(low, 0.0) if zero or low == high else low
    room = (high - low) * (LEGEND if len(drawn) > 1 else 0) or (low == high)
    return figure(caption, lines(places, drawn, x_label, y_label, (low, high + room)))


def _thin(points: Points) -> Points:
    """At most MOST_POINTS means of equally many neighbours, at their mean place."""
    group = math.ceil(len(points) / MOST_POINTS)
    groups = (points[i : i + group] for i in range(0, len(points), group))
    return [
        (statistics.fmean(x for x, _ in some), statistics.fmean(y for _, y in some))
        for some in groups
    ]


def _points(
    found: Sequence[Line], key: str, scale: float = 1.0, place: str = "step"
) -> list[tuple[float, float]]:
    """Values by place; of several at one place the last holds, others than numbers are left out."""
    points = {
        float(line[place]): scale * line[key]
        for line in found
        if _is_number(line.get(key)) and _is_number(line.get(place))
    }
    return sorted(points.items())


def _evaluations(metrics: Sequence[Line]) -> Html:
    """Scores by epoch: of the student and, where one is kept, of its average."""
    found: dict[int, dict[str, Line]] = {}
    for kind in ("eval", "eval_ema"):
        for line in _of(kind, metrics):  # of two of an epoch the later one holds
            found.setdefault(int(line.get("epoch", 0)), {})[kind] = line
    if not found:
        return Html("")
    whose = {"eval": "", "eval_ema": "average: "}
    kinds = [kind for kind in whose if any(kind in lines for lines in found.values())]
    header = ["epochs", "steps", *(whose[kind] + name for kind in kinds for name in SCORES)]
    rows = [
        [epoch, f"{max(line['step'] for line in scored.values()):,}",
         *(text for kind in kinds for text in _scores(scored.get(kind, {})))]
        for epoch, scored in sorted(found.items())
    ]  # fmt: skip
    shown = table(header, rows, numbers=range(len(header)))
    if len(rows) > MOST_ROWS:
        shown = element("details", element("summary", f"{len(rows)} epochs"), shown)
    return section("Validation", shown)


def _scores(line: Line) -> tuple[str, ...]:
    return _percent(line.get("top1")), _percent(line.get("top5")), _or_dash(line.get("loss"))


def _labels(found: Line | None) -> Html:
    """What the run learnt from: the store, its teacher, its certificate."""
    if not found:
        return section("Labels", element("p", "No label store: the folders' own classes."))
    teacher = found["teacher"]
    learnt = found["target"] or f"top {teacher['top_k']} of {teacher['classes']} classes"
    rows: list[tuple[str, object]] = [
        ("store", found["store"]),
        ("Merkle root", found["root"]),
        ("images, views of each", f"{found['images']:,}, {found['views']:,}"),
        ("views are drawn by", _value(found["sampler"])),
        ("teacher", f"{teacher['name']}: {teacher['spec']} at {teacher['input_size']}"),
        ("its weights", teacher["weights"]),
        ("its licence", teacher["licence"]),
        ("learnt from", learnt),
        *((f"measured {name.replace('_', ' ')}", _value(value))
          for name, value in found["measured"].items()),
    ]  # fmt: skip
    certificate = found.get("certificate")
    text = certificate_lines(certificate) if certificate else []
    text += [line for one in found.get("inherited") or () for line in inherited_lines(one)]
    shown = element("pre", *(element("div", line) for line in text)) if text else ""
    return section("Labels", facts(rows), shown)


def _settings(config: Line) -> list[tuple[str, object]]:
    return [(name, _value(value)) for name, value in flatten(dict(config)).items()]


def _named(values: Line) -> list[tuple[str, object]]:
    return [(str(name), _value(value)) for name, value in values.items()]


def _value(value: Any) -> str:
    """A setting in one line; of a long list the beginning."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        listed = ", ".join(shorten(str(part), 40) for part in value[:LISTED])
        return f"{listed} … ({len(value):,})" if len(value) > LISTED else listed or "–"
    return str(value)


def _notes(notes: Sequence[str]) -> Html:
    if not notes:
        return Html("")
    return section("Notes", element("ul", *(element("li", note) for note in notes)))


def _of(kind: str, metrics: Sequence[Line]) -> list[Line]:
    return [line for line in metrics if line.get("kind") == kind]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any) -> str:
    return f"{100 * value:.2f} %" if _is_number(value) else "–"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _or_dash(value: Any) -> str:
    return f"{value:.4f}" if _is_number(value) else "–"
