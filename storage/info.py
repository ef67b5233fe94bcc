"""What a store is, for `labelstore info`: from its metadata alone, no chunk is read."""

from __future__ import annotations

from typing import Any

from storage import receipts
from storage.manifest import read_manifest
from storage.store import LabelStore

PARTS = {"index": "ids", "gap": "values", "tail": "tail", "box": "boxes", "flip": "boxes"}


def store_info(store: LabelStore) -> dict[str, Any]:
    """Settings, sizes by part and state of a store, in plain values."""
    spec = store.spec
    manifest = read_manifest(store.path) if store.is_sealed else None
    found = [receipts.read_receipt(store.path, b) for b in range(store.blocks)]
    done = [receipt for receipt in found if receipt is not None]
    if manifest:
        sizes, masked = manifest.sizes(), manifest.provenance.get("masked", [])
    else:
        sizes = {name: size for receipt in done for name, size in receipt.sizes().items()}
        masked = [row for receipt in done for row in receipt.masked]
    missing = store.missing_blocks()
    images = spec.num_images if manifest else sum(len(store.block_rows(r.block)) for r in done)
    crops = images * spec.num_views
    by_part: dict[str, int] = {}
    for name, size in sizes.items():
        part = _part(name)
        by_part[part] = by_part.get(part, 0) + size
    return {
        "path": str(store.path),
        "format_version": spec.format_version,
        "status": "sealed" if manifest else "incomplete" if missing else "complete, not sealed",
        "root": manifest.root if manifest else None,
        "images": spec.num_images,
        "views": spec.num_views,
        "blocks": store.blocks,
        "missing_blocks": len(missing),
        "masked_images": masked,
        "sampler": spec.sampler.to_json(),
        "pixel": spec.pixel.to_json(),
        "seed": spec.seed,
        "folder_classes": len(spec.dataset.get("classes") or ()),
        "dataset_fingerprint": store.attributes.get("measured", {}).get("dataset_fingerprint"),
        "bytes": sum(sizes.values()),
        "bytes_per_crop": {
            part: round(size / max(crops, 1), 3) for part, size in sorted(by_part.items())
        },
        "teachers": {
            name: {
                "spec": record.spec,
                "arch": record.arch,
                "digest": record.digest,
                "licence": record.licence,
                "input_size": record.input_size,
                "interpolation": record.interpolation,
                "classes": record.num_classes,
                "top_k": record.codec.top_k,
                "step_nats": record.codec.step,
                "max_error": round(record.codec.max_error, 4),
                "measured": record.measured,
            }
            for name, record in sorted(spec.teachers.items())
        },
    }


def info_text(info: dict[str, Any]) -> str:
    """`store_info` for people."""
    per_crop = info["bytes_per_crop"]
    total = sum(size for part, size in per_crop.items() if part != "metadata")
    lines = [
        f"{info['path']}: label store, format {info['format_version']}, {info['status']}",
        f"  images     {info['images']} (N), {info['views']} views each (M), "
        f"{len(info['masked_images'])} masked, {info['folder_classes'] or 'no'} classes",
        f"  blocks     {info['blocks'] - info['missing_blocks']} of {info['blocks']} written",
        f"  views      {_settings(info['sampler'])}, seed {info['seed']}",
        f"  pixels     {_settings(info['pixel'])}",
    ]
    for name, teacher in info["teachers"].items():
        lines += [
            f"  teacher    {name}: {teacher['spec']} at {teacher['input_size']}, "
            f"{teacher['classes']} classes, top-{teacher['top_k']} in {teacher['step_nats']} nat "
            f"steps (max error {teacher['max_error']}), licence {teacher['licence']}",
            f"             weights {teacher['digest']}",
        ]
        if teacher["measured"]:
            lines.append(f"             measured {_settings(teacher['measured'])}")
    parts = ", ".join(f"{part} {size:.2f}" for part, size in per_crop.items())
    lines.append(f"  on disk    {info['bytes']:,} bytes; {total:.2f} a crop ({parts})")
    if info["root"]:
        lines.append(f"  root       {info['root']}")
    for row in info["masked_images"][:20]:
        lines.append(f"  masked     {row['key']} ({row['status'].lower()})")
    if len(info["masked_images"]) > 20:
        lines.append(f"  masked     ... and {len(info['masked_images']) - 20} more (--json)")
    return "\n".join(lines)


def _part(name: str) -> str:
    if name.endswith("zarr.json"):
        return "metadata"
    if name.startswith("images/"):
        return "images"
    return PARTS[name.split("/c/")[0].rsplit("/", 1)[-1]]


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
