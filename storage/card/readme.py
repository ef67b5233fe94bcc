"""README.md: the Hub's YAML front matter, and the facts in words."""

from __future__ import annotations

import json
from typing import Any

from storage.card.facts import CardFacts
from storage.card.licences import HUB_LICENCES, UNKNOWN

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
         (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
SHOWN_MASKED = 100


def readme(facts: CardFacts) -> str:
    """The whole file; a function of the facts alone."""
    parts = [
        _front_matter(facts), _intro(facts), _licences(facts), _integrity(facts),
        _images(facts), _views(facts), *(_teacher(facts, name) for name in facts.spec.teachers),
        _origin(facts), _reproduce(facts), _limits(facts),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: CardFacts) -> str:
    labels = facts.licences.labels
    lines = ["---", f"pretty_name: {json.dumps(facts.name)}"]
    if labels.lower() in HUB_LICENCES:
        lines.append(f"license: {labels.lower()}")
    else:
        lines += ["license: other", f"license_name: {json.dumps(labels)}"]
        if labels.startswith("https://"):
            lines.append(f"license_link: {json.dumps(labels)}")
    count = facts.spec.num_images
    size = next((name for limit, name in SIZES if count < limit), "n>1T")
    lines += [
        "task_categories:", "- image-classification",
        "tags:", "- knowledge-distillation", "- soft-labels", "- teachonce", "- zarr",
        "size_categories:", f"- {size}",
        "viewer: false",
        "---",
    ]  # fmt: skip
    return "\n".join(lines)


def _intro(facts: CardFacts) -> str:
    spec = facts.spec
    teachers = ", ".join(record.spec for record in spec.teachers.values())
    return (
        f"# {facts.name}\n\n"
        f"Soft labels of {teachers} for {spec.num_views} views of each of {spec.num_images} "
        f"images: a label store of teachonce, format {spec.format_version}. It holds no images. "
        "Students learn from it with the teacher switched off:\n\n"
        "```console\n"
        f"$ labelstore verify {facts.url or 'store.zarr'}\n"
        f"$ trainer fit --labels {facts.url or 'store.zarr'} --data IMAGES\n"
        "```"
    )


def _licences(facts: CardFacts) -> str:
    licences = facts.licences
    rows = [("labels (this store)", licences.labels)]
    rows += [(f"weights of teacher {name}", value) for name, value in licences.teachers.items()]
    rows.append(("images (not in this store)", licences.images))
    text = "## Licences\n\n" + _table(("of", "licence"), rows)
    unstated = licences.unstated()
    if unstated:
        text += (
            f"\n\nNobody has stated a licence of: {', '.join(unstated)}. Unknown is not a "
            "permission: ask whoever publishes it."
        )
    return text


def _integrity(facts: CardFacts) -> str:
    rows = [
        ("Merkle root", f"`{facts.manifest.root}`"),
        ("SHA-256 of manifest.json", f"`{facts.manifest_sha256}`"),
        ("files", str(len(facts.manifest.objects))),
        ("bytes", f"{sum(facts.manifest.sizes().values()):,}"),
        *((f"bytes a crop, {part}", str(size)) for part, size in _per_crop(facts)),
    ]
    return (
        "## Integrity\n\n" + _table(("what", "value"), rows) + "\n\n`labelstore verify --full "
        "store.zarr` must print this root: it covers every byte of settings, images' digests, "
        "boxes and labels. This page is not under it."
    )


def _per_crop(facts: CardFacts) -> list[tuple[str, float]]:
    return [(part, size) for part, size in facts.info["bytes_per_crop"].items()]


def _images(facts: CardFacts) -> str:
    dataset, masked = facts.spec.dataset, facts.info["masked_images"]
    classes = dataset.get("classes") or ()
    rows = [
        ("images from", facts.images_from or "not stated"),
        ("number (N)", str(facts.spec.num_images)),
        ("masked (no labels)", str(len(masked))),
        ("fingerprint (SHA-256 of the sorted digests)",
         f"`{facts.info['dataset_fingerprint']}`"),
        ("hash of keys in order", f"`{dataset['keys_hash']}`"),
        ("classes", str(len(classes))),
        ("hash of class order", f"`{dataset['class_order_hash']}`"),
    ]  # fmt: skip
    text = "## Images\n\n" + _table(("what", "value"), rows)
    text += (
        "\n\nImages are joined by the SHA-256 of their files (`labelstore match store.zarr "
        "IMAGES` says which of yours are these)."
    )
    if classes:
        text += f"\n\nClasses, in order: {_listing(classes)}"
    if masked:
        names = [f"{row['key']} ({str(row['status']).lower()})" for row in masked]
        text += f"\n\nMasked: {_listing(names, SHOWN_MASKED)}"
    return text


def _views(facts: CardFacts) -> str:
    spec = facts.spec
    rows = [
        ("views of each image (M)", str(spec.num_views)),
        ("sampler", _settings(spec.sampler.to_json())),
        ("seed", str(spec.seed)),
        ("pixels", _settings(spec.pixel.to_json())),
        ("block, plane, segment",
         f"{spec.block_images} images, {spec.plane_views} views, {spec.segment_views} views"),
    ]  # fmt: skip
    return "## Views\n\n" + _table(("what", "value"), rows)


def _teacher(facts: CardFacts, name: str) -> str:
    record = facts.spec.teachers[name]
    rows = [
        ("teacher", record.spec),
        ("library", f"{record.library} {record.version}"),
        ("architecture", record.arch),
        ("tensor digest", f"`{record.digest}`"),
        ("licence of the weights", facts.licences.teachers[name]),
        ("input", f"{record.input_size} pixels, {record.interpolation}, mean "
                  f"{list(record.mean)}, std {list(record.std)}"),
        ("precision, batch", f"{record.precision}, {record.batch_size}"),
        ("classes", f"{record.num_classes}, order hash {record.class_order_hash or UNKNOWN}"),
        ("codec", _settings(record.codec.to_json())),
        ("largest error of a kept probability", f"{record.codec.max_error:.4f}"),
        *((f"measured {key}", str(value)) for key, value in _flat(record.measured)),
    ]  # fmt: skip
    return f"## Labels of {name}\n\n" + _table(("what", "value"), rows)


def _origin(facts: CardFacts) -> str:
    text = ""
    if facts.imported:
        text = (
            "## Where it comes from\n\nImported from an archive of another project. What is "
            "listed under `declared_not_verified` was stated by whoever imported it.\n\n"
            f"```json\n{json.dumps(facts.imported, indent=2, sort_keys=True)}\n```"
        )
    if facts.origin:
        text += ("\n\n" if text else "## Where it comes from\n\n") + (
            f"```json\n{json.dumps(facts.origin, indent=2, sort_keys=True)}\n```"
        )
    return text


def _reproduce(facts: CardFacts) -> str:
    text = "## Make it again\n\n"
    if facts.command:
        text += (
            "With the images above as IMAGES:\n\n"
            f"```console\n$ {facts.command}\n$ labelstore verify --full store.zarr\n```"
        )
    if facts.gaps:
        text += "\n\nThe command does not say: " + "; ".join(facts.gaps) + "."
    software = facts.manifest.provenance.get("software", {})
    rows = [(name, ", ".join(versions)) for name, versions in sorted(software.items())]
    rows += [
        (record.library, record.version)
        for record in facts.spec.teachers.values()
        if record.library not in software
    ]
    rows.append(("devices", ", ".join(facts.manifest.provenance.get("devices", []))))
    text += "\n\n" + _table(("software", "version"), rows)
    return text + (
        "\n\nEqual software on equal devices gives the same root. Elsewhere boxes, flips and "
        "digests are the same and labels agree within the precision's rounding; "
        "`labelstore diff` says how far."
    )


def _limits(facts: CardFacts) -> str:
    return (
        "## Limits\n\nLabels are a network's opinion of crops, not ground truth, and carry the "
        "mistakes and biases of its training data. They hold for these views of these images "
        "only."
    )


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _listing(names: Any, most: int | None = None) -> str:
    shown = [" ".join(str(name).split()).replace("`", "'") for name in names]
    more = f" and {len(shown) - most} more" if most and len(shown) > most else ""
    return ", ".join(f"`{name}`" for name in shown[:most]) + more


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found
