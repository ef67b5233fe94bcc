"""What can be wrong with somebody else's file. Importers collect these, they never abort on one."""

from __future__ import annotations

from storage.errors import TeachonceError


class BadRecord(TeachonceError):
    """A file of an archive is damaged, hostile, or holds something its format doesn't have."""
