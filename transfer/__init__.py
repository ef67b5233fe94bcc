"""The student at work. Public names are imported when first used."""

from importlib import import_module
from typing import Any

_PUBLIC = {"export": "transfer.export", "run_probe": "transfer.probe_run"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
