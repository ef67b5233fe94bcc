"""One way to open a store, wherever it lies."""

from __future__ import annotations

from pathlib import Path

from storage.errors import UsageError
from storage.remote.location import is_remote
from storage.store import LabelStore


def open_any(
    location: str | Path,
    *,
    cache: Path | str | None = None,
    cache_size: int | str | None = None,
    root: str | None = None,
    whole: bool = False,
) -> LabelStore:
    """Open a label store at a path or a URL.

    Args:
        location: a folder, or https://, http://, s3://, gs:// or hf://datasets/ORG/NAME@REV/...
        cache: folder for what is fetched; default $TEACHONCE_CACHE, else the user's cache folder.
        cache_size: bytes to keep there, or text like "20GB"; default $TEACHONCE_CACHE_SIZE, else
            50 GB.
        root: the Merkle root that a sealed store must have.
        whole: from a URL, fetch whole files only, each compared with its SHA-256.
    Raises:
        UsageError: an address or cache size that makes no sense, or a package is missing.
        StoreMismatch: the store has another root.
        RemoteError, CorruptStore, FormatVersion, StoreError: it can't be opened.
    """
    if not is_remote(str(location)):
        store = LabelStore.open(location)
        if root is not None:
            _check_root(store, root)
        return store
    from storage.remote.cache import default_cache, default_limit, parse_size
    from storage.remote.store import RemoteStore
    from storage.remote.transport import Transport

    limit = parse_size(cache_size) if isinstance(cache_size, str) else cache_size or default_limit()
    folder = Path(cache) if cache is not None else default_cache()
    return RemoteStore.connect(Transport(str(location)), folder, limit, root=root, whole=whole)


def as_store(store: LabelStore | Path | str) -> LabelStore:
    """An open store as it is; what is at a path or URL opened, whole files being fetched only.

    For whatever makes new stores of stores: of files compared with the manifest as a whole.

    Raises:
        As `open_any`.
    """
    return store if isinstance(store, LabelStore) else open_any(store, whole=True)


def local_folder(location: str | Path, purpose: str) -> Path:
    """The folder of a store that is written to.

    Args:
        purpose: what is done there, for the message: "sealed", "signed".
    Raises:
        UsageError: it is an address.
    """
    if is_remote(str(location)):
        raise UsageError(
            f"{location} lies elsewhere and can't be {purpose} there: `labelstore pull` it, have "
            "the copy, and `labelstore push` that"
        )
    return Path(location)


def published_folder(location: str | Path) -> Path:
    """A folder with the manifest and what is said beside it: card, signature.

    Raises:
        As `open_any`, of an address.
    """
    if not is_remote(str(location)):
        return Path(location)
    from storage.remote.store import RemoteStore

    store = open_any(location)
    assert isinstance(store, RemoteStore), "it is an address"
    store.fetch_card(store.path)
    return store.path


def _check_root(store: LabelStore, root: str) -> None:
    from storage.errors import IncompleteStore, StoreMismatch
    from storage.manifest import read_manifest

    if not store.is_sealed:
        raise IncompleteStore(f"{store.path} is not sealed and has no root: `labelstore seal` it")
    found = read_manifest(store.path).root
    if found != root.lower():
        raise StoreMismatch(f"{store.path} has the root {found}, not {root}: it is another store")
