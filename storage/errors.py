"""Errors a user can act on: each says what, which value, what was expected and the way out.

The command line prints their text as one line on stderr and leaves with `exit_code`
(1 failed, 2 misused, 3 incomplete). Programming errors stay plain exceptions.
"""


class TeachonceError(Exception):
    """Base of all errors meant for users."""

    exit_code = 1


class UsageError(TeachonceError):
    """A value given by the user is not usable (unknown name, wrong range, missing file)."""

    exit_code = 2


class BadImage(TeachonceError):
    """One image can't be decoded; runs mask, count and list such images instead of stopping."""


class StoreError(TeachonceError):
    """A label store can't be read, written or used for what was asked."""


class StoreMismatch(StoreError):
    """A store, a beton or a checkpoint was made for something else than what it is used with."""


class FormatVersion(StoreError):
    """The store's format version is not one this release can read."""


class IncompleteStore(StoreError):
    """Blocks of the store have not been written yet: run the same `labelgen run` again."""

    exit_code = 3


class CorruptStore(StoreError):
    """Bytes of the store are damaged, missing or foreign."""


class TeacherError(TeachonceError):
    """A teacher can't be resolved, loaded or trusted (NaN or constant outputs)."""


class TrainingError(TeachonceError):
    """Training stopped for a reason the user must see (non-finite loss, dead worker)."""
