"""`labelgen stats --html`: the report as one page with charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from labelgen.class_names import readable_name
from labelgen.stats import Collected
from storage.charts import bars, heat_map, histogram, lines
from storage.page import Html, element, facts, figure, grid, page, section, table

STYLE = """
.pair { display: grid; gap: 1rem; grid-template-columns: 2fr 3fr; align-items: start; }
@media (max-width: 50rem) { .pair { grid-template-columns: 1fr; } }
"""
MAP_CLASSES = 20
WORST_CLASSES = 20


def stats_page(collected: Collected, found: dict[str, Any]) -> str:
    """The page.

    Args:
        found: `labelgen.stats_report.report` of the same.
    """
    parts = [_summary(found), _distributions(found)]
    if found["agreement"] is None:
        parts.append(section("Agreement", element(
            "p", "The folders' classes are not the teacher's classes by name, so labels can't be "
            "compared with them.")))  # fmt: skip
    else:
        parts += [
            _agreement(collected, found["agreement"]),
            _suspects(found["agreement"]["mislabelled"]),
        ]
    parts += [_hardest(found), _crops(found), _masked(found["masked"])]
    return page(f"Labels of {found['teacher']}", *parts, style=STYLE)


def _summary(found: dict[str, Any]) -> Html:
    mean, agreement = found["mean"], found["agreement"]
    rows: list[tuple[str, object]] = [
        ("Store", found["store"]),
        ("Teacher", found["spec"]),
        ("Labels", f"{found['labels']:,}: {found['images']:,} images, {found['views']} views each, "
                   f"{found['masked']['count']:,} images masked"),
        ("Mean entropy", f"{mean['entropy_nats']:.3f} nats"),
        ("Mean top-1 probability", f"{mean['top1_probability']:.3f}"),
        ("Mean tail mass", f"{mean['tail_mass']:.3f}"),
    ]  # fmt: skip
    if agreement is not None:
        share, compared = agreement["top1"], agreement["compared"]
        rows.append(("Agreement", f"{100 * share:.2f} % of {compared:,} labels have the image's "
                                  "own class first"))  # fmt: skip
    return facts(rows)


def _histogram(
    found: dict[str, Any], name: str, caption: str, x_label: str, of: str = "labels"
) -> Html:
    values = found["histograms"][name]
    return figure(caption, histogram(values["edges"], values["counts"], x_label, of))


def _distributions(found: dict[str, Any]) -> Html:
    note = element(
        "p", "Entropy takes the mass of the classes that a label doesn't keep (its tail) as spread "
        "evenly over them.", class_="pale",
    )  # fmt: skip
    return section("How sure the teacher was", note, grid([
        _histogram(found, "entropy_nats", "Entropy", "nats"),
        _histogram(found, "top1_probability", "Probability of the first class", "probability"),
        _histogram(found, "tail_mass", "Tail mass", "probability"),
    ]))  # fmt: skip


def _agreement(collected: Collected, agreement: dict[str, Any]) -> Html:
    worst = [(entry["name"], entry["agreement"]) for entry in agreement["classes"]]
    cut = f", the lowest {WORST_CLASSES}" if len(worst) > WORST_CLASSES else ""
    by_class = figure(
        f"Agreement by class{cut}", bars(worst[:WORST_CLASSES], limit=1.0, percent=True)
    )
    note = "Rows are folders, columns the teacher's first class; stronger is more."
    where = figure("Where labels of a class go", element("p", note, class_="pale"),
                   _confusion(collected, agreement))  # fmt: skip
    rows = [
        (pair["name"], pair["taken_for"], f"{pair['labels']:,}", f"{100 * pair['share']:.1f} %")
        for pair in agreement["confused"]
    ]
    confused = table(("Folder", "Taken for", "Labels", "Of its labels"), rows, numbers=(2, 3))
    return section("Agreement with the folders", element("div", by_class, where, class_="pair"),
                   element("h2", "Confused most"), confused)  # fmt: skip


def _confusion(collected: Collected, agreement: dict[str, Any]) -> Html:
    """Shares of the folders that agree least, over their own classes and all others."""
    found, names = collected.found, collected.classes
    place = {name: number for number, name in enumerate(names)}
    shown = sorted(place[entry["class"]] for entry in agreement["classes"][:MAP_CLASSES])
    assert collected.mapped is not None, "there is an agreement"
    columns = [int(collected.mapped[number]) for number in shown]
    shares = []
    for number in shown:
        total = int(found.own[number])
        row = [found.confused[number, column] / total for column in columns]
        row[shown.index(number)] = int(found.agreed_by_class[number]) / total
        shares.append([*row, max(0.0, 1 - math.fsum(row))])
    labels = [readable_name(names[number]) for number in shown]
    return heat_map(labels, [*labels, "any other class"], shares)


def _suspects(wrong: dict[str, Any]) -> Html:
    if not wrong["images"]:
        return section("Probably in the wrong folder", element("p", "No image."))
    note = element(
        "p", "In the views of these images another class is on average more probable than the "
        "folder's by the margin shown. ", f"{wrong['confident']:,} images have a margin of "
        f"{wrong['confident_margin']} or more: look at them first.", class_="pale",
    )  # fmt: skip
    rows = [
        (image["key"], image["name"], image["taken_for"] or "", f"{image['margin']:.3f}",
         f"{100 * image['agreement']:.0f} %")
        for image in wrong["images"]
    ]  # fmt: skip
    header = ("Image", "Folder", "Taken for", "Margin", "Views that agree")
    return section("Probably in the wrong folder", note, table(header, rows, numbers=(3, 4)))


def _hardest(found: dict[str, Any]) -> Html:
    rows = [
        (image["key"], f"{image['entropy_nats']:.3f}",
         f"{100 * image['agreement']:.0f} %" if "agreement" in image else "–")
        for image in found["hardest"]
    ]  # fmt: skip
    return section("Hardest images", element(
        "p", "The highest mean entropy over the views.", class_="pale",
    ), table(("Image", "Entropy, nats", "Views that agree"), rows, numbers=(1, 2)))  # fmt: skip


def _crops(found: dict[str, Any]) -> Html:
    mean, by_area = found["mean"], found["by_area"]
    middle = [(a + b) / 2 for a, b in zip(by_area["edges"], by_area["edges"][1:], strict=False)]
    note = element(
        "p", f"{100 * mean['flipped']:.1f} % of crops are mirrored; {100 * mean['enlarged']:.1f} % "
        "have fewer pixels on a side than the teacher's input and were enlarged.", class_="pale",
    )  # fmt: skip
    figures = [
        _histogram(found, "crop_area", "Area", "share of the image", "crops"),
        _histogram(found, "crop_log2_aspect", "Aspect ratio", "log2 of width over height", "crops"),
        figure("Entropy by area", lines(
            middle, [("entropy", _gaps(by_area["entropy_nats"]))], "share of the image",
            "mean entropy, nats")),
    ]  # fmt: skip
    if found["agreement"] is not None:
        figures.append(figure("Agreement by area", lines(
            middle, [("agreement", _gaps(by_area["agreement"]))], "share of the image",
            "share of labels", (0.0, 1.0))))  # fmt: skip
    return section("Crops", note, grid(figures))


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _masked(masked: dict[str, Any]) -> Html:
    if not masked["count"]:
        return section("Masked images", element("p", "None: every image has labels."))
    rows = [(image["key"], image["status"]) for image in masked["images"]]
    more = masked["count"] - len(rows)
    note = [element("p", f"and {more:,} more")] if more else []
    return section("Masked images", element(
        "p", f"{masked['count']:,} images could not be read and have no labels.", class_="pale",
    ), table(("Image", "Why"), rows), *note)  # fmt: skip
