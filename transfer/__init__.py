"""The student at work. Public names are imported when first used."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "export": "transfer.export",
    "run_classify": "transfer.classify",
    "run_detect": "transfer.detect.run",
    "run_probe": "transfer.probe_run",
    "run_segment": "transfer.segment.run",
    "write_report": "transfer.report",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
