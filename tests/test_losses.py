"""Losses against the dense formula in float64, and properties any cross-entropy has."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import TopKTarget
from trainer.labels import as_label_type
from trainer.losses import (
    cross_entropy,
    dense_probs,
    smoothed_cross_entropy_rows,
    soft_cross_entropy_rows,
    soft_cross_entropy_topk,
)


def dense_soft_cross_entropy(logits, label, temperature):
    """-(1/B) sum label * log softmax(logits / T), in float64."""
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max(-1, keepdims=True)
    log_q = scaled - top - np.log(np.exp(scaled - top).sum(-1, keepdims=True))
    return float(-(label * log_q).sum(-1).mean())


def random_label(rng, batch, classes, k):
    """A sorted top-k label and its dense form with an even tail."""
    probs = rng.dirichlet(np.full(classes, 0.3), size=batch)
    index = np.argsort(-probs, axis=-1)[:, :k]
    kept = np.take_along_axis(probs, index, -1)
    tail = 1 - kept.sum(-1)
    dense = np.repeat((tail / max(1, classes - k))[:, None], classes, 1)
    np.put_along_axis(dense, index, kept, -1)
    return index, kept, tail, dense


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 60),
    k=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
@settings(max_examples=60)
def test_sparse_loss_equals_the_dense_formula(seed, classes, k, temperature):
    k = min(k, classes)
    rng = np.random.default_rng([7, seed])
    index, kept, tail, dense = random_label(rng, 5, classes, k)
    if k == classes:
        tail = np.zeros_like(tail)
    logits = rng.normal(0, 4, (5, classes))
    label = TopKTarget(torch.tensor(index), torch.tensor(kept), torch.tensor(tail))
    ours = soft_cross_entropy_topk(torch.tensor(logits), label, temperature)
    expected = dense_soft_cross_entropy(logits, dense, temperature)
    assert float(ours) == pytest.approx(expected, rel=2e-5, abs=1e-5)  # float32 sums


def test_soft_loss_is_smallest_where_the_student_agrees():
    rng = np.random.default_rng([7, 1])
    index, kept, tail, dense = random_label(rng, 8, 20, 5)
    label = TopKTarget(*(torch.tensor(value) for value in (index, kept, tail)))
    agree = torch.tensor(np.log(dense), requires_grad=True)
    loss = soft_cross_entropy_topk(agree, label)
    loss.backward()
    assert agree.grad.abs().max() < 1e-6
    other = soft_cross_entropy_topk(torch.tensor(rng.normal(size=(8, 20))), label)
    assert other > loss


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    label = TopKTarget(torch.tensor([[1]]), torch.tensor([[0.9]]), torch.tensor([0.1]))
    loss = soft_cross_entropy_topk(logits, label)
    assert math.isfinite(float(loss))


def test_hard_loss_is_minus_the_log_probability():
    logits = torch.log(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    assert float(cross_entropy(logits, torch.tensor([1, 0]))) == pytest.approx(
        -(math.log(0.8) + math.log(0.5)) / 2
    )


def test_label_types_are_fkds_reconstructions():
    index = torch.tensor([[4, 2, 0]])
    probs, tail = torch.tensor([[0.6, 0.2, 0.1]]), torch.tensor([0.1])

    def kept(label_type, k=None):
        i, p, t = as_label_type(label_type, k, index, probs, tail)
        return i[0].tolist(), [round(v, 6) for v in p[0].tolist()], round(float(t[0]), 6)

    assert kept("marginal_smoothing") == ([4, 2, 0], [0.6, 0.2, 0.1], 0.1)
    assert kept("marginal_smoothing", 2) == ([4, 2], [0.6, 0.2], 0.2)
    assert kept("marginal_renorm", 2) == ([4, 2], [0.75, 0.25], 0.0)
    assert kept("smoothing") == ([4], [0.6], 0.4)
    assert kept("hard") == ([4], [1.0], 0.0)


def test_a_label_written_out_is_the_one_it_stands_for():
    rng = np.random.default_rng([7, 2])
    index, kept, tail, dense = random_label(rng, 6, 30, 4)
    label = TopKTarget(torch.tensor(index), torch.tensor(kept), torch.tensor(tail))
    np.testing.assert_allclose(dense_probs(label, 30).numpy(), dense, atol=1e-6)
    moved = label.take(torch.tensor([5, 4, 3, 2, 1, 0]))
    np.testing.assert_allclose(dense_probs(moved, 30).numpy(), dense[::-1], atol=1e-6)


def test_rows_of_a_mean_tail_equal_the_dense_formula():
    rng = np.random.default_rng([7, 3])
    index, kept, tail, dense = random_label(rng, 5, 20, 3)
    extra_index = np.array([[c for c in range(20) if c not in row][:2] for row in index])
    extra = tail[:, None] * np.array([0.3, 0.2])
    even = tail - extra.sum(-1)
    dense = np.repeat((even / 17)[:, None], 20, 1)
    np.put_along_axis(dense, index, kept, -1)
    for row in range(5):
        dense[row, extra_index[row]] += extra[row]
    label = TopKTarget(*map(torch.tensor, (index, kept, even, extra_index, extra)))
    logits = rng.normal(0, 3, (5, 20))
    found = soft_cross_entropy_rows(torch.tensor(logits), label, 2.0)
    for row in range(5):
        expected = dense_soft_cross_entropy(logits[row : row + 1], dense[row : row + 1], 2.0)
        assert float(found[row]) == pytest.approx(expected, rel=2e-5)
    np.testing.assert_allclose(dense_probs(label, 20).numpy(), dense, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_smoothed_loss_is_torchs_with_its_own_split_of_epsilon(epsilon):
    rng = np.random.default_rng([7, 4])
    logits, target = rng.normal(0, 3, (6, 10)), rng.integers(0, 10, 6)
    dense = np.full((6, 10), epsilon / 9)
    dense[np.arange(6), target] = 1 - epsilon
    found = smoothed_cross_entropy_rows(torch.tensor(logits), torch.tensor(target), epsilon)
    expected = dense_soft_cross_entropy(logits, dense, 1.0)
    assert float(found.mean()) == pytest.approx(expected, rel=1e-5)
