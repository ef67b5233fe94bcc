"""What a store is, for `labelstore info`: from its metadata alone, no chunk is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage import receipts
from storage.certificate import bytes_by_part, certificate_lines
from storage.errors import CorruptStore
from storage.inherited import inherited_certificates, inherited_lines
from storage.layout import constant_objects
from storage.manifest import store_manifest
from storage.store import LabelStore
from storage.targets.record import TargetRecord


def store_info(store: LabelStore) -> dict[str, Any]:
    """Settings, sizes by part and state of a store, in plain values."""
    spec = store.spec
    manifest = store_manifest(store) if store.is_sealed else None
    written = {} if manifest else receipts.read_receipts(store.path, store.blocks)
    done = [receipt for _, receipt in sorted(written.items())]
    if manifest:
        sizes, masked = manifest.sizes(), manifest.provenance.get("masked", [])
    else:
        sizes = {name: size for receipt in done for name, size in receipt.sizes().items()}
        masked = [row for receipt in done for row in receipt.masked]
    missing = store.missing_blocks(None if manifest else written)
    lacking = [] if manifest else store.missing_constants()
    images = spec.num_images if manifest else sum(len(store.block_rows(r.block)) for r in done)
    crops = images * spec.num_views
    unsealed = "incomplete" if missing or lacking else "complete, not sealed"
    return {
        "path": store.place,
        "format_version": spec.format_version,
        "status": "sealed" if manifest else unsealed,
        "root": manifest.root if manifest else None,
        "images": spec.num_images,
        "views": spec.num_views,
        "blocks": store.blocks,
        "missing_blocks": len(missing),
        "missing_constants": lacking,
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
                "adapted": record.adapted,
                "measured": record.measured,
                "inherited": [
                    found.to_json() for found in inherited_certificates(store.attributes, name)
                ],
            }
            for name, record in sorted(spec.teachers.items())
        },
        "targets": {
            path: _target_info(record, sizes, images)
            for path, record in sorted(spec.targets.items())
        },
    }


def _target_info(record: TargetRecord, sizes: Mapping[str, int], images: int) -> dict[str, Any]:
    """A target's settings and the bytes its files have."""
    files = {n: size for n, size in sizes.items() if n.startswith(f"{record.path}/")}
    shared = sum(files.get(name, 0) for name in constant_objects(record))
    values = sum(s for n, s in files.items() if not n.endswith("zarr.json")) - shared
    return {
        "teacher": record.teacher,
        "views": record.views,
        "parts": [part.to_json() for part in record.parts],
        "settings": record.settings,
        "view_bytes": record.view_bytes,
        "bytes": values,
        "bytes_per_view": round(values / max(images * record.views, 1), 3),
        "shared_bytes": shared,
    }


def info_text(info: dict[str, Any]) -> str:
    """`store_info` for people."""
    per_crop = info["bytes_per_crop"]
    total = sum(size for part, size in per_crop.items() if part not in ("metadata", "targets"))
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
        if teacher["adapted"]:
            lines.append(f"             adapted: {_settings(teacher['adapted'])}")
        measured = dict(teacher["measured"])
        certificate = measured.pop("certificate", None)
        if measured:
            lines.append(f"             measured {_settings(measured)}")
        if certificate:
            lines += [f"             {line}" for line in _certificate(info["path"], certificate)]
        for inherited in teacher["inherited"]:
            lines += [f"             {line}" for line in inherited_lines(inherited)]
    for path, target in info["targets"].items():
        vectors = ", ".join(
            f"{p['name']} {'x'.join(map(str, p['shape']))} {p['encoding']}" for p in target["parts"]
        )
        lines.append(
            f"  target     {path}: {vectors}; {target['views']} views of {target['teacher']}, "
            f"{target['bytes_per_view']:.2f} bytes a view ({target['view_bytes']} before "
            f"compression), {target['shared_bytes']:,} shared"
        )
    parts = ", ".join(f"{part} {size:.2f}" for part, size in per_crop.items())
    lines.append(f"  on disk    {info['bytes']:,} bytes; {total:.2f} a crop ({parts})")
    if info["root"]:
        lines.append(f"  root       {info['root']}")
    for row in info["masked_images"][:20]:
        lines.append(f"  masked     {row['key']} ({row['status'].lower()})")
    if len(info["masked_images"]) > 20:
        lines.append(f"  masked     ... and {len(info['masked_images']) - 20} more (--json)")
    return "\n".join(lines)


def _certificate(path: str, certificate: Any) -> list[str]:
    try:
        return certificate_lines(certificate)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptStore(
            f"{path}: its certificate can't be read ({error!r}): run `labelstore verify --full`"
        ) from error


def _codec_note(kind: str) -> str:
    return " with a dictionary" if kind == "top-k-dictionary" else ""


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
