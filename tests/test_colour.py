"""Colour draws, lighting and erasing: torchvision's arithmetic and distributions, in integers."""

from __future__ import annotations

import colorsys
import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomErasing
from torchvision.transforms import functional as reference

from storage import colour
from storage.augment import Augment, augment_from_json
from storage.colour_draws import ORDERS, PCA_VALUES, PCA_VECTORS, ColourJitter, Lighting
from storage.counter import philox_words
from storage.erasing import GRID, Erasing
from storage.errors import FormatVersion, UsageError
from storage.randaugment import RandAugment
from storage.views import RandomResizedCrop

DIGEST = hashlib.sha256(b"an image").digest()
KDEP = ColourJitter(brightness=0.1, contrast=0.1, saturation=0.1)
STRONG = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
OPERATIONS = (RandAugment(), STRONG, Lighting(), Erasing())


def picture(seed: int, side: int = 48) -> np.ndarray:
    """Noise, or a smooth ramp of colours with little noise, as photos have."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    y, x = np.mgrid[:side, :side]
    slopes = rng.uniform(-2, 2, (3, 2))
    planes = [rng.integers(40, 216) + a * x + b * y for a, b in slopes]
    noisy = np.stack(planes, axis=-1) + rng.normal(0, 2, (side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def by_torchvision(function, pixels: np.ndarray, amount: float) -> np.ndarray:
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return function(tensor, amount).permute(1, 2, 0).numpy()


def differences(ours, theirs) -> tuple[int, float]:
    """(largest, mean) in levels."""
    wrong = np.abs(ours.astype(int) - theirs.astype(int))
    return int(wrong.max()), float(wrong.mean())


@pytest.mark.parametrize(
    ("ours", "theirs", "unit", "values", "mean"),
    [
        (colour.brightness, reference.adjust_brightness, 256, (0, 512), 0.0),
        (colour.contrast, reference.adjust_contrast, 256, (0, 512), 1e-4),
        (colour.saturation, reference.adjust_saturation, 256, (0, 512), 1e-4),
        (colour.hue, reference.adjust_hue, 1536, (-768, 768), 5e-3),
    ],
)
def test_each_step_is_torchvision_s_to_a_level(ours, theirs, unit, values, mean):
    rng = np.random.default_rng(0)
    found = []
    for seed in range(40):
        pixels, amount = picture(seed), int(rng.integers(values[0], values[1] + 1))
        expected = by_torchvision(theirs, pixels, amount / unit)
        found.append(differences(ours(pixels, amount), expected))
    largest, means = zip(*found, strict=True)
    assert max(largest) <= (1 if mean else 0)
    assert np.mean(means) <= mean


def test_a_whole_jitter_is_torchvision_s_to_two_levels():
    """The same four steps in the drawn order, by torchvision on a uint8 tensor."""
    steps = (
        reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation,
        reference.adjust_hue,
    )  # fmt: skip
    draws = Augment((STRONG,)).draw(3, DIGEST, 0, 60)
    found = []
    for seed, draw in enumerate(draws):
        pixels = expected = picture(seed)
        for step in ORDERS[draw[0]]:
            expected = by_torchvision(
                steps[step], expected, draw[1 + step] / (1536 if step == 3 else 256)
            )
        found.append(differences(STRONG.apply(pixels, draw), expected))
    largest, means = zip(*found, strict=True)
    assert max(largest) <= 2
    assert np.mean(means) <= 5e-3


@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(-768, 768))
def test_a_turned_hue_is_the_float_one_s_nearest_level_or_its_neighbour(rgb, amount):
    h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in rgb))
    exact = np.array(colorsys.hsv_to_rgb((h + amount / 1536) % 1, s, v)) * 255
    found = colour.hue(np.array(rgb, np.uint8).reshape(1, 1, 3), amount).ravel()
    assert (np.abs(found - exact) < 1.01).all()  # torchvision rounds down


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_neutral_amounts_change_nothing(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    for step in (colour.brightness, colour.contrast, colour.saturation):
        assert np.array_equal(step(pixels, 256), pixels)
    assert np.array_equal(colour.hue(pixels, 0), pixels)
    assert np.array_equal(colour.hue(pixels, 1536), pixels)  # a whole turn, all the way through
    assert np.array_equal(colour.add(pixels, np.zeros(3, np.int16)), pixels)


def test_jitter_s_factors_are_uniform_in_their_range_and_orders_equally_frequent():
    draws = Augment((STRONG,)).draw(0, DIGEST, 0, 24_000)
    assert draws[:, 1:].min(axis=0).tolist() == [154, 154, 154, -154]
    assert draws[:, 1:].max(axis=0).tolist() == [358, 358, 358, 154]
    orders = np.bincount(draws[:, 0], minlength=24)
    assert orders.min() > 1000 - 6 * 31 and orders.max() < 1000 + 6 * 31  # 6 deviations
    for column, values in ((1, 205), (4, 309)):
        expected = len(draws) / values
        counts = np.bincount(draws[:, column] - draws[:, column].min(), minlength=values)
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - (values - 1)) < 6 * math.sqrt(2 * values)


def test_steps_of_no_strength_take_no_place_in_the_order():
    draws = Augment((KDEP,)).draw(0, DIGEST, 0, 600)
    assert (draws[:, 4] == 0).all()  # no hue
    assert {ORDERS[order][3] for order in draws[:, 0]} == {3}
    assert len(set(draws[:, 0].tolist())) == 6  # 3! orders of the others
    assert draws[:, 1].min() >= 230 and draws[:, 1].max() <= 282


def test_lighting_has_the_covariance_of_its_formula():
    """Krizhevsky et al. 2012: [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T with a normal of 0.05."""
    draws = Augment((Lighting(sigma=0.5),)).draw(0, DIGEST, 0, 200_000).astype(float)
    vectors, values = np.array(PCA_VECTORS), np.array(PCA_VALUES)
    wanted = vectors @ np.diag((0.5 * values * 255) ** 2) @ vectors.T
    # rounding to whole levels adds 1/12 to each variance
    assert np.allclose(np.cov(draws.T), wanted + np.eye(3) / 12, rtol=0.02)
    assert (np.abs(draws.mean(axis=0)) < 6 * draws.std(axis=0) / math.sqrt(len(draws))).all()


def test_lighting_is_as_good_as_normal():
    draws = Augment((Lighting(sigma=1.0),)).draw(0, DIGEST, 0, 200_000)[:, 0].astype(float)
    wanted = 255 * math.sqrt(sum((v * p) ** 2 for v, p in zip(PCA_VALUES, PCA_VECTORS[0],
                                                              strict=True)))  # fmt: skip
    levels = np.arange(-120, 121)
    cdf = [0.5 * (1 + math.erf((x + 0.5) / wanted / math.sqrt(2))) for x in levels]
    distance = np.abs(np.searchsorted(np.sort(draws), levels, side="right") / len(draws) - cdf)
    assert distance.max() < 0.005


def test_lighting_adds_its_offsets_and_stops_at_black_and_white():
    pixels = np.array([[[0, 128, 254]]], np.uint8)
    assert Lighting().apply(pixels, np.array([-3, 4, 5], np.int16)).tolist() == [[[0, 132, 255]]]


def kolmogorov(a, b) -> tuple[float, float]:
    grid = np.union1d(a, b)
    cdfs = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    critical = math.sqrt(-math.log(1e-6 / 2) / 2) * math.sqrt(1 / len(a) + 1 / len(b))
    return np.abs(cdfs[0] - cdfs[1]).max(), critical


def test_erased_rectangles_are_distributed_as_torchvision_s():
    size = 1024  # large, so that its rounding to pixels is as fine as ours
    image = torch.empty(3, size, size)
    torch.manual_seed(0)
    arguments = ([0.02, 0.33], [0.3, 3.3])
    boxes = [RandomErasing.get_params(image, *arguments, [0.0])[:4] for _ in range(3000)]
    theirs = np.array(boxes) / size
    ours = Augment((Erasing(probability=1.0),)).draw(0, DIGEST, 0, 30_000) / GRID
    for name, of in {
        "top": lambda b: b[:, 0], "left": lambda b: b[:, 1], "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3], "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 2] / b[:, 3],
    }.items():  # fmt: skip
        distance, critical = kolmogorov(of(ours), of(theirs))
        assert distance <= critical, name


def test_rectangles_are_erased_with_their_probability_and_filled_whole():
    operation = Erasing(probability=0.25, fill=(1, 2, 3))
    draws = Augment((operation,)).draw(0, DIGEST, 0, 20_000)
    assert abs((draws[:, 2] > 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20_000)
    pixels = picture(1, 32)
    nothing, draw = np.zeros(4, np.int16), np.array([1024, 0, 2048, 1000], np.int16)
    assert np.array_equal(operation.apply(pixels, nothing), pixels)
    erased = operation.apply(pixels, draw)  # rows 8 to 23, columns 0 to 7.8
    assert (erased[8:24, :8] == (1, 2, 3)).all()
    erased[8:24, :8] = pixels[8:24, :8]
    assert np.array_equal(erased, pixels)


@given(st.integers(0, 60), st.integers(0, 30), st.sampled_from(OPERATIONS))
def test_a_draw_does_not_depend_on_what_is_drawn_with_it(first, count, operation):
    whole = Augment(OPERATIONS).draw(3, DIGEST, 0, 90)
    part = Augment(OPERATIONS).draw(3, DIGEST, first, count)
    assert np.array_equal(part, whole[first : first + count])
    place = sum(o.columns for o in OPERATIONS[: OPERATIONS.index(operation)])
    alone = Augment((operation,)).draw(3, DIGEST, first, count)
    assert np.array_equal(alone, part[:, place : place + operation.columns])


def test_draws_are_those_of_the_first_release():
    """Known answers: a change here would part the extension of a store from its beginning."""
    found = {o.kind: Augment((o,)).draw(0, DIGEST, 0, 2).tolist() for o in OPERATIONS}
    assert found == KNOWN


def test_every_operation_s_words_are_its_own_stream():
    boxes = RandomResizedCrop().draw(0, DIGEST, 375, 500, 0, 4).box
    Augment(OPERATIONS).draw(0, DIGEST, 0, 4)
    assert np.array_equal(boxes, RandomResizedCrop().draw(0, DIGEST, 375, 500, 0, 4).box)
    streams = [philox_words(f"augment/{o.kind}", 0, DIGEST, 0, 4).tobytes() for o in OPERATIONS]
    streams.append(philox_words("random-resized-crop", 0, DIGEST, 0, 4).tobytes())
    assert len(set(streams)) == len(streams)


def test_draws_of_the_settings_are_never_faults_and_others_are():
    augment = Augment(OPERATIONS)
    draws = augment.draw(0, DIGEST, 0, 500)
    assert not augment.faults(draws).any()
    wrong = {
        0: 14, 1: 10, 4: 24, 5: 359, 8: 155, 9: 256, 12: -1, 14: GRID + 1,
    }  # fmt: skip
    for column, value in wrong.items():
        damaged = draws.copy()
        damaged[7, column] = value
        assert np.flatnonzero(augment.faults(damaged)).tolist() == [7], column
    flat = np.zeros((1, 4), np.int16)
    flat[0, 2] = 5  # a height without a width
    assert Erasing().faults(flat).all()


def test_augmentations_survive_json_and_unknown_ones_are_refused():
    augment = Augment(OPERATIONS)
    assert augment_from_json(augment.to_json()) == augment
    assert augment_from_json(None) is None
    with pytest.raises(FormatVersion, match="newer teachonce"):
        augment_from_json([{"kind": "cutmix", "version": 1}])
    with pytest.raises(FormatVersion, match="version 2"):
        augment_from_json([{**Augment((KDEP,)).to_json()[0], "version": 2}])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ColourJitter(brightness=-0.1),
        lambda: ColourJitter(contrast=7.0),
        lambda: ColourJitter(brightness=0.1, hue=0.6),
        lambda: ColourJitter(),
        lambda: ColourJitter(brightness=0.001),  # less than one step
        lambda: Lighting(sigma=0.0),
        lambda: Lighting(sigma=math.nan),
        lambda: Erasing(probability=0.0),
        lambda: Erasing(scale=(0.5, 0.4)),
        lambda: Erasing(ratio=(0.0, 1.0)),
        lambda: Erasing(fill=(0, 0, 256)),
        lambda: Augment(()),
        lambda: Augment((KDEP, STRONG)),
    ],
)
def test_settings_out_of_range_are_misuse(make):
    with pytest.raises(UsageError, match="expected"):
        make()


KNOWN = {
    "randaugment": [[5, -9, 8, 9], [8, 9, 5, -9]],
    "colour-jitter": [[21, 293, 171, 218, -33], [4, 172, 287, 233, -114]],
    "lighting": [[0, 0, 0], [-1, -1, -1]],
    "erasing": [[0, 0, 0, 0], [1659, 2171, 1410, 697]],
}
