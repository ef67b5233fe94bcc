"""Stores that labs hold must open for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from storage.codecs import TopKLabels
from storage.dictionary import DictionaryCodec
from storage.images import ImageStatus
from storage.manifest import read_manifest
from storage.store import LabelStore
from storage.verify import verify

GOLDEN = Path(__file__).parent / "golden"
STORES = sorted(path.name for path in GOLDEN.glob("format*") if path.is_dir())


def test_every_format_has_a_golden_store():
    assert STORES == ["format1", "format1_boxes", "format1_dictionary"]


@pytest.mark.parametrize("name", STORES)
def test_a_golden_store_opens_verifies_and_decodes(name):
    path = GOLDEN / name
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    report = verify(path, full=True)
    assert report.problems == [] and report.root == expected["root"]
    assert report.root == read_manifest(path).root
    store = LabelStore.open(path)
    table, plane = store.read_images(), store.read_plane(0, store.spec.num_views, "toy")
    assert [row.tobytes().hex() for row in table.digest] == expected["digest"]
    assert table.size.tolist() == expected["size"]
    assert np.flatnonzero(table.status != ImageStatus.OK).tolist() == expected["masked"]
    assert plane.box.tolist() == expected["box"] and plane.flip.tolist() == expected["flip"]
    if "crop" in expected:
        number = zarr.open_group(str(path), mode="r")["views/crop"][:]
        assert number.tolist() == expected["crop"]
    codec = store.spec.teachers["toy"].codec
    dense = codec.dense(TopKLabels(plane.index, plane.code, plane.tail))
    readable = dense[table.status == ImageStatus.OK].reshape(-1, codec.num_classes)
    np.testing.assert_allclose(readable, expected["dense"], atol=2e-6)  # written with 6 digits
    tails = store.read_image_tails("toy")
    assert (tails is not None) == ("mean_tail" in expected)
    if tails is not None:
        assert isinstance(codec, DictionaryCodec)
        dense = codec.dense_with_tail(TopKLabels(plane.index, plane.code, plane.tail), tails)
        readable = dense[table.status == ImageStatus.OK].reshape(-1, codec.num_classes)
        np.testing.assert_allclose(readable, expected["mean_tail"], atol=2e-6)


@pytest.mark.parametrize("name", STORES)
def test_today_s_writer_writes_what_the_golden_store_decodes_to(name, tmp_path):
    """Settings and decoded values, not bytes: compressors may improve."""
    script = GOLDEN / "write_golden.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    fresh, golden = (LabelStore.open(f / name) for f in (tmp_path, GOLDEN))
    assert fresh.spec.settings() == golden.spec.settings()
    ours, theirs = fresh.read_plane(0, 5, "toy"), golden.read_plane(0, 5, "toy")
    for part in ("box", "flip", "index", "code", "tail"):
        assert np.array_equal(getattr(ours, part), getattr(theirs, part)), part
