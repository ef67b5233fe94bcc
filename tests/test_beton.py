"""Opening a beton: what is damaged, foreign or missing is said, never read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from odd_images import good_images

from storage.errors import CorruptStore, FormatVersion, UsageError
from storage.format import dataset_fingerprint
from storage.images import scan_folder
from trainer.replay.beton import Beton, pack, sidecar_path


@pytest.fixture
def beton(tmp_path):
    for name in ("420.jpg", "rgb.png", "gray.jpg"):
        (tmp_path / name).write_bytes(good_images()[name])
    pack(scan_folder(tmp_path), tmp_path / "a.beton")
    return tmp_path / "a.beton"


def test_tables_have_one_entry_a_row(beton):
    opened = Beton.open(beton)
    assert opened.keys == ("420.jpg", "gray.jpg", "rgb.png")
    assert opened.sizes.tolist() == [[61, 83], [61, 83], [17, 31]]
    assert opened.targets.tolist() == [-1, -1, -1]
    assert opened.classes == ()
    assert opened.fingerprint == dataset_fingerprint(opened.digests)


def test_a_missing_file_or_sidecar_names_trainer_pack(beton):
    with pytest.raises(UsageError, match="trainer pack"):
        Beton.open(beton.with_name("none.beton"))
    sidecar_path(beton).unlink()
    with pytest.raises(UsageError, match="trainer pack"):
        Beton.open(beton)


def test_a_sidecar_of_another_beton_is_refused(beton, tmp_path):
    other = tmp_path / "other" / "data"
    other.mkdir(parents=True)
    for name in ("444.jpg", "rgb.png", "gray.jpg"):
        (other / name).write_bytes(good_images()[name])
    pack(scan_folder(other), tmp_path / "other" / "b.beton")
    shutil.copy(sidecar_path(tmp_path / "other" / "b.beton"), sidecar_path(beton))
    with pytest.raises(CorruptStore, match="don't match"):
        Beton.open(beton)


def test_a_cut_or_foreign_file_is_refused(beton):
    data = beton.read_bytes()
    for damaged in (data[:-1], data[:2000], b"", b"not a beton at all, but long enough" * 200):
        beton.write_bytes(damaged)
        with pytest.raises(CorruptStore, match="pack it again"):
            Beton.open(beton)


def test_a_flipped_bit_in_the_tables_is_found(beton):
    rows = np.frombuffer(Beton.open(beton).digests[1].tobytes(), np.uint8)
    data = bytearray(beton.read_bytes())
    data[data.index(rows.tobytes())] ^= 1
    beton.write_bytes(bytes(data))
    with pytest.raises(CorruptStore, match="don't match"):
        Beton.open(beton)


def test_a_newer_format_is_refused(beton):
    sidecar = json.loads(sidecar_path(beton).read_text())
    sidecar["beton_format"] = 99
    sidecar_path(beton).write_text(json.dumps(sidecar))
    with pytest.raises(FormatVersion, match="99"):
        Beton.open(beton)
