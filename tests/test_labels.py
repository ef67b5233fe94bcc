"""The device's decode of stored labels equals the codec's definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codecs import LABEL_TYPES, TopKCodec
from storage.dictionary import DictionaryCodec
from storage.errors import UsageError
from storage.label_arrays import to_arrays
from storage.lists import mean_tails
from trainer.batch import TopKTarget
from trainer.config import FULL, LabelConfig
from trainer.config import LABEL_TYPES as ALL_LABEL_TYPES
from trainer.labels import as_label_type, decode_topk, full_labels, within
from trainer.losses import counted_mean, soft_cross_entropy_topk
from trainer.mean_tails import MeanTails


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 40), step=st.sampled_from([0.1, 0.25]))
@settings(max_examples=40)
def test_torch_decode_equals_numpy_decode(seed, classes, step):
    rng = np.random.default_rng([7, seed])
    logits = rng.normal(0, 4, (6, classes))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    codec = TopKCodec(num_classes=classes, top_k=min(5, classes), step=step)
    labels = codec.encode(log_probs.astype(np.float32))
    probs, tail = codec.decode(labels)
    ours, our_tail = decode_topk(torch.tensor(labels.code), torch.tensor(labels.tail), step)
    assert np.allclose(ours.numpy(), probs, atol=2e-6)
    assert np.allclose(our_tail.numpy(), tail, atol=2e-6)
    assert np.allclose(ours.sum(-1) + our_tail, 1.0, atol=1e-5)


def test_more_classes_than_stored_are_refused():
    index, probs, tail = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]), torch.tensor([0.1])
    with pytest.raises(UsageError, match="keeps 2 classes"):
        as_label_type("marginal_smoothing", 3, index, probs, tail)


@pytest.mark.parametrize("label_type", LABEL_TYPES)
@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_label_types_equal_the_codecs_own(label_type, top_k):
    rng = np.random.default_rng([7, 99])
    log_probs = np.log(rng.dirichlet(np.full(12, 0.4), size=8))
    codec = TopKCodec(num_classes=12, top_k=5)
    labels = codec.encode(log_probs)
    expected = codec.soft(labels, label_type, top_k)
    probs, tail = decode_topk(torch.tensor(labels.code), torch.tensor(labels.tail), codec.step)
    index = torch.tensor(labels.index.astype(np.int64))
    ours_index, ours, rest = as_label_type(label_type, top_k, index, probs, tail)
    assert np.array_equal(ours_index.numpy(), expected.index)
    assert np.allclose(ours.numpy(), expected.probs, atol=2e-6)
    assert np.allclose(rest.numpy(), expected.rest, atol=2e-6)


def random_codec_case(seed: int):
    rng = np.random.default_rng([7, seed])
    codec = DictionaryCodec(num_classes=20, top_k=4, spread_classes=7, spread_weight=0.6)
    log_probs = np.log(rng.dirichlet(np.full(20, 0.4), size=(3, 5)))
    labels = codec.encode(log_probs)
    mass = np.exp(log_probs)
    np.put_along_axis(mass, labels.index.astype(int), 0, axis=-1)
    arrays = to_arrays(codec, labels, np.ones(3, bool), mass.sum(axis=1))
    tails = mean_tails(codec, arrays["classes"], arrays["spread"])
    return rng, codec, labels, tails


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_dictionary_codec_decodes_as_numpy_does(seed):
    _, codec, labels, _ = random_codec_case(seed)
    probs, tail = codec.decode(labels)
    ours, our_tail = decode_topk(
        torch.tensor(labels.code), torch.tensor(labels.tail), codec.step,
        torch.from_numpy(codec.tail_table()),
    )  # fmt: skip
    assert np.allclose(ours.numpy(), probs, atol=2e-6)
    assert np.allclose(our_tail.numpy(), tail, atol=2e-6)


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=30)
def test_the_loss_with_mean_tails_equals_the_dense_formula(seed, temperature):
    rng, codec, labels, tails = random_codec_case(seed)
    logits = rng.normal(0, 4, (15, 20))
    scaled = logits / temperature
    log_q = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    dense = codec.dense_with_tail(labels, tails).reshape(15, 20).astype(np.float64)
    expected = -(dense * log_q).sum(-1).mean()
    index = torch.from_numpy(labels.index.reshape(15, 4).astype(np.int64))
    probs, tail = (torch.from_numpy(part.reshape(15, *part.shape[2:])) for part in
                   codec.decode(labels))  # fmt: skip
    means = MeanTails(tails.index, tails.share, codec.spread_weight, codec.top_k)
    even, listed, extra = means.on(torch.device("cpu")).spread(torch.arange(3), 5, index, tail)
    np.testing.assert_allclose(probs.sum(-1) + even + extra.sum(-1), 1, atol=2e-6)
    label = TopKTarget(index, probs, even, listed, extra)
    ours = soft_cross_entropy_topk(torch.from_numpy(logits), label, temperature)
    assert float(ours) == pytest.approx(expected, rel=2e-5, abs=1e-5)  # float32 sums


def test_mean_tails_serve_whole_labels_with_a_tail_only():
    means = MeanTails(np.zeros((1, 2), np.uint16), np.zeros((1, 2), np.float32), 0.6, 4)
    assert means.serve(LabelConfig(teacher="t", tail="mean"))
    assert means.serve(LabelConfig(teacher="t", tail="mean", top_k=4))
    for other in ({"top_k": 3}, {"label_type": "hard"}, {"label_type": "marginal_renorm"},
                  {"tail": "even"}, {"tail": None}):  # fmt: skip
        assert not means.serve(LabelConfig(**({"teacher": "t", "tail": "mean"} | other)))


def test_a_full_label_is_the_softmax_of_the_stored_logits():
    logits = np.random.default_rng([7, 5]).normal(0, 3, (6, 11))
    student = np.random.default_rng([7, 6]).normal(0, 2, (6, 11))
    label = full_labels(torch.tensor(logits, dtype=torch.float32))
    assert label.index.shape == (6, 11) and not label.tail.any()
    assert bool((label.probs[:, 1:] <= label.probs[:, :-1]).all())
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    log_q = student / 2 - np.log(np.exp(student / 2).sum(-1, keepdims=True))
    found = soft_cross_entropy_topk(torch.tensor(student), label, 2.0)
    assert float(found) == pytest.approx(-(p * log_q).sum(-1).mean(), rel=1e-5)


def test_all_label_types_are_those_of_the_codec_and_the_full_one():
    assert (*sorted(LABEL_TYPES), FULL) == (*sorted(set(ALL_LABEL_TYPES) - {FULL}), FULL)
    with pytest.raises(UsageError, match="has all classes"):
        LabelConfig(label_type=FULL, top_k=3)


def test_crops_that_do_not_count_weigh_nothing():
    rows, sure = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.2, 0.5, 0.9])
    assert within(sure, 0.2, 0.5).tolist() == [1, 1, 0]
    assert float(counted_mean(rows, within(sure, 0.3, 1.0))) == 3
    assert float(counted_mean(rows, torch.zeros(3))) == 0
    assert float(counted_mean(rows, None)) == pytest.approx(7 / 3)
