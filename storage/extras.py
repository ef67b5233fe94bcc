"""Libraries that only some commands need (extras of pyproject.toml), asked for when one does."""

from __future__ import annotations

import importlib
from types import ModuleType

from storage.errors import UsageError


def needs_extra(what: str, package: str, extra: str) -> UsageError:
    """The one line for a library that isn't installed.

    Args:
        what: the command, option or address that needs it. extra: what brings it.
    """
    return UsageError(
        f"{what} needs the package {package}, which can't be imported: install it in teachonce's "
        f"folder with pip install -e '.[{extra}]'"
    )


def load_extra(module: str, what: str, extra: str) -> ModuleType:
    """An installed module.

    Raises:
        UsageError: it isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise needs_extra(what, package, extra) from error
