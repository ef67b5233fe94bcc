"""The four kinds of targets by name."""

from __future__ import annotations

from collections.abc import Callable

from storage.errors import UsageError
from storage.targets.dense import check_dense
from storage.targets.features import check_features
from storage.targets.heads import check_heads
from storage.targets.record import TargetRecord
from storage.targets.tokens import check_tokens

CHECKS: dict[str, Callable[[TargetRecord], None]] = {
    "features": check_features,
    "heads": check_heads,
    "tokens": check_tokens,
    "dense": check_dense,
}


def check_target(record: TargetRecord) -> None:
    """A record's parts, constants and files are those that its settings ask for.

    Raises:
        UsageError: they aren't, or the settings make no sense.
    """
    if record.files and record.kind != "tokens":
        raise UsageError(f"{record.path} has files {sorted(record.files)}; only tokens have any")
    try:
        CHECKS[record.kind](record)
    except (TypeError, ValueError) as error:  # a setting of another type
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{record.path}: its settings can't be read ({error})") from error
