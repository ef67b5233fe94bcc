"""Ed25519 keys in PEM files, through the `cryptography` package (extra `sign`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import UsageError
from storage.extras import needs_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )


def require_cryptography() -> None:
    """Raises UsageError where the extra isn't installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise needs_extra("signing", "cryptography", "sign") from error


def new_key_pem() -> tuple[bytes, bytes]:
    """A new pair, (private, public)."""
    require_cryptography()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def load_private(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file.

    Raises:
        UsageError: not an unencrypted Ed25519 private key.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} holds no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a {type(key).__name__}; expected an Ed25519 key")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """The public key of a PEM file.

    Raises:
        UsageError: not an Ed25519 public key.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} holds no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a {type(key).__name__}; expected an Ed25519 key")
    return key


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """A public key's 32 bytes."""
    return key.public_bytes_raw()
