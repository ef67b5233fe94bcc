"""What is installed here, and whether it is what the store was written with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from typing import Any

from PIL import features

from labelgen.doctor.decoding import TURBOJPEG, has_turbojpeg
from labelgen.doctor.diagnosis import Finding
from storage import receipts
from storage.manifest import read_manifest
from storage.store import LabelStore

PATH = "machine"
LEAST_FREE = 64 << 20  # bytes that a run still needs to write its next blocks


def describe_machine() -> dict[str, Any]:
    """Versions and numbers; nothing heavy is imported for them."""
    import PIL

    torch = sys.modules.get("torch")
    return {
        "pillow": f"{_flavour()} {PIL.__version__}",
        "libjpeg_turbo": features.version("libjpeg_turbo") or "none",
        "libturbojpeg": TURBOJPEG if has_turbojpeg() else "none",
        "ffcv": _version("ffcv"),
        "torch": _version("torch"),
        "torch_threads": torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS"),
        "cores": os.cpu_count(),
        **receipts.software(),
    }


def check_machine() -> list[Finding]:
    """What is installed that can't give the contract's pixels."""
    found = []
    if _flavour() != "pillow-simd":
        found.append(Finding(
            cause="pillow-not-simd", path=PATH, text="Pillow is installed, not pillow-simd: crops "
            "would differ by up to 2 levels", way_out="run scripts/setup.sh, which swaps them",
        ))  # fmt: skip
    if not features.check("libjpeg_turbo"):
        found.append(Finding(
            cause="libjpeg", path=PATH, text="Pillow is built on a libjpeg that is not "
            "libjpeg-turbo", way_out="install pillow-simd built on libjpeg-turbo",
        ))  # fmt: skip
    return found


def check_room(store: LabelStore) -> list[Finding]:
    """Whether a store that isn't finished can go on being written."""
    if store.is_sealed:
        return []
    found = []
    if not os.access(store.path, os.W_OK):
        found.append(Finding(
            cause="not-writable", path=PATH, text=f"{store.path} is not finished and can't be "
            "written", way_out="give this user the right to write there",
        ))  # fmt: skip
    free = shutil.disk_usage(store.path).free
    if free < LEAST_FREE:
        found.append(Finding(
            cause="disk-full", path=PATH, text=f"{free >> 20} MiB are free where {store.path} lies",
            way_out="free some space, then run the same `labelgen run` again",
        ))  # fmt: skip
    return found


def check_root(store: LabelStore, root: str | None) -> list[Finding]:
    """Whether the store is the one that is expected, by its Merkle root or the beginning of it."""
    if root is None:
        return []
    own = read_manifest(store.path).root
    if own.startswith(root.lower()):
        return []
    return [Finding(
        cause="other-root", path="store", text=f"{store.path} has the root {own[:12]}..., not "
        f"{root[:12]}...", way_out="fetch the store that the root is of, or give its root",
    )]  # fmt: skip


def version_notes(store: LabelStore) -> list[str]:
    """Software that differs from what wrote the store: worth knowing, no mistake."""
    written: dict[str, set[str]] = {}
    if store.is_sealed:
        stated = read_manifest(store.path).provenance.get("software", {})
        written = {name: set(versions) for name, versions in stated.items()}
    else:
        for receipt in receipts.read_receipts(store.path, store.blocks).values():
            for name, version in receipt.software.items():
                written.setdefault(name, set()).add(version)
    here = receipts.software()
    return [
        f"{name} is {here[name]} here; the store was written with {', '.join(sorted(versions))}"
        for name, versions in sorted(written.items())
        if name in here and here[name] not in versions
    ]


def has_modules(names: tuple[str, ...]) -> str | None:
    """The first of some modules that isn't installed; None where all are."""
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def _flavour() -> str:
    """Which of the two that own the folder PIL is in it: pillow-simd's versions end in .postN."""
    import PIL

    return "pillow-simd" if ".post" in PIL.__version__ else "pillow"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
