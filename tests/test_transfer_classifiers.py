"""Classifiers on features give what a hand, a plain loop and scikit-learn give."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from transfer.classifiers import fit_logistic, fit_ridge, fit_standardised, knn_predict


def on_circle(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def clouds(num_images=90, width=7, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    target = np.arange(num_images) % num_classes
    centres = rng.normal(size=(num_classes, width))
    return (
        torch.from_numpy(centres[target] + rng.normal(size=(num_images, width))),
        torch.from_numpy(target),
    )


def test_near_neighbours_outvote_many_far_ones_as_worked_by_hand():
    # query at 20 degrees: class 0 at cos 20 = 0.940, class 1 at cos 40 = 0.766 and cos 41 = 0.755
    bank, target, query = on_circle(0, 60, 61), torch.tensor([0, 1, 1]), on_circle(20)
    # T = 0.07: exp(13.42) = 6.8e5 against exp(10.94) + exp(10.78) = 1.0e5
    assert knn_predict(bank, target, query, [3], 2)[3].tolist() == [0]
    # T = 1: exp(0.940) = 2.56 against exp(0.766) + exp(0.755) = 4.28
    assert knn_predict(bank, target, query, [3], 2, temperature=1.0)[3].tolist() == [1]


def test_neighbours_are_by_angle_and_not_by_length():
    bank, target = on_circle(0, 90) * torch.tensor([[100.0], [0.01]]), torch.tensor([0, 1])
    assert knn_predict(bank, target, on_circle(80), [1], 2)[1].tolist() == [1]


def test_knn_equals_a_plain_loop():
    bank, bank_target = clouds(seed=1)
    queries, _ = clouds(num_images=40, seed=2)
    found = knn_predict(bank, bank_target, queries, [1, 5, 20], 3)
    a, b = bank.numpy(), queries.numpy()
    for k in (1, 5, 20):
        for row, query in enumerate(b):
            cosine = a @ query / np.linalg.norm(a, axis=1) / np.linalg.norm(query)
            votes = np.zeros(3)
            for near in np.argsort(-cosine)[:k]:
                votes[bank_target[near]] += np.exp(cosine[near] / 0.07)
            assert found[k][row] == votes.argmax()


@pytest.mark.parametrize("decay", [0.0, 0.25, 3.0])
def test_ridge_equals_the_solution_worked_by_hand(decay):
    # x = -1 is class 0, x = 1 is class 1: W = -+0.5 / (1 + decay), b = 0.5
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = fit_ridge(x, torch.tensor([0, 1]), 2, decay)
    slope = 0.5 / (1 + decay)
    assert found.weight.flatten().tolist() == pytest.approx([-slope, slope])
    assert found.bias.tolist() == pytest.approx([0.5, 0.5])


def test_ridge_equals_scikit_learn():
    x, y = clouds()
    found = fit_ridge(x, y, 3, 0.1)
    expected = Ridge(alpha=0.1 * len(x)).fit(x.numpy(), np.eye(3)[y])
    np.testing.assert_allclose(found.weight.T, expected.coef_, atol=1e-10)
    np.testing.assert_allclose(found.bias, expected.intercept_, atol=1e-10)


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_logistic_regression_equals_scikit_learn(decay):
    x, y = clouds()
    found = fit_logistic(x, y, 3, decay)
    expected = LogisticRegression(C=1 / (len(x) * decay), tol=1e-9, max_iter=5000)
    expected.fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(found.weight.T, expected.coef_, atol=1e-4)
    bias = expected.intercept_ - expected.intercept_.mean()
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias, atol=1e-4)


def test_a_standardised_fit_does_not_mind_units_and_ignores_what_never_changes():
    x, y = clouds()
    units = torch.logspace(-3, 3, x.shape[1], dtype=torch.float64)
    other = torch.cat([x * units + 5, torch.full((len(x), 1), 7.0)], dim=1)
    first = fit_standardised(fit_ridge, x, y, 3, 0.1)
    second = fit_standardised(fit_ridge, other, y, 3, 0.1)
    torch.testing.assert_close(second.weight[:-1] * units[:, None], first.weight)
    assert second.weight[-1].tolist() == [0, 0, 0]
    assert second.predict(other).tolist() == first.predict(x).tolist()
