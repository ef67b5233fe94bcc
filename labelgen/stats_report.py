"""The numbers of `labelgen stats`: for programs (plain values) and for a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelgen.class_names import class_names, readable_name
from labelgen.stats import CONFIDENT_MARGIN, Collected
from storage.images import ImageStatus

DIGITS = 6


def report(collected: Collected, listed: int) -> dict[str, Any]:
    """All of `labelgen stats --json`; lists of images and pairs are cut to `listed` entries."""
    found, spec, images = collected.found, collected.store.spec, collected.images
    labels = found.sums["labels"]
    status = [ImageStatus(value).name.lower() for value in images.status.tolist()]
    masked = [{"key": images.key[row], "status": name}
              for row, name in enumerate(status) if name != "ok"]  # fmt: skip
    means = {
        "entropy_nats": "entropy", "top1_probability": "top1", "tail_mass": "tail",
        "flipped": "flipped", "enlarged": "enlarged",
    }  # fmt: skip
    return {
        "store": collected.store.place,
        "teacher": collected.teacher,
        "spec": spec.teachers[collected.teacher].spec,
        "images": spec.num_images,
        "views": collected.views,
        "labels": int(labels),
        "masked": {"count": len(masked), "images": masked[:listed]},
        "mean": {name: round(found.sums[key] / labels, DIGITS) for name, key in means.items()},
        "histograms": {
            "entropy_nats": found.entropy.to_json(),
            "top1_probability": found.top1.to_json(),
            "tail_mass": found.tail.to_json(),
            "crop_area": found.area.to_json(),
            "crop_log2_aspect": found.aspect.to_json(),
        },
        "by_area": _by_area(collected),
        "hardest": _hardest(collected, listed),
        "agreement": _agreement(collected, listed),
    }


def _by_area(collected: Collected) -> dict[str, Any]:
    """Mean entropy and agreement of crops of each share of the image; None for empty bins."""
    found = collected.found
    entropy = _ratio(found.area_entropy, found.area.counts)
    agreed = _ratio(found.area_agreed, found.area_compared)
    return {"edges": found.area.edges.round(DIGITS).tolist(), "entropy_nats": entropy,
            "agreement": agreed}  # fmt: skip


def _ratio(sums: Any, counts: Any) -> list[float | None]:
    return [
        round(s / c, DIGITS) if c else None
        for s, c in zip(sums.tolist(), counts.tolist(), strict=True)
    ]


def _hardest(collected: Collected, listed: int) -> list[dict[str, Any]]:
    """Labelled images of the highest mean entropy over their views."""
    found, images = collected.found, collected.images
    rows = np.flatnonzero(images.status == ImageStatus.OK)
    entropy = found.image_entropy[rows] / collected.views
    order = np.argsort(-entropy, kind="stable")[:listed]
    return [
        {"key": images.key[rows[i]], "entropy_nats": round(float(entropy[i]), DIGITS),
         **_agreed(collected, int(rows[i]))}
        for i in order
    ]  # fmt: skip


def _agreed(collected: Collected, row: int) -> dict[str, Any]:
    if collected.mapped is None or collected.images.target[row] < 0:
        return {}
    share = collected.found.image_agreed[row] / collected.views
    return {"agreement": round(float(share), DIGITS)}


def _agreement(collected: Collected, listed: int) -> dict[str, Any] | None:
    """Everything that compares labels with the folders' classes; None where that can't be done."""
    found = collected.found
    if not found.sums["compared"] or collected.mapped is None:
        return None
    record = collected.store.spec.teachers[collected.teacher]
    names = class_names(record.classes, record.num_classes)
    own = [
        {"class": name, "name": readable_name(name), "labels": labels,
         "agreement": round(agreed / labels, DIGITS)}
        for name, labels, agreed in zip(collected.classes, found.own.tolist(),
                                        found.agreed_by_class.tolist(), strict=True)
        if labels
    ]  # fmt: skip
    pairs = sorted(found.confused.items(), key=lambda item: (-item[1], item[0]))
    return {
        "compared": int(found.sums["compared"]),
        "top1": round(found.sums["agreed"] / found.sums["compared"], DIGITS),
        "classes": sorted(own, key=lambda entry: (entry["agreement"], entry["class"])),
        "confused": [
            {"class": collected.classes[a], "name": readable_name(collected.classes[a]),
             "taken_for": names[b], "labels": count,
             "share": round(count / int(found.own[a]), DIGITS)}
            for (a, b), count in pairs[:listed]
        ],
        "mislabelled": _mislabelled(collected, names, listed),
    }  # fmt: skip


def _mislabelled(collected: Collected, names: list[str], listed: int) -> dict[str, Any]:
    """Images in whose views another class is on average more probable, largest margin first."""
    found, images = collected.found, collected.images
    rows = np.flatnonzero((images.status == ImageStatus.OK) & (images.target >= 0))
    margin = found.image_margin[rows] / collected.views
    order = [i for i in np.argsort(-margin, kind="stable") if margin[i] > 0]
    return {
        "confident_margin": CONFIDENT_MARGIN,
        "confident": int((margin >= CONFIDENT_MARGIN).sum()),
        "images": [
            {"key": images.key[rows[i]],
             "class": collected.classes[images.target[rows[i]]],
             "name": readable_name(collected.classes[images.target[rows[i]]]),
             "taken_for": _name(names, int(found.suggested[rows[i]])),
             "margin": round(float(margin[i]), DIGITS), **_agreed(collected, int(rows[i]))}
            for i in order[:listed]
        ],
    }  # fmt: skip


def _name(names: list[str], number: int) -> str | None:
    return names[number] if number >= 0 else None


def report_text(found: dict[str, Any]) -> str:
    """The same for people, short."""
    mean, agreement = found["mean"], found["agreement"]
    lines = [
        f"{found['store']}: {found['labels']:,} labels of teacher {found['teacher']} "
        f"({found['images']:,} images, {found['views']} views each, "
        f"{found['masked']['count']} masked)",
        f"  entropy     {mean['entropy_nats']:.3f} nats on average",
        f"  top-1       {mean['top1_probability']:.3f} probable on average, "
        f"{mean['tail_mass']:.3f} of the mass is not on a kept class",
        f"  crops       {100 * mean['flipped']:.1f} % mirrored, "
        f"{100 * mean['enlarged']:.1f} % smaller than the teacher's input",
    ]
    if agreement is None:
        lines.append("  agreement   unknown: the folders' classes are not the teacher's by name")
    else:
        lines.append(f"  agreement   {100 * agreement['top1']:.1f} % of labels have the image's "
                     "own class first")  # fmt: skip
        lines += [
            f"  confused    {pair['name']} taken for {pair['taken_for']}: "
            f"{100 * pair['share']:.1f} % of its labels"
            for pair in agreement["confused"][:5]
        ]
        wrong = agreement["mislabelled"]
        lines.append(f"  suspects    {wrong['confident']} images are probably in the wrong folder "
                     f"(margin {wrong['confident_margin']} or more)")  # fmt: skip
        lines += [
            f"    {image['margin']:+.3f}  {image['key']}: {image['taken_for']}?"
            for image in wrong["images"][:5]
        ]
    lines.append("  hardest     " + ", ".join(image["key"] for image in found["hardest"][:3]))
    return "\n".join(lines)
