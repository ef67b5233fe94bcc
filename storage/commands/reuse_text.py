"""What the commands of `reuse` say to people, from their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def match_text(store: str, data: str, found: dict[str, Any]) -> str:
    """Counts with examples, and what they mean for training."""
    lines = [f"{store}: {found['images']:,} images; {data}: {found['files']:,} files"]

    def kind(label: str, name: str, meaning: str) -> None:
        part = found[name]
        lines.append(f"  {label:<13}{part['count']:>10,}  {meaning}")
        shown = part["examples"] if part["count"] and name != "exact" else []
        lines.extend(f"      {_example(name, example)}" for example in shown)

    kind("exact", "exact", "files that were labelled, byte for byte")
    kind("same pixels", "same_pixels", "other bytes, the same decoded image")
    if found["re_encoded"]["count"]:
        kind("re-encoded", "re_encoded", "same name, other pixels: not to be trusted")
    kind("missing", "missing", "labelled images that no file is")
    kind("extra", "extra", "files without labels")
    if found["masked"]["count"]:
        kind("masked", "masked", "images of the store that could not be read, without labels")
    if found["moved"]["count"]:
        kind("moved", "moved", "files in a class folder of another name than when labelled")
    lines += _class_lines(found["classes"])
    if found["same_key"]:
        lines.append(f"{found['same_key']:,} missing images have a namesake; --by-key lists them")
    if found["pixels_unknown"] and found["extra"]["count"]:
        lines.append(
            f"pixels of {found['pixels_unknown']:,} missing images are unknown: the files that "
            "were labelled are not at hand (give their folder with --was)"
        )
    lines.append(
        f"training uses {found['trainable']:,} of the {found['files']:,} files (exact, labelled)"
    )
    return "\n".join(lines)


def _example(name: str, example: Any) -> str:
    if name in ("missing", "masked"):
        return f"row {example[0]} {example[1]}"
    if isinstance(example, str):
        return example
    key, row, other = example
    return f"{key} is row {row}" + (f" ({other})" if other != key else "")


def _class_lines(classes: dict[str, Any]) -> list[str]:
    if classes["state"] == "same":
        text = f"same names in the same order ({classes['store_hash'][:12]})"
    elif classes["state"] == "unknown":
        text = "the store or the folder has none"
    else:
        only = [
            f"{classes[side]['count']} only in the {where}{_such_as(classes[side]['examples'])}"
            for side, where in (("only_store", "store"), ("only_data", "folder"))
            if classes[side]["count"]
        ]
        text = "different" + (f": {', '.join(only)}" if only else " order")
    lines = [f"classes: {text}", *classes["problems"]]
    for teacher, mapped in classes["teachers"].items():
        if not mapped:
            lines.append(f"teacher {teacher}: not every class folder is one of its classes by name")
    return lines


def _such_as(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def diff_text(a: str, b: str, found: dict[str, Any]) -> str:
    """Every difference with its count."""
    if found["same_root"]:
        return f"{a} and {b} are equal: sealed under the same root"
    lines = [f"setting {line}" for line in found["settings"]]
    for side, path in (("only_a", a), ("only_b", b)):
        part = found[side]
        if "views" in part:
            lines.append(f"{path} has views {part['views'][0]}:{part['views'][1]}")
        if "labels" in part:
            lines.append(f"only {path} has labels of {', '.join(part['labels'])}")
        if "targets" in part:
            lines.append(f"only {path} has {', '.join(part['targets'])}")
    what = {
        "only_a": f"only in {a}", "only_b": f"only in {b}", "changed": "of other content",
        "renamed": "under another key", "target": "in another class",
        "status": "readable in one store only",
    }  # fmt: skip
    for kind, meaning in what.items():
        part = found["images"].get(kind, {"count": 0})
        if part["count"]:
            lines.append(f"{part['count']:,} images {meaning}{_such_as(part['examples'])}")
    views = found["views"]
    if views.get("different"):
        lines.append(f"{views['different']:,} of {views['compared']:,} common views differ")
    for name, counts in found["labels"].items():
        if counts["different"]:
            lines.append(
                f"{name}: {counts['different']:,} of {counts['compared']:,} common labels differ "
                f"(ids {counts['ids']:,}, values {counts['values']:,}, tail {counts['tail']:,}; "
                f"first: {found['first_label'][name]})"
            )
    for target, counts in found["targets"].items():
        if counts["different"]:
            lines.append(
                f"{target}: {counts['different']:,} of {counts['compared']:,} common views differ "
                f"(first: {found['first_target'][target]})"
            )
    if found["equal"]:
        lines.append(f"{a} and {b} are equal in every value (their bytes or origin differ)")
    else:
        first, last = found["common_views"]
        lines.append(f"common: {found['common_images']:,} images, views {first}:{last}")
    return "\n".join(lines)


def origin_text(store: str, found: dict[str, Any]) -> str:
    """The history of a store and what is proven of it."""
    record = found["origin"]
    if record is None:
        lines = [f"{store}: labelled, not made from other stores; root {found['root']}"]
    else:
        lines = [f"{store}: {record['kind']}; root {found['root']}", *_history(record, "  ")]
        if record.get("max_added_error"):
            lines.append(
                "  fewer classes: probabilities within "
                f"{max(record['max_added_error'].values())} of the parent's"
            )
    for root, part in found["proven"].items():
        lines.append(
            f"proven: {part['objects']:,} of {found['objects']:,} files, {part['bytes']:,} of "
            f"{found['bytes']:,} bytes, are files of root {root}"
        )
    return "\n".join([*lines, *found["problems"]])


def _history(record: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for parent in record["parents"]:
        first = parent["first_view"]
        lines.append(
            f"{indent}from {parent['root']}: {parent['num_images']:,} images, views "
            f"{first}:{first + parent['num_views']}, {', '.join(parent['teachers']) or 'no labels'}"
        )
        if "origin" in parent:
            lines.append(f"{indent}  {parent['origin']['kind']}")
            lines += _history(parent["origin"], indent + "  ")
    return lines


def made_text(out: str, found: dict[str, Any]) -> str:
    """What a new store is."""
    copied = sum(part["objects"] for part in found["proven"].values())
    kind = found["origin"]["kind"] if found["origin"] else "merge-blocks"
    return (
        f"{out}: {kind}, {found['objects']:,} files, {found['bytes']:,} bytes"
        + (f"; {copied:,} proofs of files copied byte for byte" if copied else "")
        + f"\nroot {found['root']}"
    )
