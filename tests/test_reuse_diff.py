"""diff: equal stores are equal, and every kind of difference is counted."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from store_helpers import fill_store, make_block, make_spec, make_teacher

from storage.codecs import TopKLabels
from storage.commands.reuse import diff as diff_command
from storage.compare import diff
from storage.errors import IncompleteStore
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("a") / "s"
    seal(fill_store(path, make_spec(10, 6, [make_teacher(), make_teacher("other", top_k=5)])))
    return LabelStore.open(path)


def changed(path, change, spec=None, **options):
    """A store of the same settings whose blocks went through `change(number, block data)`."""
    spec = spec or make_spec(10, 6, [make_teacher(), make_teacher("other", top_k=5)])
    store = LabelStore.create(path, spec)
    for block in range(store.blocks):
        data = make_block(spec, block, **options)
        store.write_block(block, change(block, data) or data, "cpu")
    return store


def invoke(*arguments):
    result = CliRunner().invoke(diff_command, [*map(str, arguments)], standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, result.stdout


def test_a_copy_is_equal_by_its_root(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "b")
    report = diff(store, LabelStore.open(tmp_path / "b"))
    assert report.equal and report.same_root
    code, text = invoke(store.path, tmp_path / "b")
    assert code == 0 and "sealed under the same root" in text


def test_equal_values_in_other_files_are_equal_but_for_how_they_are_stored(store, tmp_path):
    spec = dataclasses.replace(store.spec, block_images=5, segment_views=2)
    other = changed(tmp_path / "b", lambda *_: None, spec)
    report = diff(store, other)
    assert report.settings == ["block_images is 4, not 5", "segment_views is 4, not 2"]
    assert report.views == {"compared": 60, "different": 0}
    assert report.labels["toy"] == dict.fromkeys(("ids", "values", "tail", "different"), 0) | {
        "compared": 60
    }


def test_an_unsealed_twin_is_equal(store, tmp_path):
    report = diff(store, changed(tmp_path / "b", lambda *_: None))
    assert report.equal and not report.same_root


def test_changed_labels_are_counted_and_the_first_is_named(store, tmp_path):
    def change(block, data):
        if block == 1:
            labels = data.labels["toy"]
            index, code, tail = labels.index.copy(), labels.code.copy(), labels.tail.copy()
            index[2, 3] = index[2, 3, [1, 0, 2]]
            tail[2, 3] ^= 1
            tail[3, 0] ^= 1
            code[3, 5, 2] += 1
            data.labels["toy"] = TopKLabels(index, code, tail)

    report = diff(store, changed(tmp_path / "b", change))
    assert report.labels["toy"] == {
        "compared": 60, "different": 3, "ids": 1, "values": 1, "tail": 2,
    }  # fmt: skip
    assert report.first_label == {"toy": "ant/0006.jpg view 3"}
    assert report.labels["other"]["different"] == 0 and report.views["different"] == 0
    assert not report.equal


def test_changed_views_are_counted(store, tmp_path):
    def change(block, data):
        if block == 2:
            data.flip[0, 1] ^= 1
            data.box[1, 2, 2:] = 1

    report = diff(store, changed(tmp_path / "b", change))
    assert report.views == {"compared": 60, "different": 2} and not report.equal


def test_images_are_paired_by_content(store, tmp_path):
    keys = store.read_images().key
    keys = [*keys[:3], "bee/renamed.jpg", *keys[4:]]

    def change(block, data):
        if block == 0:
            data.digest[1] ^= 255  # other content under the same name
            data.target[2] = 0

    report = diff(store, changed(tmp_path / "b", change, keys=keys, masked=[5]))
    found = {kind: len(rows) for kind, rows in report.images.items() if rows}
    assert found == {"changed": 1, "renamed": 1, "target": 1, "status": 1}
    assert report.common_images == 9
    assert report.views == {"compared": 48, "different": 0}  # not the changed, not the masked


@pytest.mark.parametrize("selection", [Selection(views=(2, 5)), Selection(top_k=2),
                                       Selection(images=["bee/0001.jpg", "ant/0009.jpg"]),
                                       Selection(labels=["other"])])  # fmt: skip
def test_a_subset_differs_in_extent_only(store, tmp_path, selection):
    subset(store.path, tmp_path / "cut", selection)
    cut = LabelStore.open(tmp_path / "cut")
    report = diff(store, cut)
    assert not report.equal and report.views["different"] == 0
    assert all(counts["different"] == 0 for counts in report.labels.values())
    assert report.common_views == (selection.views or (0, 6))
    if selection.views:
        assert report.only_b == {"views": [2, 5]} and report.views["compared"] == 30
    if selection.labels:
        assert report.only_a == {"labels": ["toy"]}
    if selection.images:
        assert len(report.images["only_a"]) == 8 and report.views["compared"] == 12
    if selection.top_k:
        assert report.settings == ["teachers.other.codec.top_k is 5, not 2",
                                   "teachers.toy.codec.top_k is 3, not 2"]  # fmt: skip


def test_other_teachers_and_settings_are_named(store, tmp_path):
    spec = make_spec(10, 6, [make_teacher(precision="bf16"), make_teacher("third")], seed=6)
    report = diff(store, changed(tmp_path / "b", lambda *_: None, spec))
    assert report.settings == ["seed is 5, not 6", 'teachers.toy.precision is "fp32", not "bf16"']
    assert report.only_a == {"labels": ["other"]} and report.only_b == {"labels": ["third"]}
    assert report.views["different"] > 0  # another seed draws other views


def test_stores_without_common_images_are_compared_no_further(store, tmp_path):
    keys = [f"cat/{row}.jpg" for row in range(10)]

    def change(_block, data):
        data.digest[:] ^= 255

    report = diff(store, changed(tmp_path / "b", change, keys=keys))
    assert len(report.images["only_a"]) == len(report.images["only_b"]) == 10
    assert report.views == {} and not report.equal


def test_an_unfinished_store_can_t_be_compared(store, tmp_path):
    with pytest.raises(IncompleteStore):
        diff(store, LabelStore.create(tmp_path / "b", store.spec))


def test_the_command_lists_what_differs(store, tmp_path):
    subset(store.path, tmp_path / "cut", Selection(views=(0, 2), labels=["toy"]))
    code, text = invoke(store.path, tmp_path / "cut")
    assert code == 1 and f"only {store.path} has labels of other" in text
    assert "has views 0:2" in text and "common: 10 images, views 0:2" in text
    code, out = invoke(store.path, tmp_path / "cut", "--json")
    found = json.loads(out)
    assert code == 1 and found["equal"] is False and found["labels"]["toy"]["different"] == 0
    assert np.isclose(found["views"]["compared"], 20)
