"""The manifest of a sealed store: every file's size and SHA-256, and one Merkle root over them.

The root is a tree hash as in RFC 6962 (leaf SHA-256(0x00 || line), node SHA-256(0x01 || left ||
right), split at the largest power of two below n) over the sorted lines "path size sha256", so a
part of a store can be proven against the root of the whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage import receipts
from storage.errors import CorruptStore, FormatVersion, IncompleteStore
from storage.format import json_bytes
from storage.json_files import MOST_MANIFEST, parse_json, read_bounded
from storage.layout import node_metadata, store_objects
from storage.listing import FOLDER, LINK, Found, folders_of
from storage.local import LOCAL
from storage.store import MANIFEST, ROOT_METADATA, LabelStore
from storage.threads import decoders, for_each

MANIFEST_VERSION = 1
CARD = ("README.md", "croissant.json", "manifest.json.sig")  # written about a store, once sealed
CHUNKS = "chunks.json"  # digests of chunks, which `push` adds (storage/remote/digests.py)
HASH_CHUNK = 1 << 18
PLAIN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not keep us waiting
_local = threading.local()
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a sealed store consists of.

    objects: (bytes, hex SHA-256) of every file by its path, without the manifest and local files.
    provenance: software, devices and counts; informative, not under the root.
    """

    objects: dict[str, tuple[int, str]]
    provenance: dict[str, Any]

    @property
    def root(self) -> str:
        """Hex Merkle root."""
        return merkle_root(
            [f"{name} {size} {digest}" for name, (size, digest) in sorted(self.objects.items())]
        )

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: size for name, (size, _) in self.objects.items()}

    def to_bytes(self) -> bytes:
        """The manifest's file; its own checksum covers what the root does not."""
        values = {
            "manifest_version": MANIFEST_VERSION,
            "root": self.root,
            "objects": {},
            "provenance": self.provenance,
        }
        objects = _objects_json(self.objects)
        values["checksum"] = hashlib.sha256(_with_objects(values, objects)).hexdigest()
        return _with_objects(values, objects)


def _objects_json(objects: Mapping[str, tuple[int, str]]) -> str:
    """`objects` as `json_bytes` writes it one level deep, ten times as fast."""
    entries = [
        f"    {json.dumps(name)}: [\n      {size},\n      {json.dumps(digest)}\n    ]"
        for name, (size, digest) in sorted(objects.items())
    ]
    return "{\n" + ",\n".join(entries) + "\n  }" if entries else "{}"


def _with_objects(values: dict[str, Any], objects: str) -> bytes:
    """`json_bytes(values)`, whose `objects` are empty, with these in their place."""
    # only the top level is indented by two, and no text holds a plain newline
    before, _, after = json_bytes(values).decode().partition('\n  "objects": {}')
    return f'{before}\n  "objects": {objects}{after}'.encode()


def merkle_root(lines: Sequence[str]) -> str:
    """Hex root of the RFC 6962 tree over `lines`, which the caller has sorted."""
    return _tree_hash([hashlib.sha256(b"\0" + line.encode()).digest() for line in lines]).hex()


def _tree_hash(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + _tree_hash(leaves[:split]) + _tree_hash(leaves[split:])).digest()


def read_manifest(store: Path) -> Manifest:
    """A sealed store's manifest.

    Raises:
        FormatVersion: written by a newer release.
        CorruptStore: not the bytes that `seal` wrote, or it names files outside the store.
    """
    path = store / MANIFEST
    try:
        data = read_bounded(path, MOST_MANIFEST)
    except ValueError as error:
        raise CorruptStore(f"{path} can't be read ({error}): fetch the store again") from error
    except FileNotFoundError:
        raise IncompleteStore(
            f"{store} is not sealed (no {MANIFEST}): close it with `labelstore seal`"
        ) from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The manifest that a file's bytes hold; `path` names the file in errors.

    Raises:
        FormatVersion, CorruptStore: as `read_manifest`.
    """
    try:
        values = parse_json(data)
        version = values["manifest_version"]
        if version != MANIFEST_VERSION and _checksum_holds(values):
            raise FormatVersion(
                f"{path} has version {version!r}; this release reads {MANIFEST_VERSION}: "
                "install a newer teachonce"
            )
        objects = {str(n): (int(size), str(digest)) for n, (size, digest) in
                   values["objects"].items()}  # fmt: skip
        manifest = Manifest(objects, values["provenance"])
        whole = manifest.to_bytes() == data
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = next(iter(repr(error).splitlines()))[:200]
        raise CorruptStore(f"{path} can't be read ({what}): fetch the store again") from error
    if not whole:
        raise CorruptStore(f"{path} is damaged (its checksum differs): fetch the store again")
    for name, (size, digest) in objects.items():
        if not is_safe_name(name):
            raise CorruptStore(f"{path} names {name!r}, which is no file of a store")
        if size < 0 or not _DIGEST.fullmatch(digest):
            raise CorruptStore(f"{path}: the entry of {name} is no size and hex SHA-256")
    _check_provenance(manifest.provenance, path)
    return manifest


def _check_provenance(provenance: Any, path: str) -> None:
    """What `labelstore info` and `seal` use of it has the right types."""
    masked = provenance.get("masked", []) if isinstance(provenance, dict) else None
    if not isinstance(masked, list) or not all(
        isinstance(row, dict)
        and isinstance(row.get("row"), int)
        and isinstance(row.get("key"), str)
        and isinstance(row.get("status"), str)
        for row in masked
    ):
        raise CorruptStore(f"{path}: its provenance doesn't list masked images as it should")


def is_safe_name(name: str) -> bool:
    """Whether a manifest may name this file: relative, inside the store, not a local one."""
    parts = name.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and "\\" not in name
        and name.isprintable()
        and not is_local(name)
    )


def is_local(name: str) -> bool:
    """Files of a store folder that are not part of the store itself."""
    return name in (MANIFEST, LOCAL, CHUNKS, *CARD) or name.split("/")[0] == receipts.FOLDER


def expected_objects(store: LabelStore) -> list[str]:
    """Paths of all files that the store's settings ask for, sorted."""
    names = [ROOT_METADATA, *(f"{node}/{ROOT_METADATA}" for node in node_metadata(store.spec))]
    names += store_objects(store.spec)
    for block in range(store.blocks):
        names += store.block_objects(block)
    return sorted(names)


def store_manifest(store: LabelStore) -> Manifest:
    """A sealed store's manifest, which lists all its files and no others.

    Raises:
        CorruptStore: it can't be read, or lists other files than the settings ask for.
    """
    manifest, expected = read_manifest(store.path), set(expected_objects(store))
    wrong = sorted(expected ^ set(manifest.objects))
    if wrong:
        said = "lists" if wrong[0] in manifest.objects else "does not list"
        raise CorruptStore(
            f"{store.path / MANIFEST} {said} {wrong[0]!a}, against the store's settings "
            f"({len(wrong)} such files): run `labelstore verify --full` and fetch the store again"
        )
    return manifest


def foreign_objects(
    expected: Iterable[str], found: Mapping[str, Found]
) -> Iterator[tuple[str, str]]:
    """(path, what it is) of all that lies in a store's folder and isn't the store's, sorted.

    Links are never a store's, wherever they lie; a folder is named where nothing is in it.
    """
    files = set(expected)
    folders = folders_of(files)
    filled = folders_of(found)
    for name, item in sorted(found.items()):
        if item.kind == LINK:
            yield name, "is a link: a store holds plain files only"
        elif item.kind == FOLDER:
            if name not in folders and name not in filled and not is_local(name):
                yield f"{name}/", "is an empty folder that does not belong to the store"
        elif name not in files and not is_local(name):
            yield name, "does not belong to the store"


def file_entry(path: Path) -> tuple[int, str]:
    """(bytes, hex SHA-256) of a file."""
    return _hash_file(str(path), os.O_RDONLY)


def file_entries(root: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """`file_entry` of files by name, hashed on all cores.

    What is lost, no plain file, or can't be read is left out.
    """
    found: dict[str, tuple[int, str]] = {}
    folder = str(root)

    def work(name: str) -> None:
        with contextlib.suppress(OSError):
            found[name] = _hash_file(os.path.join(folder, name), PLAIN_FILE)  # noqa: PTH118 - fast

    for_each(names, work, decoders())
    return found


def _hash_file(path: str, flags: int) -> tuple[int, str]:
    """(bytes, hex SHA-256), in pieces that stay in the processor's cache."""
    digest, size = hashlib.sha256(), 0
    buffer = _piece()
    handle = os.open(path, flags)
    try:
        if flags == PLAIN_FILE and not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no plain file", path)
        while count := os.readv(handle, [buffer]):
            digest.update(buffer[:count])
            size += count
    finally:
        os.close(handle)
    return size, digest.hexdigest()


def _piece() -> memoryview:
    """This thread's buffer."""
    if not hasattr(_local, "piece"):
        _local.piece = memoryview(bytearray(HASH_CHUNK))
    piece: memoryview = _local.piece
    return piece


def _checksum_holds(values: dict[str, Any]) -> bool:
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return values.get("checksum") == hashlib.sha256(json_bytes(rest)).hexdigest()
