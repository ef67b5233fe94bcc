"""The compiled resampler gives pillow-simd's bytes, whatever the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.pixels import cut_view
from trainer.replay.resample import SUPPORT, canvas_bytes, cut, weights

GARBAGE = 201


def as_canvas(pixels: np.ndarray) -> np.ndarray:
    """RGBX canvas whose unused bytes hold garbage."""
    height, width = pixels.shape[:2]
    canvas = np.full(int(canvas_bytes(height, width)), GARBAGE, np.uint8)
    canvas[: height * width * 4].reshape(height, width, 4)[..., :3] = pixels
    return canvas


def cut_compiled(pixels, box, flip, size, interpolation):
    out = np.empty((size, size, 3), np.uint8)
    cut(as_canvas(pixels), pixels.shape[1], *box, flip, SUPPORT[interpolation], out)
    return out


@st.composite
def cases(draw):
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    tall, wide = draw(st.integers(1, height)), draw(st.integers(1, width))
    box = (draw(st.integers(0, height - tall)), draw(st.integers(0, width - wide)), tall, wide)
    size = draw(st.integers(1, 130))
    seed = draw(st.integers(0, 2**32 - 1))
    return (height, width, seed), box, draw(st.booleans()), size


def noise(height, width, seed):
    """Extremes are frequent: overshoot of the bicubic filter must be clipped."""
    values = np.random.default_rng(seed).integers(-200, 456, (height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", sorted(SUPPORT))
@settings(max_examples=150)
@given(case=cases())
def test_any_view_equals_pillow_simd_bit_for_bit(interpolation, case):
    shape, box, flip, size = case
    pixels = noise(*shape)
    expected = cut_view(Image.fromarray(pixels), box, flip, size, interpolation)
    np.testing.assert_array_equal(cut_compiled(pixels, box, flip, size, interpolation), expected)


@pytest.mark.parametrize("length", [1, 2, 100, 223, 224, 225, 300, 448, 449, 897, 2500])
@pytest.mark.parametrize("interpolation", sorted(SUPPORT))
def test_the_training_size_equals_pillow_simd_at_each_precision_of_the_weights(
    interpolation, length
):
    pixels = noise(length, length // 2 + 1, 7)
    box = (0, 0, length, length // 2 + 1)
    expected = cut_view(Image.fromarray(pixels), box, False, 224, interpolation)
    np.testing.assert_array_equal(cut_compiled(pixels, box, False, 224, interpolation), expected)


def test_torch_uint8_antialiased_resize_agrees():
    pixels = noise(190, 170, 3)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    expected = torch.nn.functional.interpolate(
        tensor, (64, 64), mode="bilinear", antialias=True, align_corners=False
    )
    ours = cut_compiled(pixels, (0, 0, 190, 170), False, 64, "bilinear")
    np.testing.assert_array_equal(ours, expected[0].permute(1, 2, 0).numpy())


def test_pixels_outside_the_box_have_no_influence():
    pixels = noise(90, 80, 5)
    elsewhere = 255 - pixels
    elsewhere[20:61, 30:71] = pixels[20:61, 30:71]
    box = (20, 30, 41, 41)
    for interpolation in SUPPORT:
        np.testing.assert_array_equal(
            cut_compiled(pixels, box, False, 32, interpolation),
            cut_compiled(elsewhere, box, False, 32, interpolation),
        )


@pytest.mark.parametrize("size", [1, 10, 11, 32, 33, 224])
def test_nothing_is_written_beyond_the_view(size):
    guarded = np.full(size * size * 3 + 256, GARBAGE, np.uint8)
    out = guarded[128:-128].reshape(size, size, 3)
    pixels = noise(50, 50, 1)
    cut(as_canvas(pixels), 50, 0, 0, 50, 50, True, 1, out)
    assert (guarded[:128] == GARBAGE).all()
    assert (guarded[-128:] == GARBAGE).all()


def test_a_box_of_the_output_size_is_copied():
    pixels = noise(40, 40, 2)
    for interpolation in SUPPORT:
        ours = cut_compiled(pixels, (4, 8, 32, 32), False, 32, interpolation)
        np.testing.assert_array_equal(ours, pixels[4:36, 8:40])


def test_weights_of_every_output_sum_to_one_within_rounding():
    for length in (3, 224, 301, 5000):
        for support in SUPPORT.values():
            _, count, weight, precision = weights(length, 224, support)
            error = weight.astype(np.int64).sum(axis=1) / (1 << precision) - 1
            assert np.abs(error).max() <= count.max() / 2 / (1 << precision)
