"""No image ever gets another image's label, whatever was done to the folder."""

from __future__ import annotations

import hashlib
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from reuse_folders import DEEDS, pixels, write_images, write_store

from storage.images import scan_folder
from storage.match import match
from storage.pixels import decode_rgb
from trainer.data import join_store
from trainer.replay.beton import Beton, pack

IMAGES = 600
PLAN = SimpleNamespace(first_view=0, num_views=1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(store, folder, label by digest, label by pixels) of the folder as it was labelled."""
    root = tmp_path_factory.mktemp("labelled")
    write_images(root / "images", IMAGES)
    store = write_store(root / "store.zarr", root / "images")
    index = store.read_plane(0, 1, "toy").index[:, 0, 0]
    by_digest, by_pixels = {}, {}
    for row, key in enumerate(store.read_images().key):
        data = (root / "images" / key).read_bytes()
        by_digest[hashlib.sha256(data).digest()] = int(index[row])
        by_pixels[pixels(data)] = int(index[row])
    assert len(set(by_digest.values())) == len(by_digest) == len(by_pixels)
    return store, root / "images", by_digest, by_pixels


def readable_pixels(data):
    try:
        decode_rgb(data)
        return pixels(data)
    except Exception:
        return None


def check_match(store, folder, was, by_digest, by_pixels):
    """Number of (image, label) pairs that `match` vouches for; each is right, none is left out."""
    index = store.read_plane(0, 1, "toy").index[:, 0, 0]
    report = match(store, folder, was=was, by_key=True)
    scanned = scan_folder(folder)
    given = {index[row] for row in report.exact.values()}
    for number, key in enumerate(scanned.keys):
        data = scanned.path(number).read_bytes()
        expected = by_digest.get(hashlib.sha256(data).digest())
        assert (key in report.exact) == (expected is not None), key
        if expected is not None:
            assert index[report.exact[key]] == expected, key
            continue
        same = by_pixels.get(readable_pixels(data))
        if key in report.same_pixels:
            assert index[report.same_pixels[key]] == same, key
        else:  # all copies of the original are there already, or it is another image
            assert same is None or same in given, key
    vouched = {*report.exact, *report.same_pixels}
    assert vouched | set(report.extra) | set(report.re_encoded) == set(scanned.keys)
    assert len(vouched) + len(report.extra) + len(report.re_encoded) == len(scanned)
    digest = store.read_images().digest
    known = {
        digest[row].tobytes() for row in (*report.exact.values(), *report.same_pixels.values())
    }
    assert not any(digest[row].tobytes() in known for row in report.missing)
    return len(vouched)


def check_training(store, folder, beton_path, by_digest):
    """Number of (image, label) pairs that the trainer would use; each is right."""
    pack(scan_folder(folder), beton_path, workers=1, overwrite=True, progress=None)
    beton = Beton.open(beton_path)
    joined = join_store(beton, store, "toy")
    label = joined.tables(0, PLAN).index[:, 0, 0]
    expected = [
        by_digest.get(hashlib.sha256((folder / key).read_bytes()).digest(), -1)
        for key in beton.keys
    ]
    used = np.zeros(beton.num_rows, bool)
    used[joined.rows] = True
    assert np.array_equal(used, np.array(expected) >= 0)
    assert np.array_equal(label[used], np.array(expected)[used])
    return int(used.sum())


def test_ten_thousand_assignments_hold_no_silent_mismatch(labelled, tmp_path):
    store, folder, by_digest, by_pixels = labelled
    total = 0
    for deed in DEEDS:
        changed = tmp_path / "changed"
        shutil.copytree(folder, changed)
        deed(changed, random.Random(deed.__name__))
        total += check_match(store, changed, folder, by_digest, by_pixels)
        total += check_training(store, changed, tmp_path / "changed.beton", by_digest)
        shutil.rmtree(changed)
    assert total >= 10_000
