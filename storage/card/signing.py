"""Who published a store: an Ed25519 signature of its manifest, checked offline.

The signature covers the bytes of manifest.json, so the Merkle root and with it every byte of the
store. It needs no service and no account; the public key has to reach readers by another way than
the store does (a paper, a web page), or it proves nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storage.atomic import write_atomic
from storage.errors import CorruptStore, StoreError, UsageError
from storage.format import json_bytes
from storage.manifest import read_manifest
from storage.store import MANIFEST

if TYPE_CHECKING:
    pass

SIGNATURE = f"{MANIFEST}.sig"
SIGNATURE_VERSION = 1
MOST_BYTES = 1 << 16
DOMAIN = b"teachonce manifest signature 1\0"  # no signature of anything else is one of these


@dataclass(frozen=True)
class SignedStore:
    """A signature that holds. key: fingerprint of the public key (hex SHA-256 of its 32 bytes)."""

    root: str
    key: str


def create_key(path: Path) -> Path:
    """Make a key pair: PEM files `path` (secret, for its owner only) and `path`.pub.

    Raises:
        UsageError: a file is in the way.
    """
    from storage.card.keys import new_key_pem

    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise UsageError(f"{file} exists: a key is never overwritten; choose another name")
    secret_pem, public_pem = new_key_pem()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file_out:
        file_out.write(secret_pem)
    public.write_bytes(public_pem)
    return public


def sign_store(store: Path, key: Path) -> SignedStore:
    """Sign a sealed store's manifest; writes manifest.json.sig beside it.

    Args:
        key: PEM file with an unencrypted Ed25519 private key (`openssl genpkey` makes one too).
    Raises:
        StoreError: the store isn't sealed, or its manifest is damaged.
        UsageError: not such a key.
    """
    from storage.card.keys import load_private, public_bytes

    secret = load_private(key)
    data, root = _manifest(store)
    raw = public_bytes(secret.public_key())
    record = {
        "version": SIGNATURE_VERSION,
        "algorithm": "ed25519",
        "root": root,
        "public_key": base64.b64encode(raw).decode(),
        "signature": base64.b64encode(secret.sign(DOMAIN + data)).decode(),
    }
    write_atomic(store / SIGNATURE, json_bytes(record))
    return SignedStore(root, fingerprint(raw))


def check_signature(store: Path, key: Path) -> SignedStore:
    """Check a store's signature with a public key that the reader trusts.

    Says nothing about the files themselves: `verify(full=True)` compares those with the manifest.

    Raises:
        StoreError: not sealed or not signed.
        CorruptStore: signed by somebody else, or the manifest isn't the one that was signed.
    """
    from cryptography.exceptions import InvalidSignature

    from storage.card.keys import load_public, public_bytes

    public = load_public(key)
    raw = public_bytes(public)
    path = store / SIGNATURE
    data, root = _manifest(store)
    if not path.is_file():
        raise StoreError(f"{store} is not signed (no {SIGNATURE} in it)")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("too large")
        record = json.loads(path.read_bytes())
        known = record["version"] == SIGNATURE_VERSION and record["algorithm"] == "ed25519"
        signature = base64.b64decode(record["signature"], validate=True)
        stated = base64.b64decode(record["public_key"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptStore(f"{path} can't be read ({error!r})") from error
    if not known:
        raise StoreError(f"{path} is of a kind this release doesn't know: install a newer one")
    if stated != raw:
        raise CorruptStore(
            f"{store} was signed by key {fingerprint(stated)}, not by {fingerprint(raw)} ({key})"
        )
    try:
        public.verify(signature, DOMAIN + data)
    except InvalidSignature:
        raise CorruptStore(
            f"{path} does not fit {MANIFEST}: the store was changed after it was signed"
        ) from None
    return SignedStore(root, fingerprint(raw))


def fingerprint(raw: bytes) -> str:
    """Hex SHA-256 of a public key's 32 bytes."""
    return hashlib.sha256(raw).hexdigest()


def _manifest(store: Path) -> tuple[bytes, str]:
    if not (store / MANIFEST).is_file():
        raise StoreError(f"{store} is not sealed: close it with `labelstore seal` first")
    root = read_manifest(store).root
    return (store / MANIFEST).read_bytes(), root
