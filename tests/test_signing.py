"""Signatures of stores: hold for the bytes that were signed and the key that signed, only."""

import json
import shutil
import stat
import subprocess

import pytest
from click.testing import CliRunner
from store_helpers import fill_store, make_spec

from storage.card.signing import check_signature, create_key, sign_store
from storage.commands.card import sign, verify_signature
from storage.errors import CorruptStore, StoreError, UsageError
from storage.sealing import seal
from storage.verify import verify

pytest.importorskip("cryptography")


@pytest.fixture
def store(tmp_path):
    """A sealed store's folder."""
    filled = fill_store(tmp_path / "s.zarr")
    seal(filled)
    return filled.path


@pytest.fixture
def key(tmp_path):
    create_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def public(key):
    return key.with_name(key.name + ".pub")


def test_a_signature_holds_and_is_no_part_of_the_store(store, key):
    signed = sign_store(store, key)
    assert check_signature(store, public(key)) == signed
    report = verify(store, full=True)
    assert report.problems == [] and report.root == signed.root
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_another_key_is_told_apart(store, key, tmp_path):
    sign_store(store, key)
    other = create_key(tmp_path / "other.pem")
    with pytest.raises(CorruptStore, match="signed by key"):
        check_signature(store, other)


def test_a_store_changed_after_signing_is_noticed(store, key, tmp_path):
    sign_store(store, key)
    other = fill_store(tmp_path / "other.zarr", make_spec(seed=6))
    seal(other)
    shutil.copy(other.path / "manifest.json", store / "manifest.json")
    with pytest.raises(CorruptStore, match="changed after"):
        check_signature(store, public(key))


def test_no_byte_of_a_signature_can_be_changed(store, key):
    sign_store(store, key)
    path = store / "manifest.json.sig"
    good = json.loads(path.read_text())
    for name, value in good.items():
        changed = value[:4] + ("B" if value[4] != "B" else "C") + value[5:] if isinstance(
            value, str) else value + 1  # fmt: skip
        path.write_text(json.dumps({**good, name: changed}))
        if name == "root":  # a comment: what counts is the manifest that was signed
            check_signature(store, public(key))
            continue
        with pytest.raises(StoreError):
            check_signature(store, public(key))
    for text in ("", "[]", "{}", "[" * 100_000, "x" * 100_000):
        path.write_text(text)
        with pytest.raises(CorruptStore):
            check_signature(store, public(key))


def test_unsigned_and_unsealed_stores_are_refused(store, key, tmp_path):
    with pytest.raises(StoreError, match="not signed"):
        check_signature(store, public(key))
    with pytest.raises(StoreError, match="not sealed"):
        sign_store(fill_store(tmp_path / "open.zarr").path, key)


def test_wrong_keys_are_refused(store, key, tmp_path):
    for data in (b"", b"text", public(key).read_bytes()):
        (tmp_path / "bad.pem").write_bytes(data)
        with pytest.raises(UsageError):
            sign_store(store, tmp_path / "bad.pem")
    with pytest.raises(UsageError):
        check_signature(store, key)
    with pytest.raises(UsageError, match="never overwritten"):
        create_key(key)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_keys_of_openssl_work(store, tmp_path):
    key = tmp_path / "ssl.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public(key)], check=True)
    assert sign_store(store, key) == check_signature(store, public(key))


def test_the_commands_sign_and_check(store, tmp_path):
    key = tmp_path / "new.pem"
    run = CliRunner().invoke
    missing = run(sign, [str(store), "--key", str(key)])
    assert isinstance(missing.exception, UsageError)
    assert run(sign, [str(store), "--key", str(key), "--create-key"]).exit_code == 0
    found = run(verify_signature, [str(store), "--key", str(public(key)), "--json"])
    assert json.loads(found.output)["root"] == verify(store).root
