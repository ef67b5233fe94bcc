"""Sealed stores with chunk digests, as a web server would hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from store_helpers import fill_store, make_spec

from storage.manifest import CHUNKS, read_manifest
from storage.remote.digests import digests_to_bytes, store_digests
from storage.remote.opening import open_any
from storage.remote.store import RemoteStore
from storage.remote.transport import Retry, Transport
from storage.sealing import seal
from storage.store import LabelStore

FAST = Retry(attempts=4, first_wait=0.01, longest_wait=0.05, timeout=10)


def publish(path: Path, chunks: bool = True, **options: Any) -> LabelStore:
    """A sealed store in a folder to be served."""
    spec = make_spec(**{"num_images": 12, "num_views": 8, "segment_views": 8, **options})
    store = fill_store(path, spec, masked=(3,))
    seal(store)
    if chunks:
        root = read_manifest(path).root
        (path / CHUNKS).write_bytes(digests_to_bytes(root, store_digests(store)))
    return store


def connect(url: str, cache: Path, limit: int = 10**9, **options: Any) -> RemoteStore:
    """`open_any` with quick retries."""
    return RemoteStore.connect(Transport(url, FAST), cache, limit, **options)


def assert_same(remote: LabelStore, local: LabelStore, first: int, count: int) -> None:
    """Both give the same plane."""
    found, wanted = (s.read_plane(first, count, "toy") for s in (remote, local))
    for name in ("box", "flip", "index", "code", "tail"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


__all__ = ["FAST", "assert_same", "connect", "open_any", "publish"]
