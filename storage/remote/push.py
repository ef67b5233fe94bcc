"""Publishing a sealed store: every file, then the digests of chunks, the manifest last."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.atomic import write_atomic
from storage.errors import CorruptStore, IncompleteStore, StoreError, UsageError
from storage.format import json_bytes
from storage.manifest import CARD, CHUNKS, Manifest, file_entry, parse_manifest, read_manifest
from storage.remote.cache import default_cache
from storage.remote.digests import digests_to_bytes, store_digests
from storage.remote.files import holds
from storage.remote.location import RemoteError, is_remote, normal_url
from storage.remote.store import MOST_MANIFEST
from storage.remote.transport import Transport
from storage.store import MANIFEST, LabelStore
from storage.threads import for_each

Advance = Callable[[int], None]
SENDERS = 4
JOURNAL_EVERY = 16


@dataclass(frozen=True)
class PushReport:
    """What `push` did.

    sent, sent_bytes: objects written now; kept: those that were there from an earlier attempt.
    """

    url: str
    root: str
    sent: int
    sent_bytes: int
    kept: int


def push(
    path: Path | str,
    destination: str,
    *,
    overwrite: bool = False,
    cache: Path | None = None,
    advance: Advance | None = None,
    transport: Transport | None = None,
) -> PushReport:
    """Copy a sealed store to a folder, a bucket or the Hub; the same call again goes on.

    Every file is compared with the manifest as it is read. Readers find a store only when all
    of it is there, because the manifest is written last.

    Args:
        overwrite: replace another store at the destination.
        cache: where the note of what has been sent is kept.
        advance: called with the bytes of every object that is in place.
    Raises:
        IncompleteStore: not sealed. CorruptStore: a file isn't the manifest's.
        StoreError: another store is at the destination.
        RemoteError: unreachable or refused. UsageError: a destination that can't be written.
    """
    store = LabelStore.open(path)
    if not store.is_sealed:
        raise IncompleteStore(f"{store.path} is not sealed: run `labelstore seal {store.path}`")
    manifest = read_manifest(store.path)
    digests = digests_to_bytes(manifest.root, store_digests(store))
    about = {name: (store.path / name).read_bytes() for name in CARD
             if (store.path / name).is_file()}  # fmt: skip
    last = {**about, CHUNKS: digests, MANIFEST: manifest.to_bytes()}
    if destination.startswith("hf://"):
        return _push_to_hub(store, manifest, destination, last)
    target: _Folder | _Bucket
    if is_remote(destination):
        url = normal_url(destination)
        if url.startswith("http"):
            raise UsageError(
                f"{url}: a web server is not written to: push to the folder it serves, or to a "
                "bucket (s3://, gs://) or hf://"
            )
        target = _Bucket(transport or Transport(url), cache or default_cache(), manifest.root)
    else:
        target = _Folder(Path(destination))
    _clear_way(target, manifest, overwrite)
    sent, sent_bytes, kept = 0, 0, 0
    lock = threading.Lock()

    def send(name: str) -> None:
        nonlocal sent, sent_bytes, kept
        entry = manifest.objects[name]
        there = target.has(name, *entry)
        if not there:
            target.write(name, _read(store.path / name, entry))
        with lock:
            sent, kept = sent + (not there), kept + there
            sent_bytes += 0 if there else entry[0]
            if advance:
                advance(entry[0])

    try:
        for_each(sorted(manifest.objects), send, SENDERS)
    finally:
        target.note()
    for name, data in last.items():
        target.write(name, data)
    target.note()
    return PushReport(destination, manifest.root, sent, sent_bytes, kept)


def _read(path: Path, entry: tuple[int, str]) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if (len(data), hashlib.sha256(data).hexdigest()) != entry:
        raise CorruptStore(
            f"{path} is not what the manifest names (size or SHA-256 differs): run `labelstore "
            "verify --full`; nothing damaged was sent"
        )
    return data


def _clear_way(target: _Folder | _Bucket, manifest: Manifest, overwrite: bool) -> None:
    """Refuse another store's place, or take its manifest away so that nobody opens a mixture."""
    data = target.manifest()
    if data is None:
        return
    try:
        found: str | None = parse_manifest(data, f"{target.place}/{MANIFEST}").root
    except StoreError:
        found = None
    if found == manifest.root:
        return
    if not overwrite:
        raise StoreError(
            f"{target.place} holds another store (root {found or 'unreadable'}, this one has "
            f"{manifest.root}): choose another place, or replace it with --overwrite"
        )
    target.remove_manifest()


class _Folder:
    """A folder on this machine, e.g. one that a web server serves."""

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._path = path

    def manifest(self) -> bytes | None:
        path = self._path / MANIFEST
        return path.read_bytes() if path.is_file() else None

    def remove_manifest(self) -> None:
        (self._path / MANIFEST).unlink()

    def has(self, name: str, size: int, digest: str) -> bool:
        return holds(self._path / name, size, digest)

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self._path / name, data)

    def note(self) -> None:
        """A folder's own bytes tell what is there."""


class _Bucket:
    """A bucket, with a note on this machine of the entity tags that its objects got."""

    def __init__(self, transport: Transport, cache: Path, root: str) -> None:
        self.place = transport.url
        self._transport = transport
        name = hashlib.sha256(f"{transport.url}\n{root}".encode()).hexdigest()[:24]
        self._journal = cache / "pushes" / f"{name}.json"
        self._lock = threading.Lock()
        self._written = 0
        self._tags: dict[str, list[str | int | None]] = {}
        try:
            tags = json.loads(self._journal.read_bytes())
            self._tags = tags if isinstance(tags, dict) else {}
        except (OSError, ValueError):
            pass

    def manifest(self) -> bytes | None:
        return self._transport.get(MANIFEST, MOST_MANIFEST)

    def remove_manifest(self) -> None:
        self._transport.delete(MANIFEST)

    def has(self, name: str, size: int, digest: str) -> bool:
        """Whether the object is the very one that this machine wrote with these bytes."""
        noted = self._tags.get(name)
        if not noted or noted[0] != digest or noted[1] is None:
            return False
        return self._transport.head(name) == (size, noted[1])

    def write(self, name: str, data: bytes) -> None:
        self._transport.put(name, data)
        found = self._transport.head(name)
        if found is None or found[0] != len(data):
            raise RemoteError(
                f"{self.place}/{name} has {found[0] if found else 'no'} bytes after writing "
                f"{len(data)}: somebody else writes there, or the server lost it"
            )
        with self._lock:
            self._tags[name] = [hashlib.sha256(data).hexdigest(), found[1]]
            self._written += 1
            if self._written % JOURNAL_EVERY == 0:
                self._save()

    def note(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        write_atomic(self._journal, json_bytes(self._tags))


def _push_to_hub(
    store: LabelStore, manifest: Manifest, url: str, last: dict[str, bytes]
) -> PushReport:
    from storage.remote.hub import upload

    for name, entry in manifest.objects.items():
        if file_entry(store.path / name) != entry:
            raise CorruptStore(f"{store.path / name} is not what the manifest names: not sent")
    upload(normal_url(url), str(store.path), last, f"Label store {manifest.root}")
    size = sum(manifest.sizes().values())
    return PushReport(url, manifest.root, len(manifest.objects), size, 0)


__all__: Sequence[str] = ["PushReport", "push"]
