"""Checking settings when they are made."""

from __future__ import annotations

from storage.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Refuse a setting.

    Raises:
        UsageError: the condition does not hold.
    """
    if not condition:
        raise UsageError(message)
