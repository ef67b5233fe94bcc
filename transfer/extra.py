"""Libraries that an extra brings, asked for when a command needs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from storage.errors import UsageError


def load_extra(module: str, command: str, extra: str = "transfer") -> ModuleType:
    """An installed module of an extra.

    Raises:
        UsageError: it isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise UsageError(
            f"`{command}` needs {package} ({error}): pip install 'teachonce[{extra}]'"
        ) from error
