"""KDEP's alignments and scalings against their definitions, written out in float64."""

import numpy as np
import pytest
import torch
from test_kdep import Flat

from storage.errors import UsageError
from storage.targets.features import feature_record
from trainer.batch import Batch
from trainer.method_config import KDEP_ALIGNMENTS, KDEP_SCALINGS, KdepConfig
from trainer.methods.kdep import KDEP
from trainer.methods.kdep_alignment import LEARNT, channel_deviations
from trainer.models.feature_tap import tap_feature

D, K, N = 16, 6, 400  # the teacher's width, the student's, crops that the basis is of


def teacher_features():
    """Raw features float64 [N, D] of channels that differ in mean and deviation."""
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) * rng.uniform(0.1, 3, D)
    return mixed + rng.normal(0, 2, D)


RAW = teacher_features()
MEAN = RAW.mean(0)
COVARIANCE = (RAW - MEAN).T @ (RAW - MEAN) / N
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)
BASIS, SPECTRUM = VECTORS[:, ::-1], np.sqrt(VALUES[::-1])
Z = (RAW - MEAN) @ BASIS


def store(rank=D, space="z"):
    """(record, constants) of features with `rank` components."""
    constants = {"mean": MEAN.astype(np.float32), "spectrum": SPECTRUM,
                 "basis": np.ascontiguousarray(BASIS[:, :rank], np.float32)}  # fmt: skip
    record = feature_record(name="pooled", teacher="t", views=1, layer="x", space=space,
                            encoding="fp16", basis_images=N, **constants)  # fmt: skip
    return record, constants.__getitem__


def method_of(config, rank=D, width=K, space="z", seed=0):
    record, constant = store(rank, space)
    tap = tap_feature(Flat(width), 8, "flat")
    torch.manual_seed(2)
    return KDEP(config, tap, record, constant, seed)


def pts(values):
    return np.sign(values) * (np.abs(values) / 0.1) ** (1 / 3)


def largest(values):
    return sorted(range(D), key=lambda c: (-values[c], c))[:K]


RANDOM = np.sort(np.random.default_rng(7).permutation(D)[:K])
ALIGNED = {
    "svd": Z[:, :K],
    "svd-bottom": Z[:, D - K :],
    "svd-middle": Z[:, K : 2 * K],
    "svd-random": Z[:, RANDOM],
    "channels-variance": RAW[:, largest(RAW.std(0))],
    "channels-mean": RAW[:, largest(np.abs(MEAN))],
    "channels-random": RAW[:, RANDOM],
    "nearest": RAW[:, [int(i * D / K) for i in range(K)]],
    "linear": Z,
    "conv1x1": RAW,
}


def test_every_alignment_has_its_definition_here():
    assert set(ALIGNED) == set(KDEP_ALIGNMENTS)
    assert set(SCALED) == set(KDEP_SCALINGS)


@pytest.mark.parametrize("scaling", ["none", "pts"])
@pytest.mark.parametrize("alignment", ALIGNED)
def test_a_student_is_asked_for_what_the_alignment_says(alignment, scaling):
    method = method_of(KdepConfig(alignment=alignment, scaling=scaling), seed=7)
    wanted = method.wanted(torch.from_numpy(Z.astype(np.float32))).double().numpy()
    expected = ALIGNED[alignment] if scaling == "none" else pts(ALIGNED[alignment])
    # the slope of the root is steep near 0: there float32's rounding of z shows
    near = np.abs(ALIGNED[alignment]) > 1e-3
    assert wanted.shape == expected.shape
    np.testing.assert_allclose(wanted[near], expected[near], rtol=2e-3, atol=1e-4)


S = SPECTRUM[:K]
STDS = RAW.std(0)
RATIO = STDS.max() / STDS.min()
SCALED = {
    "none": Z[:, :K],
    "pts": pts(Z[:, :K]),
    "relu": np.maximum(Z[:, :K], 0),
    "variance": Z[:, :K] / S,
    "variance-linear": Z[:, :K] / S * (1 + (S - S.min()) / (S.max() - S.min()) * (RATIO - 1)),
    "variance-channels": Z[:, :K] / S * np.sort(STDS)[::-1][:K],
}


@pytest.mark.parametrize("scaling", SCALED)
def test_components_are_scaled_as_the_ablation_says(scaling):
    method = method_of(KdepConfig(scaling=scaling))
    wanted = method.wanted(torch.from_numpy(Z.astype(np.float32))).double().numpy()
    near = np.abs(Z[:, :K]) > 1e-3
    np.testing.assert_allclose(wanted[near], SCALED[scaling][near], rtol=2e-3, atol=1e-4)


def test_matched_variances_are_one_and_those_of_the_teachers_channels():
    z = torch.from_numpy(Z.astype(np.float32))
    unit = method_of(KdepConfig(scaling="variance")).wanted(z).std(0, correction=0)
    torch.testing.assert_close(unit, torch.ones(K), rtol=1e-3, atol=0)
    channels = method_of(KdepConfig(scaling="variance-channels")).wanted(z).std(0, correction=0)
    np.testing.assert_allclose(channels, np.sort(STDS)[::-1][:K], rtol=1e-3)
    np.testing.assert_allclose(channel_deviations(store()[1]), STDS, rtol=1e-4)


@pytest.mark.parametrize("alignment", LEARNT)
def test_learnt_alignments_are_a_linear_layer_and_batch_norm_against_the_formula(alignment):
    method = method_of(KdepConfig(alignment=alignment, scaling="none", loss_weight=3.0))
    student = Flat(K)
    method._tap = tap_feature(student, 8, "flat")
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    batch = Batch(images, torch.zeros(5, dtype=torch.int64), None,
                  torch.from_numpy(Z[:5].astype(np.float32)))  # fmt: skip
    loss = method.terms(student, batch)["feature"]
    loss.backward()
    with torch.no_grad():
        weight, bias = student.conv.weight.double().flatten(1), student.conv.bias.double()
        feature = images.double().mean((2, 3)) @ weight.T + bias
        linear, norm = method.align
        mapped = feature @ linear.weight.double().T + linear.bias.double()
        mapped = (mapped - mapped.mean(0)) / (mapped.var(0, correction=0) + norm.eps).sqrt()
    expected = 3.0 * np.mean((mapped.numpy() - ALIGNED[alignment][:5]) ** 2)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert linear.weight.shape == (D, K) and linear.weight.grad.any()
    assert all(name.startswith("align.") for name in method.state_dict())


def test_random_choices_are_those_of_the_seed():
    z = torch.from_numpy(Z[:2].astype(np.float32))
    config = KdepConfig(alignment="channels-random", scaling="none")
    first, again, other = (method_of(config, seed=s).wanted(z) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("config", "rank", "width", "message"),
    [
        ({}, D, 20, r"have 20 components and features/pooled of the store 16, of a teacher that "
                    r"has 16: take a narrower student or a wider teacher"),
        ({"alignment": "nearest"}, D, 20, "have 20 components"),
        ({"alignment": "nearest"}, 8, K, "reads 16 components .* the store 8: label with "
                                         "--feature-rank 16"),
        ({"alignment": "svd-bottom"}, 8, K, "--feature-rank 16"),
        ({"alignment": "svd-middle"}, 8, K, "--feature-rank 12"),
        ({"alignment": "svd-middle"}, D, 9, "reads components 9 to 17, and the teacher has 16"),
        ({"alignment": "conv1x1"}, 8, K, "--feature-rank 16"),
        ({"scaling": "variance-channels"}, 8, K, "--feature-rank 16"),
    ],
)  # fmt: skip
def test_what_the_store_can_not_give_is_refused_with_the_way_out(config, rank, width, message):
    with pytest.raises(UsageError, match=message):
        method_of(KdepConfig(**config), rank, width)


def test_a_narrower_teacher_serves_a_learnt_alignment():
    method = method_of(KdepConfig(alignment="linear"), D, 20)
    assert method.align[0].weight.shape == (D, 20)


def test_only_z_serves_alignments_but_the_first_components():
    with pytest.raises(UsageError, match=r"starts from z, and features/pooled is y"):
        method_of(KdepConfig(alignment="channels-mean"), space="y")
    with pytest.raises(UsageError, match="scaling variance is asked for"):
        method_of(KdepConfig(scaling="variance"), space="y")
    with pytest.raises(UsageError, match="use an svd alignment"):
        KdepConfig(scaling="variance", alignment="nearest")
