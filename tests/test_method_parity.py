"""One step of every label method against its published formula, in float64 and by hand."""

import numpy as np
import pytest
import torch

from trainer.batch import Batch, TopKTarget
from trainer.labels import as_label_type, full_labels
from trainer.method_config import FerkdConfig, MealConfig, MixConfig
from trainer.methods import FKD, FerKD, MealV2
from trainer.mix import mix_images

B, C = 5, 12
RNG = np.random.default_rng(21)
DENSE = RNG.dirichlet(np.full(C, 0.4), B)  # the teacher's whole answer
LOGITS = RNG.normal(0, 2, (B, C))
ORDER = np.argsort(-DENSE, axis=1)


def published_label(kind, k):
    """FKD's reconstructions (Shen & Xing 2022, section 3.3) from the dense answer, [B, C]."""
    found = np.zeros((B, C))
    for b, p in enumerate(DENSE):
        top = ORDER[b]
        if kind == "full":
            found[b] = p
        elif kind == "hard":
            found[b, top[0]] = 1
        elif kind == "smoothing":
            found[b] = (1 - p[top[0]]) / (C - 1)
            found[b, top[0]] = p[top[0]]
        elif kind == "marginal_smoothing":
            found[b] = (1 - p[top[:k]].sum()) / (C - k)
            found[b, top[:k]] = p[top[:k]]
        else:
            found[b, top[:k]] = p[top[:k]] / p[top[:k]].sum()
    return found


def stored_label(kind, k, stored=10):
    """The same as the loader gives it, of labels that keep `stored` classes."""
    if kind == "full":
        return full_labels(torch.tensor(np.log(DENSE) + 3.0))
    index = torch.tensor(ORDER[:, :stored].copy())
    probs = torch.gather(torch.tensor(DENSE), 1, index)
    return TopKTarget(*as_label_type(kind, k, index, probs, 1 - probs.sum(-1)))


SIX = [("full", None), ("hard", None), ("smoothing", None), ("marginal_smoothing", 5),
       ("marginal_smoothing", 10), ("marginal_renorm", 5)]  # fmt: skip


def batch_of(label, target=None):
    target = torch.zeros(B, dtype=torch.int64) if target is None else torch.tensor(target)
    return Batch(
        torch.arange(float(B)).view(-1, 1, 1, 1).expand(-1, 3, 6, 6).clone(), target, label
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("kind", "k"), SIX)
def test_fkds_loss_and_gradient_are_the_formula_for_all_six_label_types(kind, k, temperature):
    logits = torch.tensor(LOGITS, dtype=torch.float32, requires_grad=True)
    loss = FKD(temperature).terms(lambda _images: logits, batch_of(stored_label(kind, k)))
    loss["soft_ce"].backward()
    q = np.exp(LOGITS / temperature)
    q /= q.sum(-1, keepdims=True)
    wanted = published_label(kind, k)
    expected = -(wanted * np.log(q)).sum() / B
    assert float(loss["soft_ce"].detach()) == pytest.approx(expected, rel=1e-5)
    slope = (q - wanted) / temperature / B  # neither T^2 nor a hard term
    np.testing.assert_allclose(logits.grad, slope, rtol=1e-4, atol=1e-6)


def between(sure):
    """Thresholds: one crop below, two in the hard region, one kept, one above."""
    rising = np.sort(sure)
    return ((rising[1:] + rising[:-1]) / 2)[[0, 2, 3]]


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_mixed_labels_are_those_of_the_two_crops_for_fkd_ferkd_and_meal(kind):
    label, config = stored_label("marginal_smoothing", 5), MixConfig(kind=kind)
    wanted, target = published_label("marginal_smoothing", 5), [3, 1, 4, 1, 5]
    mixed = mix_images(batch_of(label).images, config, 1, torch.Generator().manual_seed(8))
    own, partner = mixed.share, mixed.partner.numpy()
    log_q = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    logits = torch.tensor(LOGITS)

    def run(method):
        return method.terms(lambda _images: logits, batch_of(label, target))

    both = own * wanted + (1 - own) * wanted[partner]
    expected = -(both * log_q).sum() / B
    assert float(run(FKD(1.0, config, 1, 8))["soft_ce"]) == pytest.approx(expected, rel=1e-5)

    sure = DENSE.max(-1)
    low, middle, top = between(sure)
    adapted = wanted.copy()
    for b in range(B):
        if low <= sure[b] < middle:
            adapted[b] = 0.3 / (C - 1)
            adapted[b, target[b]] = 0.7
    rows = -((own * adapted + (1 - own) * adapted[partner]) * log_q).sum(-1)
    counts = (sure >= low) & (sure <= top)
    assert 0 < counts.sum() < B and (adapted != wanted).any()
    ferkd = FerKD(FerkdConfig(low=low, middle=middle, top=top, epsilon=0.3), 1.0, config, 1, 8)
    assert float(run(ferkd)["soft_ce"]) == pytest.approx(rows[counts].mean(), rel=1e-5)

    torch.manual_seed(2)
    meal = MealV2(MealConfig(), C, 1.0, config, 1, 8)
    found = run(meal)
    weights = [(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
               for layer in meal.discriminator.layers]  # fmt: skip

    def told(probs):
        for weight, bias in weights:
            probs = np.maximum(probs @ weight.T + bias, 0)
        return 1 / (1 + np.exp(-probs))

    student, teacher = told(np.exp(log_q)), told(both)
    cross = [*np.log(student[:, 0]), *np.log(1 - student[:, 1]), *np.log(1 - teacher[:, 0]),
             *np.log(teacher[:, 1])]  # fmt: skip
    assert float(found["soft_ce"]) == pytest.approx(expected, rel=1e-5)
    assert float(found["discriminator"].detach()) == pytest.approx(-np.mean(cross), rel=1e-4)


def test_ferkd_is_its_four_cases_by_hand_and_its_gradient_is_theirs():
    sure = DENSE.max(-1)
    low, middle, top = between(sure)
    target = [3, 1, 4, 1, 5]
    logits = torch.tensor(LOGITS, dtype=torch.float32, requires_grad=True)
    method = FerKD(FerkdConfig(low=low, middle=middle, top=top, epsilon=0.1))
    label = stored_label("full", None)
    method.terms(lambda _images: logits, batch_of(label, target))["soft_ce"].backward()
    q = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    counts = (sure >= low) & (sure <= top)
    wanted = DENSE.copy()
    for b in np.flatnonzero((sure >= low) & (sure < middle)):
        wanted[b] = 0.1 / (C - 1)
        wanted[b, target[b]] = 0.9
    slope = (q - wanted) * counts[:, None] / counts.sum()
    np.testing.assert_allclose(logits.grad, slope, rtol=1e-4, atol=1e-6)
    assert not logits.grad[~torch.tensor(counts)].any()
