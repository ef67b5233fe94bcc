"""The device's decode of stored labels equals the codec's definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codecs import TopKCodec
from storage.errors import UsageError
from trainer.config import LABEL_TYPES
from trainer.labels import as_label_type, decode_topk


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 40), step=st.sampled_from([0.1, 0.25]))
@settings(max_examples=40, deadline=None)
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
