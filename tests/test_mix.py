"""Mixup, CutMix and SelfMix against their definitions written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import UsageError
from trainer.batch import Batch, TopKTarget
from trainer.losses import dense_probs
from trainer.method_config import MixConfig
from trainer.methods import FKD
from trainer.mix import cut_box, mix_images


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=8, side=6):
    """Crop i is filled with the number i."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, side, side).clone()


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["mixup", "cutmix", "both"]))
@settings(max_examples=60)
def test_a_mixed_crop_has_the_stated_share_of_its_own(seed, kind):
    mixed = mix_images(images(), MixConfig(kind=kind), 1, chance(seed))
    assert mixed is not None
    assert 0 <= mixed.share <= 1
    own = torch.arange(8.0)
    expected = mixed.share * own + (1 - mixed.share) * own[mixed.partner]
    np.testing.assert_allclose(mixed.images.mean(dim=(1, 2, 3)), expected, atol=1e-5)
    assert sorted(mixed.partner.tolist()) == list(range(8))


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), share=st.floats(0, 1),
    across=st.floats(0, 0.999), along=st.floats(0, 0.999),
)  # fmt: skip
@settings(max_examples=100)
def test_cutmix_boxes_lie_in_the_image_and_have_the_papers_sides(
    height, width, share, across, along
):
    top, bottom, left, right = cut_box(height, width, share, across, along)
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    side = math.sqrt(1 - share)
    assert bottom - top <= int(height * side)
    assert right - left <= int(width * side)


def test_selfmix_partners_are_other_crops_of_the_same_image():
    draws = chance()
    for _ in range(20):
        mixed = mix_images(images(12), MixConfig(kind="mixup", partner="image"), 4, draws)
        rows = torch.arange(12)
        assert (mixed.partner // 4 == rows // 4).all()
        assert (mixed.partner != rows).all()


def test_no_mixing_changes_nothing_and_draws_nothing():
    before, draws = images(), chance()
    assert mix_images(before, MixConfig(), 1, draws) is None
    assert torch.equal(before, images())
    assert torch.equal(draws.get_state(), chance().get_state())


def test_both_chooses_each_about_as_often_as_asked():
    draws = chance(1)
    config = MixConfig(kind="both", switch_prob=0.25, prob=0.5)
    kinds = [mix_images(images(4, 32), config, 1, draws) for _ in range(400)]
    done = [m for m in kinds if m is not None]
    cut = sum(bool((m.images[:, 0] == m.images[:, 0].round()).all()) for m in done)
    assert 150 < len(done) < 250
    assert 0.15 < cut / len(done) < 0.4


def test_the_loss_of_a_mixed_batch_is_that_of_the_mixed_label():
    rng = np.random.default_rng(5)
    probs = np.sort(rng.dirichlet(np.ones(5), 8))[:, ::-1] * 0.9
    index = np.stack([rng.permutation(10)[:5] for _ in range(8)])
    label = TopKTarget(torch.tensor(index), torch.tensor(probs.copy()), torch.full((8,), 0.1))
    logits = torch.tensor(rng.normal(0, 2, (8, 10)))
    batch = Batch(images(), torch.zeros(8, dtype=torch.int64), label)
    method = FKD(1.0, MixConfig(kind="mixup"), 1, seed=3)
    found = method.terms(lambda _images: logits, batch)["soft_ce"]
    mixed = mix_images(images(), MixConfig(kind="mixup"), 1, chance(3))
    dense = dense_probs(label, 10)
    wanted = mixed.share * dense + (1 - mixed.share) * dense[mixed.partner]
    expected = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_nothing_is_mixed_in_the_last_epochs_if_so_asked():
    method = FKD(1.0, MixConfig(kind="cutmix", off_epochs=5), 1, seed=3)
    label = TopKTarget(torch.zeros(8, 1).long(), torch.ones(8, 1), torch.zeros(8))
    mixed = []
    for epochs_left in (7, 6, 5, 1):
        method.begin_pass(epochs_left)
        batch = Batch(images(), torch.zeros(8, dtype=torch.int64), label)
        mixed.append(method.mix(batch) is not None)
    assert mixed == [True, True, False, False]


@pytest.mark.parametrize(
    "values",
    [
        {"off_epochs": -1},
        {"kind": "mix"},
        {"prob": 1.5},
        {"cutmix_alpha": 0.0},
        {"partner": "class"},
    ],
)
def test_impossible_settings_are_refused_with_the_value(values):
    with pytest.raises(UsageError, match="expected"):
        MixConfig(**values)
