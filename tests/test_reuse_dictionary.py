"""Stores with lists of classes (codec top-k-dictionary), cut, merged and compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from store_helpers import make_block, make_log_probs, make_spec, make_teacher
from test_reuse_subset import files

from storage.codecs import TopKLabels
from storage.compare import diff
from storage.dictionary import DictionaryCodec
from storage.extend import continue_store
from storage.label_arrays import from_arrays, label_parts
from storage.lists import mean_tails
from storage.manifest import read_manifest
from storage.merge import merge_stores
from storage.origin import check_origin
from storage.sealing import seal
from storage.select import Selection, subset
from storage.select_topk import cut_topk, tail_error
from storage.store import LabelStore
from storage.verify import verify

CLASSES = 40
CODEC = DictionaryCodec(num_classes=CLASSES, top_k=5, spread_classes=8)
TEACHER = make_teacher(num_classes=CLASSES, classes=None, class_order_hash=None, codec=CODEC)


def block_of(spec, block, views, masked=()):
    """Data of some of 10 views of a block."""
    whole = dataclasses.replace(spec, num_views=10)
    data = make_block(whole, block, masked)
    labels, mass = data.labels["toy"], []
    for row, image in enumerate(spec.block_rows(block)):
        dense = np.exp(make_log_probs(image, 10, CLASSES))
        np.put_along_axis(dense, labels.index[row].astype(int), 0, axis=1)
        mass.append(dense[views].sum(axis=0))
    cut = TopKLabels(*(part[:, views] for part in (labels.index, labels.code, labels.tail)))
    return dataclasses.replace(
        data, box=data.box[:, views], flip=data.flip[:, views], labels={"toy": cut},
        tail_mass={"toy": np.stack(mass)},
    )  # fmt: skip


def fill(store, views=slice(0, 10), masked=()):
    for block in range(store.blocks):
        store.write_block(block, block_of(store.spec, block, views, masked), "cpu")
    seal(store)
    return LabelStore.open(store.path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    spec = make_spec(10, 10, [TEACHER])
    return fill(LabelStore.create(tmp_path_factory.mktemp("whole") / "s", spec), masked=[2])


def labels_of(store, views=slice(None)):
    codec = store.spec.teachers["toy"].codec
    parts = {}
    for part in label_parts(codec):
        per_image = part in ("classes", "spread")
        everything = None if per_image else slice(0, store.spec.num_views)
        parts[part] = store.read_array(f"labels/toy/{part}", slice(None), everything)
    labels = from_arrays(codec, parts)
    return TopKLabels(*(x[:, views] for x in (labels.index, labels.code, labels.tail))), parts


def assert_same_labels(ours, theirs):
    for part in ("index", "code", "tail"):
        assert np.array_equal(getattr(ours, part), getattr(theirs, part)), part


def test_views_keep_the_lists_they_name_classes_in(whole, tmp_path):
    subset(whole.path, tmp_path / "cut", Selection(views=(4, 10)))
    cut = LabelStore.open(tmp_path / "cut")
    assert verify(cut.path, full=True).problems == []
    assert_same_labels(labels_of(cut)[0], labels_of(whole, slice(4, 10))[0])
    proven = check_origin(cut, read_manifest(whole.path).root)
    chunks = [name for name in read_manifest(cut.path).objects if "/c/" in name]
    assert proven.problems == [] and next(iter(proven.proven.values()))["objects"] >= len(chunks)


def test_images_keep_their_lists(whole, tmp_path):
    keys = whole.read_images().key
    subset(whole.path, tmp_path / "a", Selection(images=keys[::2]))
    subset(whole.path, tmp_path / "b", Selection(images=keys[1::2]))
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    merged = LabelStore.open(tmp_path / "m")
    assert verify(merged.path, full=True).problems == []
    report = diff(whole, merged)
    assert report.labels["toy"]["compared"] == 90 and report.labels["toy"]["different"] == 0


@pytest.mark.parametrize("top_k", [1, 3])
def test_fewer_classes_keep_their_integers_and_a_mean_tail_of_the_rest(whole, tmp_path, top_k):
    subset(whole.path, tmp_path / "cut", Selection(top_k=top_k))
    cut = LabelStore.open(tmp_path / "cut")
    assert verify(cut.path, full=True).problems == []
    codec = cut.spec.teachers["toy"].codec
    (ours, mine), (labels, theirs) = labels_of(cut), labels_of(whole)
    assert_same_labels(ours, cut_topk(CODEC, labels, top_k)[1])
    assert np.array_equal(mine["place"], theirs["place"][..., :top_k])
    readable = np.arange(10) != 2

    def dense(codec, labels, parts):
        labels = TopKLabels(*(x[readable] for x in (labels.index, labels.code, labels.tail)))
        tails = mean_tails(codec, parts["classes"][readable], parts["spread"][readable])
        return codec.dense_with_tail(labels, tails)

    before, after = dense(CODEC, labels, theirs), dense(codec, ours, mine)
    kept = ours.index[readable].astype(int)
    moved = np.abs(np.take_along_axis(after - before, kept, axis=-1))
    assert moved.max() <= tail_error(CODEC) + 1e-6
    # the classes that were cut get more of the tail than an even tail would give them
    even = codec.dense(TopKLabels(*(x[readable] for x in (ours.index, ours.code, ours.tail))))
    np.put_along_axis(before, kept, 0, axis=-1)
    error = [np.abs(np.where(before > 0, d - before, 0)).sum() for d in (after, even)]
    assert error[0] < error[1]


def test_parts_of_one_store_come_back_byte_for_byte(whole, tmp_path):
    subset(whole.path, tmp_path / "a", Selection(views=(0, 4)))
    subset(whole.path, tmp_path / "b", Selection(views=(4, 10)))
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    ours, theirs = files(tmp_path / "m"), files(whole.path)
    assert {name for name in ours if ours[name] != theirs[name]} == {"zarr.json"}


def test_views_labelled_later_with_lists_of_their_own_are_merged(whole, tmp_path):
    spec = dataclasses.replace(whole.spec, num_views=4)
    short = fill(LabelStore.create(tmp_path / "short", spec), slice(0, 4), masked=[2])
    more = continue_store(short.path, tmp_path / "more", 10)
    fill(more, slice(4, 10), masked=[2])
    merge_stores([short.path, more.path], tmp_path / "long")
    long = LabelStore.open(tmp_path / "long")
    assert verify(long.path, full=True).problems == []
    (ours, mine), (theirs, _) = labels_of(long), labels_of(whole)
    assert_same_labels(ours, theirs)
    _, first = labels_of(short)
    assert np.array_equal(mine["place"][:, :4], first["place"])  # its lists come first
    copied = {item[1] for proof in long.attributes["origin"]["ancestors"]
              for item in proof["objects"]}  # fmt: skip
    assert "labels/toy/place/c/0/0/0" in copied
    tails = mean_tails(CODEC, mine["classes"], mine["spread"])
    assert np.allclose(tails.share[0].sum(), 1, atol=1e-5)


def test_stores_of_two_codecs_are_compared_by_what_they_say(whole, tmp_path):
    plain = make_teacher(num_classes=CLASSES, classes=None, class_order_hash=None,
                         codec=dataclasses.replace(CODEC, spread_classes=0))  # fmt: skip
    other = fill(LabelStore.create(tmp_path / "o", make_spec(10, 10, [plain])), masked=[2])
    report = diff(whole, other)
    assert report.settings == ["teachers.toy.codec.spread_classes is 8, not 0"]
    assert report.labels["toy"]["compared"] == 90 and report.labels["toy"]["different"] == 0
