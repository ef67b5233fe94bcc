"""The dictionary codec: places name the same classes, labels keep their stated error, lists and
mean tails decode to what they were made from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import fill_store, make_block, make_log_probs, make_spec, make_teacher

from storage.codecs import NO_CODE, NO_INDEX, TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec, ImageTail, codec_from_json, default_codec
from storage.errors import FormatVersion, UsageError
from storage.images import ImageStatus
from storage.label_arrays import dictionary_arrays, from_arrays, label_faults, to_arrays
from storage.lists import (
    NOT_IN_TAIL,
    SPREAD_STEP,
    Dictionaries,
    build_dictionaries,
    mean_tails,
    places_from_index,
)
from storage.sealing import seal
from storage.store import LabelStore
from storage.verify import verify


@st.composite
def block(draw):
    """A codec and log-probabilities [n, M, C]."""
    num_classes = draw(st.integers(2, 40))
    top_k = draw(st.integers(1, num_classes))
    codec = DictionaryCodec(
        num_classes=num_classes, top_k=top_k,
        step=draw(st.sampled_from([0.05, 0.3, 1.0])),
        spread_classes=draw(st.integers(0, num_classes)),
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 6)), num_classes)
    logits = rng.normal(0, draw(st.sampled_from([0.0, 1, 5, 40])), shape)
    logits = np.round(logits, draw(st.sampled_from([0, 8])))  # ties
    logits -= logits.max(axis=-1, keepdims=True)
    return codec, logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def tail_mass(codec: TopKCodec, log_probs: np.ndarray) -> np.ndarray:
    """[n, C], view by view and class by class."""
    index = codec.encode(log_probs).index
    mass = np.zeros((len(log_probs), codec.num_classes))
    for i, views in enumerate(np.exp(log_probs)):
        for v, probs in enumerate(views):
            for c, p in enumerate(probs):
                if c not in index[i, v]:
                    mass[i, c] += p
    return mass


@given(block())
@settings(max_examples=100)
def test_labels_come_back_from_their_arrays(case):
    codec, log_probs = case
    labels = codec.encode(log_probs)
    readable = np.ones(len(log_probs), bool)
    arrays = to_arrays(codec, labels, readable, tail_mass(codec, log_probs))
    back = from_arrays(codec, arrays)
    for part in ("index", "code", "tail"):
        assert np.array_equal(getattr(back, part), getattr(labels, part)), part
    assert not [what for _, where, what in label_faults(codec, arrays, readable) if where.any()]


@given(block())
@settings(max_examples=100)
def test_decoded_labels_stay_within_the_stated_error(case):
    codec, log_probs = case
    labels = codec.encode(log_probs)
    probs, tail = codec.decode(labels)
    exact = np.take_along_axis(np.exp(log_probs), labels.index.astype(int), axis=-1)
    assert np.abs(probs - exact).max() <= codec.max_error
    assert np.abs(tail - (1 - exact.sum(axis=-1))).max() <= codec.max_error
    np.testing.assert_allclose(codec.dense(labels).sum(axis=-1), 1, atol=5e-6)


def plain_places(index: np.ndarray, listed: list[int]) -> list[int]:
    """Places of one label: strike out the classes that were named."""
    left, places = list(listed), []
    for c in index:
        places.append(left.index(c))
        left.remove(c)
    return places


def test_a_place_counts_the_classes_of_the_list_that_are_left():
    rng = np.random.default_rng([7, 3])
    listed = rng.permutation(30)[:12]
    index = np.array([rng.permutation(listed)[:5] for _ in range(50)], np.uint16)[None]
    classes = np.full((1, 30), NO_INDEX, np.uint16)
    classes[0, :12] = listed
    places = places_from_index(index, classes)
    assert places[0].tolist() == [plain_places(row, listed.tolist()) for row in index[0]]
    assert np.array_equal(Dictionaries.pack(classes).index(places), index)


def test_lists_are_ordered_by_rank_then_tail_mass_and_a_given_beginning_stays():
    codec = DictionaryCodec(num_classes=8, top_k=2, spread_classes=3)
    index = np.array([[[5, 1], [5, 2], [1, 5]]], np.uint16)  # 5: 2+2+1, 1: 1+2, 2: 1
    mass = np.array([[0.1, 0.5, 0, 0.4, 0, 0, 0, 0.2]])  # the largest three: 1, 3 and 7
    classes, spread = build_dictionaries(codec, index, mass)
    assert classes[0].tolist() == [5, 1, 2, 3, 7, *[NO_INDEX] * 3]
    codes = [NOT_IN_TAIL, 0, NOT_IN_TAIL, round(math.log(0.5 / 0.4) / SPREAD_STEP),
             round(math.log(0.5 / 0.2) / SPREAD_STEP)]  # fmt: skip
    assert spread[0].tolist() == [*codes, *[NO_CODE] * 3]
    longer, _ = build_dictionaries(codec, np.array([[[6, 2]]], np.uint16), mass, first=classes)
    assert longer[0].tolist() == [5, 1, 2, 3, 7, 6, NO_INDEX, NO_INDEX]


def test_mean_tails_are_the_shares_of_the_largest_classes():
    rng = np.random.default_rng([7, 4])
    codec = DictionaryCodec(num_classes=30, top_k=3, spread_classes=8)
    log_probs = np.log(rng.dirichlet(np.full(30, 0.3), size=(3, 9)) + 1e-12)
    mass = tail_mass(codec, log_probs)
    arrays = to_arrays(codec, codec.encode(log_probs), np.ones(3, bool), mass)
    tails = mean_tails(codec, arrays["classes"], arrays["spread"])
    for i in range(3):
        largest = np.argsort(-mass[i])[:8]
        assert sorted(tails.index[i].tolist()) == sorted(largest.tolist())
        shares = mass[i] / mass[i][largest].sum()
        ratio = tails.share[i] / shares[tails.index[i]]
        # each code is within half a step, and so is their sum
        assert np.abs(np.log(ratio)).max() <= SPREAD_STEP + 1e-5
        assert tails.share[i].sum() == pytest.approx(1, abs=1e-6)


@given(block())
@settings(max_examples=60)
def test_mean_tails_decode_as_their_formula_says(case):
    codec, log_probs = case
    labels = codec.encode(log_probs)
    n, M, C = log_probs.shape
    arrays = to_arrays(codec, labels, np.ones(n, bool), tail_mass(codec, log_probs))
    tails = ImageTail(np.zeros((n, 1), np.uint16), np.zeros((n, 1), np.float32))
    if codec.spread_classes:
        tails = mean_tails(codec, arrays["classes"], arrays["spread"])
    dense = codec.dense_with_tail(labels, tails)
    probs, rest = codec.decode(labels)
    for i in range(n):
        share = np.zeros(C)
        np.add.at(share, tails.index[i], tails.share[i])
        for v in range(M):
            kept = labels.index[i, v].tolist()
            others = [c for c in range(C) if c not in kept]
            expected = np.zeros(C)
            expected[kept] = probs[i, v]
            total = sum(share[c] for c in others)
            w = codec.spread_weight if total > 0 else 0
            for c in others:
                mean = share[c] / total if total > 0 else 0
                expected[c] = rest[i, v] * (w * mean + (1 - w) / len(others))
            np.testing.assert_allclose(dense[i, v], expected, atol=2e-6)


def test_small_tails_keep_their_logarithm_and_large_ones_their_angle():
    codec = DictionaryCodec(num_classes=10, top_k=1, spread_classes=0)
    mass = np.concatenate([np.geomspace(1e-8, 0.01, 300), np.linspace(0.01, 1, 300)])
    decoded = codec.tail_table()[codec.tail_codes(mass)].astype(float)
    assert codec.tail_codes(mass).max() == codec.max_tail_code
    assert np.abs(np.log(decoded / mass))[:300].max() <= 0.25 + 1e-5
    angle = np.arcsin(np.sqrt(np.clip([mass, decoded], 0, 1)))
    step = (math.pi / 2 - math.asin(0.1)) / 60
    assert np.abs(angle[0] - angle[1])[300:].max() <= step / 2 + 1e-4
    assert np.isnan(codec.tail_table()[codec.max_tail_code + 1 :]).all()
    whole = DictionaryCodec(num_classes=4, top_k=4, spread_classes=0)
    assert whole.tail_table()[whole.tail_codes(np.zeros(1))].tolist() == [0]


def test_a_label_without_mass_on_its_kept_classes_still_decodes():
    codec = DictionaryCodec(num_classes=10, top_k=2, spread_classes=0)
    labels = codec.encode_topk(np.full((1, 2), -np.inf), np.array([[3, 4]]), np.ones(1))
    probs, tail = codec.decode(labels)
    assert np.allclose(probs, 0, atol=1e-6) and tail[0] == pytest.approx(1)


def test_codecs_come_back_from_their_settings_and_newer_ones_are_refused():
    for codec in (default_codec(1000, 10, 500), TopKCodec(num_classes=9, top_k=2)):
        assert codec_from_json(codec.to_json()) == codec
        assert type(codec_from_json(codec.to_json())) is type(codec)
    with pytest.raises(FormatVersion, match="install a newer"):
        codec_from_json({**default_codec(9, 2, 8).to_json(), "version": 2})


def test_the_default_keeps_mean_tails_where_they_cost_little():
    assert default_codec(1000, 10, 500).spread_classes == 64
    assert default_codec(1000, 10, 16).spread_classes == 8
    assert (
        default_codec(10, 10, 500).spread_classes == default_codec(10, 9, 500).spread_classes == 0
    )


@pytest.mark.parametrize("changes", [{"spread_weight": 1.0}, {"spread_classes": 8}, {"step": 2.0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UsageError):
        DictionaryCodec(**{"num_classes": 7, "top_k": 3, "spread_classes": 4, **changes})


def make_store(path, masked=(2,)):
    codec = DictionaryCodec(num_classes=7, top_k=3, spread_classes=4)
    spec = make_spec(teachers=[make_teacher(codec=codec)])
    return fill_store(path, spec, masked)


def test_a_store_reads_back_labels_and_mean_tails(tmp_path):
    store = make_store(tmp_path / "s")
    seal(store)
    assert verify(tmp_path / "s", full=True).problems == []
    store = LabelStore.open(tmp_path / "s")
    codec = store.spec.teachers["toy"].codec
    tails = store.read_image_tails("toy")
    for first, count in ((0, 6), (2, 2), (3, 2)):
        plane = store.read_plane(first, count, "toy")
        for row in range(10):
            if row == 2:
                assert (plane.index[row] == NO_INDEX).all() and (plane.code[row] == NO_CODE).all()
                continue
            expected = codec.encode(make_log_probs(row, 6, 7)[first : first + count])
            assert np.array_equal(plane.index[row], expected.index)
            assert np.array_equal(plane.code[row], expected.code)
            assert np.array_equal(plane.tail[row], expected.tail)
    assert tails.index.shape == (10, 4)
    assert np.allclose(tails.share.sum(axis=1), np.where(np.arange(10) == 2, 0, 1))
    rows, views = slice(3, 8), slice(1, 5)
    assert np.array_equal(
        store.read_array("labels/toy/index", rows, views), store.read_plane(1, 4, "toy").index[3:8]
    )
    with pytest.raises(UsageError, match="has no array"):
        store.read_array("labels/toy/nothing", rows, views)


def damage(part, change):
    codec = DictionaryCodec(num_classes=7, top_k=3, spread_classes=4)
    log_probs = np.stack([make_log_probs(row, 6, 7) for row in range(3)])
    arrays = to_arrays(codec, codec.encode(log_probs), np.ones(3, bool), np.ones((3, 7)))
    change(arrays[part])
    return {name for name, where, _ in label_faults(codec, arrays, np.ones(3, bool)) if where.any()}


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("classes", lambda v: v.__setitem__((0, 0), 7), "classes"),
        ("classes", lambda v: v.__setitem__((0, 0), v[0, 1]), "classes"),
        ("classes", lambda v: v.__setitem__((0, 0), NO_INDEX), "classes"),
        ("place", lambda v: v.__setitem__((1, 0, 2), 5), "place"),
        ("place", lambda v: v.__setitem__((1, 0, 0), NO_INDEX), "place"),
        ("fall", lambda v: v.__setitem__((0, 0, 0), 255), "fall"),
        ("tail", lambda v: v.__setitem__((0, 0), 89), "tail"),
        ("spread", lambda v: v.__setitem__((2, 0), 255), "spread"),
        ("spread", lambda v: v.__setitem__((2, slice(None)), 0), "spread"),
    ],
)
def test_values_out_of_range_are_named(part, change, named):
    assert named in damage(part, change)


def test_mean_tails_need_the_tail_mass(tmp_path):
    codec = DictionaryCodec(num_classes=7, top_k=3, spread_classes=4)
    spec = make_spec(teachers=[make_teacher(codec=codec)])
    data = make_block(spec, 0)
    data.tail_mass.clear()
    store = LabelStore.create(tmp_path / "s", spec)
    with pytest.raises(UsageError, match="tail mass"):
        store.write_block(0, data, "cpu")


def test_more_views_of_an_image_leave_its_places_as_they_are():
    """What an extension does: a longer list, the same places."""
    codec = DictionaryCodec(num_classes=30, top_k=4, spread_classes=0)
    rng = np.random.default_rng([7, 8])
    logs = np.log(rng.dirichlet(np.full(30, 0.2), size=(2, 12)) + 1e-9)
    labels = codec.encode(logs)
    early = TopKLabels(labels.index[:, :5], labels.code[:, :5], labels.tail[:, :5])
    before = to_arrays(codec, early, np.ones(2, bool))
    longer, spread = build_dictionaries(codec, labels.index, first=before["classes"])
    after = dictionary_arrays(codec, labels, np.ones(2, bool), longer, spread)
    assert np.array_equal(after["place"][:, :5], before["place"])
    assert np.array_equal(from_arrays(codec, after).index, labels.index)


def test_masked_images_hold_fill_values_only(tmp_path):
    store = make_store(tmp_path / "s", masked=(0, 9))
    status = store.read_status()
    for part in ("classes", "place", "fall", "tail", "spread"):
        where = None if part in ("classes", "spread") else slice(0, 6)
        values = store.read_array(f"labels/toy/{part}", slice(0, 10), where)
        filled = (values == np.iinfo(values.dtype).max).reshape(10, -1).all(axis=1)
        assert np.array_equal(filled, status != ImageStatus.OK), part
