"""A copy of a remote store, or of a part of it, as a sealed store on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.atomic import TEMPORARY, write_atomic
from storage.errors import StoreError, UsageError
from storage.manifest import read_manifest
from storage.remote.files import fetch_file, holds
from storage.remote.store import RemoteStore
from storage.store import MANIFEST
from storage.threads import for_each

Advance = Callable[[int], None]


@dataclass(frozen=True)
class PullReport:
    """What `pull` made. `fetched` counts bytes received now, protocol aside."""

    path: str
    url: str
    root: str
    source_root: str
    objects: int
    bytes: int
    fetched: int


def pull(
    store: RemoteStore,
    out: Path | str,
    *,
    views: tuple[int, int] | None = None,
    top_k: int | None = None,
    advance: Advance | None = None,
) -> PullReport:
    """Copy a store, or some of its views or classes; the same call again goes on.

    A whole copy has the very bytes of the original. A part is a store of its own with its origin
    noted (see docs/reuse.md); of files that it needs only partly, the whole is fetched.

    Args:
        store: opened with `whole=True`.
        views: (first, last + 1); top_k: classes kept of every label.
        advance: called with the bytes of every file that is in place.
    Raises:
        StoreError: something else is at `out`.
        CorruptStore, RemoteError: the server's fault; what has arrived is kept.
        UsageError: a part that the store doesn't have.
    """
    out = Path(out)
    before = store.transport.bytes_fetched
    if views is None and top_k is None:
        root = _pull_all(store, out, advance)
    else:
        root = _pull_part(store, out, views, top_k, advance)
    objects = read_manifest(out).sizes()
    return PullReport(
        path=str(out),
        url=store.transport.url,
        root=root,
        source_root=store.manifest.root,
        objects=len(objects),
        bytes=sum(objects.values()),
        fetched=store.transport.bytes_fetched - before,
    )


def _pull_all(store: RemoteStore, out: Path, advance: Advance | None) -> str:
    root = store.manifest.root
    mark = out / f"{TEMPORARY}pull-{root[:16]}"
    if (out / MANIFEST).is_file():
        if read_manifest(out).root != root:
            raise StoreError(f"{out} holds another store: choose another --out, or move it away")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())) and not mark.exists():
        raise StoreError(
            f"{out} exists and is not an unfinished copy of {store.transport.url}: choose another "
            "--out, or move it away"
        )
    if not (out / MANIFEST).is_file():
        write_atomic(mark, b"")

    def fetch(name: str) -> None:
        size, digest = store.manifest.objects[name]
        if not holds(out / name, size, digest):
            fetch_file(store.transport, name, size, digest, out / name)
        if advance:
            advance(size)

    for_each(sorted(store.manifest.objects), fetch)
    store.fetch_card(out)
    write_atomic(out / MANIFEST, store.manifest.to_bytes())
    mark.unlink(missing_ok=True)
    return root


def _pull_part(
    store: RemoteStore,
    out: Path,
    views: tuple[int, int] | None,
    top_k: int | None,
    advance: Advance | None,
) -> str:
    from storage.select import Selection, subset

    if out.exists():
        raise StoreError(f"{out} exists: choose another --out, or move it away")
    first, last = views or (0, store.spec.num_views)
    if not 0 <= first < last <= store.spec.num_views:
        raise UsageError(f"views {first}:{last}; the store has 0:{store.spec.num_views}")
    names = store.files_of_views(first, last)
    with store.cache.pinned(names):

        def fetch(name: str) -> None:
            store.cache.need_whole(name, *store.manifest.objects[name])
            if advance:
                advance(store.manifest.objects[name][0])

        for_each(names, fetch)
        return subset(store, out, Selection(views=views, top_k=top_k)).root
