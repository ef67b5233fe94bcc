"""Stage 1: the teacher looks once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelgen.adding import add
    from labelgen.run import generate
    from labelgen.target_options import TargetOptions
    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve

__all__ = ["TargetOptions", "add", "generate", "load_teacher", "resolve"]

_HOME = {
    "TargetOptions": "labelgen.target_options",
    "add": "labelgen.adding",
    "generate": "labelgen.run",
    "load_teacher": "labelgen.teacher",
    "resolve": "labelgen.teachers",
}


def __getattr__(name: str) -> Any:
    """Import on first use: crop workers import this package and must not load torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'labelgen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
