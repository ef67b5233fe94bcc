"""Vectors in 8, 16 and 32 bits against float64, and the kinds' formulas against their papers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.errors import UsageError
from storage.targets.dense import dense_record, stored_logits
from storage.targets.features import (
    decode_features,
    feature_record,
    power_scale,
    power_unscale,
    project_features,
    stored_features,
)
from storage.targets.heads import (
    HeadSettings,
    HeadSpec,
    head_logits,
    head_record,
    joint_targets,
    rotation_rows,
)
from storage.targets.record import Constant, TargetRecord, VectorPart
from storage.targets.tokens import decode_tokens, split_tokens, token_record
from storage.targets.vectors import decode_vectors, encode_vectors, vector_faults
from tests.target_helpers import WIDTH, make_basis, make_targets

VECTORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
    elements=st.floats(-(2.0**126), 2.0**126, width=32),
)


def _part(values: np.ndarray, encoding: str) -> VectorPart:
    return VectorPart(name="v", shape=values.shape[1:], encoding=encoding)


@settings(max_examples=200)
@given(VECTORS)
def test_int8_errs_by_half_a_step_of_each_vector(values: np.ndarray) -> None:
    part = _part(values, "int8")
    arrays = encode_vectors(part, values)
    exact = values.astype(np.float64)
    scale = np.abs(exact).max(axis=-1, keepdims=True) / 127
    error = np.abs(decode_vectors(part, arrays).astype(np.float64) - exact)
    assert (error <= np.where(scale < 2.0**-126, np.abs(exact), 0.50002 * scale)).all()
    assert not any(bad.any() for _, bad, _ in vector_faults(part, arrays))


@settings(max_examples=200)
@given(VECTORS)
def test_affine8_errs_by_half_a_step_of_each_vectors_range(values: np.ndarray) -> None:
    part = _part(values, "affine8")
    arrays = encode_vectors(part, values)
    exact = values.astype(np.float64)
    extent = exact.max(axis=-1, keepdims=True) - exact.min(axis=-1, keepdims=True)
    largest = np.abs(exact).max(axis=-1, keepdims=True)
    error = np.abs(decode_vectors(part, arrays).astype(np.float64) - exact)
    bound = 0.5001 * extent / 255 + 2.0**-23 * largest
    assert (error <= np.where(extent / 255 < 2.0**-125, extent, bound)).all()
    assert not any(bad.any() for _, bad, _ in vector_faults(part, arrays))


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-65504, 65504, width=32)))
def test_fp16_errs_by_its_rounding_and_fp32_not_at_all(values: np.ndarray) -> None:
    half, whole = _part(values, "fp16"), _part(values, "fp32")
    error = np.abs(decode_vectors(half, encode_vectors(half, values)).astype(np.float64) - values)
    assert (error <= np.maximum(2.0**-11 * np.abs(values.astype(np.float64)), 2.0**-25)).all()
    assert np.array_equal(decode_vectors(whole, encode_vectors(whole, values)), values)


def test_halves_are_rounded_to_even() -> None:
    part = VectorPart(name="v", shape=(4,), encoding="int8")
    values = np.array([[127, 0.5, 1.5, -2.5]], np.float32)  # a scale of exactly 1
    assert encode_vectors(part, values)["v"].tolist() == [[127, 0, 2, -2]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ["int8", "affine8", "fp16", "fp32"])
def test_values_that_are_not_finite_are_refused(bad: float, encoding: str) -> None:
    part = VectorPart(name="v", shape=(2,), encoding=encoding)
    with pytest.raises(UsageError, match="not finite"):
        encode_vectors(part, np.array([[1, bad]], np.float32))


def test_values_beyond_an_encoding_are_refused_with_the_way_out() -> None:
    large = np.array([[1e5, 1]], np.float32)
    with pytest.raises(UsageError, match="use fp32"):
        encode_vectors(VectorPart(name="v", shape=(2,), encoding="fp16"), large)
    with pytest.raises(UsageError, match=r"beyond 2\^126"):
        encode_vectors(VectorPart(name="v", shape=(2,), encoding="int8"), large * np.float32(3e33))


def test_a_scale_that_is_not_its_vectors_is_found() -> None:
    part = VectorPart(name="v", shape=(3,), encoding="int8")
    arrays = encode_vectors(part, np.array([[1, 2, 3]], np.float32))
    arrays["v"][0, 2] = 100
    assert [what for _, bad, what in vector_faults(part, arrays) if bad.any()] == [
        "has a scale that is not its vector's"
    ]


def test_power_scaling_gives_kdeps_values() -> None:
    """The vector of the method card, T = 0.1, n = 3."""
    z = [-0.8, -0.1, 0, 0.0125, 0.1, 2.7]
    assert power_scale(np.array(z), 0.1, 3) == pytest.approx([-2, -1, 0, 0.5, 1, 3], rel=1e-6)


@given(
    hnp.arrays(np.float32, 8, elements=st.floats(-100, 100, width=32)),
    st.sampled_from([(0.1, 3), (0.03, 3), (0.2, 2), (1.0, 1)]),
)
def test_power_scaling_is_undone(z: np.ndarray, scaling: tuple[float, float]) -> None:
    back = power_unscale(power_scale(z, *scaling), *scaling)
    assert back == pytest.approx(z, rel=1e-5, abs=1e-30)


def test_z_in_8_bits_is_refused() -> None:
    basis, spectrum = make_basis()
    with pytest.raises(UsageError, match="z as int8; expected fp16 or fp32"):
        feature_record(
            name="z", teacher="toy", views=1, layer="l", mean=np.zeros(WIDTH, np.float32),
            basis=basis, spectrum=spectrum, space="z", encoding="int8", basis_images=1,
        )  # fmt: skip


def test_stored_z_is_read_as_y_of_any_temperature_and_power() -> None:
    basis, spectrum = make_basis()
    rng = np.random.default_rng(0)
    mean = rng.normal(size=WIDTH).astype(np.float32)
    record = feature_record(
        name="z", teacher="toy", views=1, layer="l", mean=mean, basis=basis, spectrum=spectrum,
        space="z", encoding="fp32", basis_images=1,
    )  # fmt: skip
    features = rng.normal(size=(6, WIDTH)).astype(np.float32)
    z = (features.astype(np.float64) - mean) @ basis.astype(np.float64)
    stored = {"value": stored_features(record, project_features(features, mean, basis))}
    y = decode_features(record, stored, space="y", temperature=0.2, power=2)
    assert decode_features(record, stored) == pytest.approx(z, rel=1e-4, abs=1e-5)
    assert y == pytest.approx(np.sign(z) * np.abs(z / 0.2) ** 0.5, rel=1e-3, abs=1e-3)


def test_stored_y_is_retargeted_through_z() -> None:
    record = make_targets()["features/pooled"]
    z = np.array([[0.8, -0.1, 0.0, 2.7, 0.0125]], np.float32)
    y = {"value": stored_features(record, z)}
    assert decode_features(record, y, space="z") == pytest.approx(z, rel=1e-5)
    assert decode_features(record, y, temperature=0.2, power=2) == pytest.approx(
        np.sign(z) * np.abs(z / 0.2) ** 0.5, rel=1e-5
    )


def test_rotated_rows_are_image_major_and_joint_classes_4y_plus_r() -> None:
    """HSAKD's own example: y = [2, 0] is [8, 9, 10, 11, 0, 1, 2, 3]."""
    assert joint_targets(np.array([2, 0]), 4).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert joint_targets(np.array([2, 0]), 1).tolist() == [2, 0]
    values = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    rows = rotation_rows(values)
    assert all(np.array_equal(rows[4 * n + r], values[n, r]) for n in range(2) for r in range(4))


def test_head_logits_are_the_linear_layers_of_the_pooled_input() -> None:
    rng = np.random.default_rng(1)
    weights = {
        "a_weight": rng.normal(size=(8, 3)).astype(np.float32),
        "a_bias": rng.normal(size=8).astype(np.float32),
    }
    record = head_record(
        name="h", teacher="toy", views=1, rotations=4, weights=weights,
        heads=[HeadSpec(name="a", width=3, classes=8, encoding="pooled", stored="fp32")],
    )  # fmt: skip
    pooled = rng.normal(size=(5, 1, 4, 3)).astype(np.float32)
    logits = head_logits(record, {"a": pooled, **weights}, "a")
    exact = np.einsum("nvrd,cd->nvrc", pooled.astype(float), weights["a_weight"].astype(float))
    assert logits == pytest.approx(exact + weights["a_bias"], rel=1e-4, abs=1e-4)
    with pytest.raises(UsageError, match="need the constant a_weight"):
        head_logits(record, {"a": pooled}, "a")
    with pytest.raises(UsageError, match="no head 'b'"):
        head_logits(record, {"a": pooled}, "b")


def test_other_rotation_conventions_are_refused() -> None:
    head = HeadSpec(name="a", width=3, classes=8, encoding="pooled", stored="int8")
    with pytest.raises(UsageError, match="1 or 4"):
        HeadSettings(rotations=2, heads=(head,))
    with pytest.raises(UsageError, match="rotations"):
        HeadSettings(rotations=4, heads=(head,), direction="cw")


def test_tokens_of_full_rank_in_fp32_come_back() -> None:
    record = token_record(
        name="t", teacher="toy", views=1, layer="l", grid=(2, 2), width=6,
        mean_encoding="fp32", remainder_encoding="fp32",
    )  # fmt: skip
    tokens = np.random.default_rng(2).normal(3, 1, (5, 1, 4, 6)).astype(np.float32)
    parts = split_tokens(tokens)
    arrays = {n: a for p in record.parts for n, a in encode_vectors(p, parts[p.name]).items()}
    decoded = {part.name: decode_vectors(part, arrays) for part in record.parts}
    error = np.abs(decode_tokens(record, decoded).astype(float) - tokens)
    assert (error <= 2.0**-23 * np.abs(tokens)).all()  # m + (t - m) in float32


def test_the_remainder_of_tokens_is_the_alternative_view_of_scalekd() -> None:
    """Removing the DC term of a 2-D DCT takes the mean off; the basis then keeps a projection."""
    basis, _ = make_basis()
    tokens = np.random.default_rng(5).normal(2, 1, (3, 6, WIDTH))
    parts = split_tokens(tokens.astype(np.float32), basis)
    spectrum = np.fft.fft2(tokens.reshape(3, 2, 3, WIDTH), axes=(1, 2))
    spectrum[:, 0, 0] = 0
    without_dc = np.fft.ifft2(spectrum, axes=(1, 2)).real.reshape(3, 6, WIDTH)
    assert parts["remainder"] == pytest.approx(without_dc @ basis.astype(float), abs=1e-5)
    assert parts["mean"] == pytest.approx(tokens.mean(axis=1), rel=1e-5)


def test_centred_logits_have_no_mean_and_the_same_softmax() -> None:
    record = dense_record(name="d", teacher="toy", views=1, classes=4, centred=True)
    logits = np.random.default_rng(6).normal(5, 2, (3, 4)).astype(np.float32)
    stored = stored_logits(record, logits).astype(float)
    assert np.abs(stored.mean(axis=-1)).max() < 1e-6
    assert stored - logits == pytest.approx(np.repeat((stored - logits)[:, :1], 4, axis=1))


def test_a_record_comes_back_from_its_json() -> None:
    for record in make_targets().values():
        assert TargetRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pictures"}, "expected features, heads, tokens, dense"),
        ({"name": "../x"}, "can't name a folder"),
        ({"views": 0}, "expected 1 or more"),
        ({"parts": ()}, "has no parts"),
        ({"constants": {"value_scale": Constant.of(np.zeros(1, np.float32))}}, "two arrays"),
        ({"files": {"zarr.json": "ab" * 32}}, "only tokens|file 'zarr.json'"),
    ],
)
def test_records_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    values = make_targets()["features/pooled"]
    fields = {name: getattr(values, name) for name in values.__dataclass_fields__}
    with pytest.raises(UsageError, match=message):
        TargetRecord(**{**fields, **change})
