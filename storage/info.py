"""What a store is, for `labelstore info`: from its metadata alone, no chunk is read."""

from __future__ import annotations

from typing import Any

from storage import receipts
from storage.certificate import bytes_by_part, certificate_lines
from storage.manifest import read_manifest
from storage.store import LabelStore


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
        "bytes_per_crop": bytes_by_part(sizes, crops),
        "teachers": {
            name: {
                "spec": record.spec,
                "arch": record.arch,
                "digest": record.digest,
                "licence": record.licence,
                "input_size": record.input_size,
                "interpolation": record.interpolation,
                "classes": record.num_classes,
                "codec": record.codec.to_json()["kind"],
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
            f"{teacher['classes']} classes, top-{teacher['top_k']}{_codec_note(teacher['codec'])} "
            f"in {teacher['step_nats']} nat steps (max error {teacher['max_error']}), licence "
            f"{teacher['licence']}",
            f"             weights {teacher['digest']}",
        ]
        measured = dict(teacher["measured"])
        certificate = measured.pop("certificate", None)
        if measured:
            lines.append(f"             measured {_settings(measured)}")
        if certificate:
            lines += [f"             {line}" for line in certificate_lines(certificate)]
    parts = ", ".join(f"{part} {size:.2f}" for part, size in per_crop.items())
    lines.append(f"  on disk    {info['bytes']:,} bytes; {total:.2f} a crop ({parts})")
    if info["root"]:
        lines.append(f"  root       {info['root']}")
    for row in info["masked_images"][:20]:
        lines.append(f"  masked     {row['key']} ({row['status'].lower()})")
    if len(info["masked_images"]) > 20:
        lines.append(f"  masked     ... and {len(info['masked_images']) - 20} more (--json)")
    return "\n".join(lines)


def _codec_note(kind: str) -> str:
    return " with a dictionary" if kind == "top-k-dictionary" else ""


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
