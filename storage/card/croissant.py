"""croissant.json: the store as MLCommons' Croissant 1.0 describes data sets.

Croissant has no record sets for Zarr, so files are described: the manifest and every file by
its SHA-256 (the largest stores: every array as a set of files, whose hashes the manifest holds).
"""

from __future__ import annotations

import json
import re
from typing import Any

from storage.card.facts import CardFacts
from storage.card.licences import UNKNOWN
from storage.layout import array_layouts, constant_layouts
from storage.store import MANIFEST

MOST_FILES = 2000  # beyond, files are listed by array
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_JSON, _BYTES = "application/json", "application/octet-stream"


def croissant(facts: CardFacts) -> str:
    """The whole file; a function of the facts alone."""
    spec = facts.spec
    teachers = ", ".join(record.spec for record in spec.teachers.values())
    values: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": re.sub(r"[^A-Za-z0-9_-]+", "-", facts.name).strip("-") or "label-store",
        "alternateName": facts.name,
        "description": (
            f"Soft labels of {teachers} for {spec.num_views} views of each of {spec.num_images} "
            f"images. {_licence_text(facts)} Images are not included; they are identified by "
            f"SHA-256, data set fingerprint {facts.info['dataset_fingerprint']}. Merkle root "
            f"{facts.manifest.root}."
        ),
        "license": facts.licences.labels,
        "identifier": f"merkle-root:{facts.manifest.root}",
        "version": "1.0.0",
        "keywords": ["knowledge distillation", "soft labels", "teachonce", "zarr"],
        "distribution": _distribution(facts),
    }
    if facts.url:
        values["url"] = facts.url
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _licence_text(facts: CardFacts) -> str:
    licences = facts.licences
    weights = ", ".join(f"{name}: {value}" for name, value in licences.teachers.items()) or UNKNOWN
    return (
        f"Licences: labels {licences.labels}; teacher weights {weights}; images {licences.images}."
    )


def _distribution(facts: CardFacts) -> list[dict[str, Any]]:
    objects = facts.manifest.objects
    found = [_file(MANIFEST, facts.manifest_bytes, facts.manifest_sha256)]
    if len(objects) <= MOST_FILES:
        return found + [_file(name, *entry) for name, entry in sorted(objects.items())]
    found += [_file(n, *entry) for n, entry in sorted(objects.items()) if n.endswith("zarr.json")]
    return found + [
        {
            "@type": "cr:FileSet",
            "@id": path,
            "name": path,
            "description": f"chunks of the Zarr array {path}; their SHA-256 are in {MANIFEST}",
            "encodingFormat": _BYTES,
            "includes": f"{path}/c/**",
        }
        for path in array_layouts(facts.spec) | constant_layouts(facts.spec)
    ]


def _file(name: str, size: int, digest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": _JSON if name.endswith(".json") else _BYTES,
        "sha256": digest,
    }
