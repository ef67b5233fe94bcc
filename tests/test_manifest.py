"""Sealing: complete, unchanged stores only; the same root whatever happened on the way."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import fill_store, make_block, make_log_probs, make_spec, make_teacher

from storage.errors import CorruptStore, FormatVersion, IncompleteStore
from storage.format import dataset_fingerprint, json_bytes
from storage.manifest import Manifest, is_safe_name, merkle_root, read_manifest
from storage.sealing import seal
from storage.store import LabelStore


def simple_root(hashes: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, by its other description: pair up, an odd last one moves up."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    while len(hashes) > 1:
        pairs = [hashlib.sha256(b"\1" + hashes[i] + hashes[i + 1]).digest()
                 for i in range(0, len(hashes) - 1, 2)]  # fmt: skip
        hashes = pairs + ([hashes[-1]] if len(hashes) % 2 else [])
    return hashes[0]


@given(st.lists(st.text(), max_size=40))
def test_the_root_is_rfc_6962_s(lines):
    leaves = [hashlib.sha256(b"\0" + line.encode()).digest() for line in lines]
    assert merkle_root(lines) == simple_root(leaves).hex()


def test_sealing_twice_gives_the_same_bytes(tmp_path):
    store = fill_store(tmp_path / "s", masked=[1])
    first = seal(store)
    manifest, root = (store.path / "manifest.json").read_bytes(), (store.path / "zarr.json")
    before = root.read_bytes()
    again = seal(LabelStore.open(store.path))
    assert again.root == first.root and read_manifest(store.path) == first
    assert (store.path / "manifest.json").read_bytes() == manifest
    assert root.read_bytes() == before and store.is_sealed
    (store.path / "manifest.json").unlink()  # killed between the root and the manifest
    assert seal(LabelStore.open(store.path)).root == first.root


def test_an_incomplete_store_is_not_sealed(tmp_path):
    store = LabelStore.create(tmp_path / "s", make_spec())
    store.write_block(1, make_block(store.spec, 1), "cpu")
    with pytest.raises(IncompleteStore, match="2 of 3 blocks are missing") as caught:
        seal(store)
    assert caught.value.exit_code == 3 and not store.is_sealed


def test_a_changed_file_is_named_instead_of_sealed(tmp_path):
    store = fill_store(tmp_path / "s")
    victim = store.path / "labels/toy/index/c/1/0/0"
    data = bytearray(victim.read_bytes())
    data[5] ^= 4
    victim.write_bytes(data)
    with pytest.raises(CorruptStore, match="labels/toy/index/c/1/0/0"):
        seal(store)
    assert not store.is_sealed


def test_foreign_files_and_links_are_named_instead_of_sealed(tmp_path):
    store = fill_store(tmp_path / "s")
    (store.path / "views/notes.txt").write_text("mine")
    with pytest.raises(CorruptStore, match=r"views/notes\.txt does not belong"):
        seal(store)
    (store.path / "views/notes.txt").unlink()
    target = store.path / "images/size/c/0/0"
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStore, match="is a link"):
        seal(store)


def test_leftovers_of_killed_writers_are_swept_away(tmp_path):
    reference = seal(fill_store(tmp_path / "r")).root
    store = fill_store(tmp_path / "s")
    (store.path / "views/box/c/0/.teachonce-0.99.1").write_bytes(b"half a sha")
    assert seal(store).root == reference
    assert not list(store.path.rglob(".teachonce-*"))


def test_the_summary_is_what_the_labels_say(tmp_path):
    """Against the made-up teacher's own answers, within the codec's rounding."""
    spec = make_spec(teachers=[make_teacher(top_k=7)])
    store = fill_store(tmp_path / "s", spec, masked=[3])
    seal(store)
    measured = LabelStore.open(store.path).spec.teachers["toy"].measured
    rows = [row for row in range(10) if row != 3]
    probs = np.exp(np.stack([make_log_probs(row, 6, 7) for row in rows]))
    folder_class = np.array([{0: 4, 1: 2, 2: 1}[row % 3] for row in rows])  # ant, bee, cat
    assert measured["labels"] == 54
    agreement = (probs.argmax(-1) == folder_class[:, None]).mean()
    assert measured["top1_agreement"] == pytest.approx(agreement, abs=1e-6)
    error = spec.teachers["toy"].codec.max_error
    assert measured["mean_top1_prob"] == pytest.approx(probs.max(-1).mean(), abs=error)
    entropy = -(probs * np.log(probs)).sum(-1).mean()
    assert measured["mean_entropy_nats"] == pytest.approx(entropy, abs=0.05)
    assert measured["mean_tail"] == 0
    attributes = LabelStore.open(store.path).attributes["measured"]
    assert attributes["masked_images"] == 1
    assert attributes["dataset_fingerprint"] == dataset_fingerprint(store.read_images().digest)


@pytest.mark.parametrize("classes", [None, tuple("abcdefg"), ("ant", "ant", "bee", "cat", *"xyz")])
def test_agreement_is_left_out_where_classes_can_not_be_matched(tmp_path, classes):
    store = fill_store(tmp_path / "s", make_spec(teachers=[make_teacher(classes=classes)]))
    seal(store)
    assert store.spec.teachers["toy"].measured["top1_agreement"] is None


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "", "a\nb",
                                  "a\\b",
                                  "manifest.json", "local.json", "receipts/0.json"])  # fmt: skip
def test_manifests_that_name_files_elsewhere_are_refused(tmp_path, name):
    store = fill_store(tmp_path / "s")
    manifest = seal(store)
    evil = Manifest({**manifest.objects, name: (1, "00" * 32)}, manifest.provenance)
    (store.path / "manifest.json").write_bytes(evil.to_bytes())
    assert not is_safe_name(name)
    with pytest.raises(CorruptStore, match="no file of a store"):
        read_manifest(store.path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"manifest_version": 1}'])
def test_a_damaged_manifest_is_one_clear_error(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptStore, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_newer_manifest_is_refused_as_such(tmp_path):
    values = {"manifest_version": 2, "chunks": "of a later kind"}
    values["checksum"] = hashlib.sha256(json_bytes(values)).hexdigest()
    (tmp_path / "manifest.json").write_bytes(json_bytes(values))
    with pytest.raises(FormatVersion, match="newer teachonce"):
        read_manifest(tmp_path)


def test_the_manifest_lists_devices_and_masked_images(tmp_path):
    manifest = seal(fill_store(tmp_path / "s", masked=[2]))
    assert manifest.provenance["devices"] == ["cpu"]
    assert manifest.provenance["masked"] == [
        {"row": 2, "key": "cat/0002.jpg", "status": "UNREADABLE"}]  # fmt: skip
    assert "zarr" in manifest.provenance["software"]
    assert json.loads(manifest.to_bytes())["root"] == manifest.root
