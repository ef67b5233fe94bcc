"""Which label file belongs to which image: by class folder and file name, never by order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from storage.archives.report import ImportReport
from storage.images import ImageFolder

LabelKey = tuple[str, str]  # class folder, file name without its ending


def label_files(names: Iterable[str], suffix: str, report: ImportReport) -> dict[LabelKey, str]:
    """Label files by (class, stem); of two with one key neither is used."""
    found: dict[LabelKey, str] = {}
    twice: set[LabelKey] = set()
    for name in names:
        path = PurePosixPath(name)
        if path.name.startswith("."):
            continue
        if not path.name.lower().endswith(suffix):
            report.count(f"files that don't end in {suffix} left alone")
            continue
        key = (path.parent.name, path.name[: -len(suffix)])
        if key in found:
            twice.add(key)
            report.problem(name, f"has the class and name of {found[key]}: neither is used")
        else:
            found[key] = name
    return {key: name for key, name in found.items() if key not in twice}


def join_by_stem(
    labels: Mapping[LabelKey, str], folder: ImageFolder, report: ImportReport
) -> dict[int, str]:
    """Label file by row of the image folder.

    The image's name counts without its last ending, whatever that is; else up to its first dot,
    as FKD and ReLabel cut it. A label that two images could own is given to none.
    """
    owners: dict[LabelKey, list[int]] = {}
    without = 0
    for row, key in enumerate(folder.keys):
        path = PurePosixPath(key)
        class_name = path.parent.name
        candidates = [(class_name, path.stem), (class_name, path.name.split(".")[0])]
        label = next((found for found in candidates if found in labels), None)
        if label is None:
            without += 1
        else:
            owners.setdefault(label, []).append(row)
    joined = {}
    for label, rows in owners.items():
        if len(rows) > 1:
            images = ", ".join(folder.keys[row] for row in rows[:3])
            report.problem(labels[label], f"could belong to {images}: not used")
        else:
            joined[rows[0]] = labels[label]
    if without:
        report.count("images without a label file, left out", without)
    if len(owners) < len(labels):
        report.count("label files without an image, left out", len(labels) - len(owners))
    return joined
