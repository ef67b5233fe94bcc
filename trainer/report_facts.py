"""run.json: what a run folder says of its labels, its machine and its outcome, for the report."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from storage import LabelStore
from storage.atomic import write_atomic
from storage.inherited import inherited_certificates
from storage.manifest import read_manifest
from storage.targets.record import TargetRecord
from trainer.distributed import World

RUN_NAME = "run.json"
PACKAGES = ("teachonce", "torch", "torchvision", "timm", "numpy", "numba", "ffcv", "zarr",
            "pillow-simd", "pillow")  # fmt: skip


def label_facts(
    store: LabelStore | None, teacher: str | None, features: TargetRecord | None
) -> dict[str, Any] | None:
    """What a run learns from; None without a store.

    Args:
        teacher: whose labels are read. features: the target read in place of labels.
    """
    if store is None:
        return None
    name = teacher or (features.teacher if features is not None else sorted(store.spec.teachers)[0])
    record = store.spec.teachers[name]
    measured = dict(record.measured)
    return {
        "store": store.place,
        "root": read_manifest(store.path).root,
        "images": store.spec.num_images,
        "views": store.spec.num_views if features is None else features.views,
        "sampler": store.spec.sampler.to_json(),
        "target": None if features is None else features.path,
        "teacher": {
            "name": name,
            "spec": record.spec,
            "weights": record.digest,
            "licence": record.licence,
            "input_size": record.input_size,
            "classes": record.num_classes,
            "top_k": record.codec.top_k,
        },
        "certificate": measured.pop("certificate", None),
        "measured": measured,
        "inherited": [one.to_json() for one in inherited_certificates(store.attributes, name)],
    }


def environment_facts(
    device: torch.device, world: World, loader: str, workers: int
) -> dict[str, Any]:
    """The machine and the software that train."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {
        "torch": torch.__version__,  # with its build, which the metadata lacks
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "loader": f"{loader}, {workers} workers",
    }


def read_facts(out: Path) -> dict[str, Any]:
    """The run.json of a folder; {} where there is none that can be read (older runs)."""
    try:
        found = json.loads((out / RUN_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_facts(out: Path, facts: Mapping[str, Any]) -> None:
    """Put run.json in its place whole."""
    write_atomic(out / RUN_NAME, json.dumps(facts, indent=2).encode() + b"\n")


def _processor() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
