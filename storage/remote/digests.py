"""Digests of inner chunks, so that a part of a file can be checked like a whole one.

The manifest has one SHA-256 for a whole file. `push` adds `chunks.json`, made from verified
files: for every sharded file the first 8 bytes of the SHA-256 of its index and of each of its
chunks. It names the root it belongs to; it is not under that root (see docs/remote.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from storage.errors import CorruptStore
from storage.format import json_bytes
from storage.layout import ArrayLayout, array_layouts
from storage.shards import ABSENT, chunks_per_shard, index_bytes, parse_index
from storage.store import LabelStore

CHUNKS_VERSION = 1
DIGEST_BYTES = 8


def short_digest(data: bytes | memoryview) -> bytes:
    """What `chunks.json` holds of some bytes."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def sharded_files(store: LabelStore) -> Iterator[tuple[str, ArrayLayout]]:
    """(name, layout) of every file of a store that holds several chunks."""
    for layout in array_layouts(store.spec).values():
        if layout.shard is not None:
            for block in range(store.blocks):
                for name in layout.block_objects(block):
                    yield name, layout


def store_digests(store: LabelStore) -> dict[str, list[bytes]]:
    """Digests of all sharded files of a store on disk.

    Raises:
        CorruptStore: a file is no shard of its array.
    """
    found = {}
    for name, layout in sharded_files(store):
        try:
            found[name] = file_digests(store.path / name, layout)
        except ValueError as error:
            raise CorruptStore(f"{store.path / name}: {error}") from error
    return found


def file_digests(path: Path, layout: ArrayLayout) -> list[bytes]:
    """Digests of a shard's index and of its chunks in order (zeros where a chunk is absent).

    Raises:
        ValueError: not a shard of this layout.
    """
    size = path.stat().st_size
    chunks = chunks_per_shard(layout)
    with path.open("rb") as file:
        file.seek(max(0, size - index_bytes(chunks)))
        tail = file.read()
        found = [short_digest(tail)]
        for offset, length in parse_index(tail, chunks, size).tolist():
            if offset == ABSENT:
                found.append(b"\0" * DIGEST_BYTES)
                continue
            file.seek(offset)
            found.append(short_digest(file.read(length)))
    return found


def digests_to_bytes(root: str, digests: Mapping[str, Sequence[bytes]]) -> bytes:
    """The file `chunks.json` of a store with this Merkle root."""
    values = {
        "version": CHUNKS_VERSION,
        "root": root,
        "digests": {name: base64.b64encode(b"".join(d)).decode() for name, d in digests.items()},
    }
    values["checksum"] = hashlib.sha256(json_bytes(values)).hexdigest()
    return json_bytes(values)


def digests_from_bytes(
    data: bytes, root: str, wanted: Mapping[str, int], where: str
) -> dict[str, list[bytes]] | None:
    """By file, the digest of its index and then of its chunks; None where they are of no use.

    A list of an unknown version or of another store is of no use: whole files are then fetched.

    Args:
        wanted: chunks of every sharded file of the store.
    Raises:
        CorruptStore: damaged.
    """
    try:
        values = json.loads(data)
        rest = {name: value for name, value in values.items() if name != "checksum"}
        if values["checksum"] != hashlib.sha256(json_bytes(rest)).hexdigest():
            raise ValueError("its checksum differs")
        if values["version"] != CHUNKS_VERSION or values["root"] != root:
            return None
        found: dict[str, list[bytes]] = {}
        for name, chunks in wanted.items():
            flat = base64.b64decode(values["digests"][name], validate=True)
            if len(flat) != (chunks + 1) * DIGEST_BYTES:
                raise ValueError(f"{name} has another number of chunks")
            found[name] = [row.tobytes() for row in
                           np.frombuffer(flat, np.uint8).reshape(-1, DIGEST_BYTES)]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise CorruptStore(
            f"{where} is damaged ({error}): the publisher has to push the store again"
        ) from error
    return found
