"""The top-k codec keeps its stated bounds, and FKD's label types are its decodings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codecs import (
    NO_CODE,
    NO_INDEX,
    TopKCodec,
    TopKLabels,
    codes_from_gaps,
    gaps_from_codes,
)
from storage.errors import FormatVersion, UsageError


@st.composite
def labelled(draw):
    """A codec and log-probabilities [4, C] of any sharpness, with ties and exact zeros."""
    num_classes = draw(st.integers(2, 60))
    codec = TopKCodec(
        num_classes=num_classes,
        top_k=draw(st.integers(1, num_classes)),
        step=draw(st.sampled_from([0.05, 0.125, 0.25, 1.0])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(0, draw(st.sampled_from([0.0, 0.1, 1, 5, 40])), (4, num_classes))
    logits = np.round(logits, draw(st.sampled_from([0, 1, 8])))  # ties
    logits -= logits.max(axis=-1, keepdims=True)
    return codec, logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@given(labelled())
@settings(max_examples=200)
def test_decoded_labels_are_distributions_within_the_stated_error(case):
    codec, log_probs = case
    labels = codec.encode(log_probs)
    probs, tail = codec.decode(labels)
    exact = np.take_along_axis(np.exp(log_probs), labels.index.astype(int), axis=-1)
    exact_tail = 1 - exact.sum(axis=-1)
    assert np.abs(probs - exact).max() <= codec.max_error
    assert np.abs(tail - exact_tail).max() <= codec.max_error
    # float32 sums of up to 60 values
    np.testing.assert_allclose(probs.sum(axis=-1) + tail, 1, atol=2e-6)
    np.testing.assert_allclose(codec.dense(labels).sum(axis=-1), 1, atol=5e-6)


@given(labelled())
@settings(max_examples=100)
def test_kept_classes_are_the_most_probable_and_equal_ones_come_by_id(case):
    codec, log_probs = case
    labels = codec.encode(log_probs)
    for row, index in zip(log_probs, labels.index.astype(int), strict=True):
        order = sorted(range(codec.num_classes), key=lambda c: (-row[c], c))
        assert index.tolist() == order[: codec.top_k]
    assert (np.diff(labels.code.astype(int), axis=-1) >= 0).all()
    assert labels.code.max() <= 254 and labels.tail.max() <= 254


@given(labelled())
@settings(max_examples=100)
def test_codes_are_within_half_a_step(case):
    codec, log_probs = case
    labels = codec.encode(log_probs)
    kept = np.take_along_axis(log_probs, labels.index.astype(int), axis=-1)
    in_range = kept >= -254 * codec.step
    error = np.abs(-codec.step * labels.code - kept)[in_range]
    assert error.max(initial=0) <= codec.step / 2 * (1 + 1e-9)


def test_the_tail_s_angle_is_within_half_a_code():
    codec = TopKCodec(num_classes=10, top_k=1)
    mass = np.linspace(0, 1, 5001)
    labels = codec.encode_topk(np.zeros((5001, 1)), np.zeros((5001, 1), int), mass)
    angle = np.arcsin(np.sqrt(mass))
    decoded = np.arcsin(np.sqrt(np.clip(codec.decode(labels)[1].astype(float), 0, 1)))
    assert np.abs(angle - decoded).max() <= math.pi / 1016 + 1e-4  # float32 near t = 1


def test_the_device_path_equals_the_definition():
    rng = np.random.default_rng([7, 1])
    logits = rng.normal(0, 3, (5, 6, 100)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    codec = TopKCodec(num_classes=100, top_k=10)
    index = np.argsort(-log_probs, axis=-1, kind="stable")[..., :10]
    kept = np.take_along_axis(log_probs, index, axis=-1)
    fast = codec.encode_topk(kept, index, 1 - np.exp(kept.astype(np.float64)).sum(axis=-1))
    slow = codec.encode(log_probs)
    assert np.array_equal(fast.index, slow.index)
    assert np.array_equal(fast.code, slow.code)
    assert np.array_equal(fast.tail, slow.tail)


def test_all_classes_kept_leave_no_tail():
    codec = TopKCodec(num_classes=3, top_k=3)
    labels = codec.encode(np.log([[0.2, 0.5, 0.3]]))
    assert labels.tail.tolist() == [0] and labels.index.tolist() == [[1, 2, 0]]
    probs, tail = codec.decode(labels)
    assert probs.sum() == pytest.approx(1, abs=1e-6) and tail.tolist() == [0]


def test_a_label_without_mass_on_its_kept_classes_still_decodes():
    """float16 teachers give log p = -inf; everything lies in the tail then."""
    codec = TopKCodec(num_classes=10, top_k=2, step=1.0)
    labels = codec.encode_topk(np.full((1, 2), -np.inf), np.array([[3, 4]]), np.ones(1))
    probs, tail = codec.decode(labels)
    assert np.allclose(probs, 0, atol=1e-6) and tail[0] == pytest.approx(1)


def test_fill_values_decode_to_nan_and_never_to_a_label():
    codec = TopKCodec(num_classes=10, top_k=2)
    fill = TopKLabels(
        np.full((1, 2), NO_INDEX, np.uint16), np.full((1, 2), NO_CODE, np.uint8),
        np.full(1, NO_CODE, np.uint8),
    )  # fmt: skip
    assert np.isnan(codec.decode(fill)[0]).all() and np.isnan(codec.decode(fill)[1]).all()
    assert np.isnan(codec.dense(fill)).all()
    for label_type in ("hard", "smoothing", "marginal_smoothing", "marginal_renorm"):
        assert np.isnan(codec.soft(fill, label_type).probs).all()


def fkd(probs: np.ndarray, label_type: str, k: int) -> np.ndarray:
    """FKD's label types from a dense distribution [C], after fkd.md section 1.5, class by class."""
    num_classes = len(probs)
    order = sorted(range(num_classes), key=lambda c: (-probs[c], c))
    if label_type in ("hard", "smoothing"):
        k = 1
    kept, total = order[:k], sum(probs[c] for c in order[:k])
    dense = np.zeros(num_classes)
    for c in range(num_classes):
        if label_type == "hard":
            dense[c] = 1.0 if c in kept else 0.0
        elif label_type == "marginal_renorm":
            dense[c] = probs[c] / total if c in kept else 0.0
        else:
            dense[c] = probs[c] if c in kept else (1 - total) / (num_classes - k)
    return dense


@pytest.mark.parametrize("label_type", ["hard", "smoothing", "marginal_smoothing",
                                        "marginal_renorm"])  # fmt: skip
@pytest.mark.parametrize("k", [1, 5, 10])
def test_fkd_label_types_follow_their_formulas(label_type, k):
    codec = TopKCodec(num_classes=50, top_k=10)
    rng = np.random.default_rng([7, k])
    logits = rng.normal(0, 3, 50)
    labels = codec.encode((logits - np.log(np.exp(logits).sum()))[None])
    stored = codec.dense(labels)[0].astype(np.float64)
    # ties after rounding to codes keep the order in which they are stored
    stored[labels.index[0].astype(int)] += np.linspace(1e-9, 0, 10)
    found = codec.dense(codec.soft(labels, label_type, k))[0]
    np.testing.assert_allclose(found, fkd(stored, label_type, k), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 0}, {"top_k": 11}, {"num_classes": 1}, {"num_classes": 1 << 16}, {"step": 0},
     {"step": 2}],
)  # fmt: skip
def test_settings_out_of_range_are_misuse(changes):
    with pytest.raises(UsageError, match="expected"):
        TopKCodec(**{"num_classes": 10, "top_k": 5, **changes})


def test_broken_teacher_outputs_and_wrong_shapes_are_refused():
    codec = TopKCodec(num_classes=4, top_k=2)
    with pytest.raises(UsageError, match="NaN"):
        codec.encode(np.full((2, 4), np.nan))
    with pytest.raises(UsageError, match=r"expected \[\.\.\., 4\]"):
        codec.encode(np.zeros((2, 5)))
    with pytest.raises(UsageError, match="shapes"):
        codec.encode_topk(np.zeros((2, 3)), np.zeros((2, 3), int), np.zeros(2))
    labels = codec.encode(np.log(np.full((1, 4), 0.25)))
    with pytest.raises(UsageError, match="label type"):
        codec.soft(labels, "ori")
    with pytest.raises(UsageError, match="keeps 1 to 2"):
        codec.soft(labels, top_k=3)


def test_codecs_survive_json_and_unknown_ones_are_refused():
    codec = TopKCodec(num_classes=10, top_k=5, step=0.5)
    assert TopKCodec.from_json(codec.to_json()) == codec
    with pytest.raises(FormatVersion, match="newer teachonce"):
        TopKCodec.from_json({**codec.to_json(), "version": 2})


@given(labelled())
@settings(max_examples=50)
def test_codes_survive_being_kept_as_gaps(case):
    codec, log_probs = case
    code = codec.encode(log_probs).code
    code[1] = NO_CODE
    assert np.array_equal(codes_from_gaps(gaps_from_codes(code)), code)
