"""The pixel contract's definition: what is decoded how, what is refused."""

import io

import numpy as np
import pytest
from conftest import make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.errors import BadImage, UsageError
from storage.pixels import PixelContract, cut_view, decode_rgb, pad_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image, kind="PNG", **options):
    return np.asarray(decode_rgb(encoded(image, kind, **options)))


def test_sixteen_bit_gray_keeps_its_high_byte():
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pixels = decoded(Image.fromarray(values))
    assert np.array_equal(pixels[..., 0], values >> 8)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_gray_palette_and_alpha_become_rgb():
    image = make_image(1, 20, 30)
    gray = image.convert("L")
    assert np.array_equal(decoded(gray), np.repeat(np.asarray(gray)[..., None], 3, -1))
    palette = image.quantize(16)
    assert np.array_equal(decoded(palette), np.asarray(palette.convert("RGB")))
    alpha = image.copy()
    alpha.putalpha(90)
    assert np.array_equal(decoded(alpha), np.asarray(image))


def test_cmyk_is_converted_as_pillow_does():
    image = make_image(2, 24, 24).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    assert np.array_equal(
        np.asarray(decode_rgb(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_exif_orientation_is_not_applied():
    image = make_image(3, 20, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decoded(image, "JPEG", exif=exif).shape == (20, 40, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a readable image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "not a readable image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode_rgb(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_refused_never_filled(kind):
    data = encoded(make_image(4, 60, 60), kind)
    with pytest.raises(BadImage):
        decode_rgb(data[: len(data) // 2])


def test_a_picture_with_absurd_sides_is_refused_before_decoding():
    header = encoded(Image.new("1", (70_000, 8)))
    with pytest.raises(BadImage, match="70000x8"):
        decode_rgb(header)


@given(seed=st.integers(0, 999), size=st.sampled_from([8, 17, 32]), flip=st.booleans())
@settings(max_examples=30)
def test_a_view_reads_nothing_outside_its_box(seed, size, flip):
    rng = np.random.default_rng([7, seed])
    height, width = (int(v) for v in rng.integers(1, 40, 2))
    top, left = (int(v) for v in rng.integers(0, 20, 2))
    inside = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def view(surroundings):
        canvas = np.full((height + 40, width + 40, 3), surroundings, np.uint8)
        canvas[top : top + height, left : left + width] = inside
        return cut_view(Image.fromarray(canvas), (top, left, height, width), flip, size)

    assert np.array_equal(view(0), view(255))


def test_a_view_of_equal_size_is_the_box_itself():
    image = make_image(5, 30, 30)
    pixels = np.asarray(image)
    assert np.array_equal(cut_view(image, (3, 5, 16, 16), False, 16), pixels[3:19, 5:21])
    assert np.array_equal(cut_view(image, (3, 5, 16, 16), True, 16), pixels[3:19, 5:21][:, ::-1])


def test_padding_is_black_and_even():
    image = make_image(6, 10, 12)
    padded = np.asarray(pad_image(image, 4))
    assert padded.shape == (18, 20, 3)
    assert np.array_equal(padded[4:-4, 4:-4], np.asarray(image))
    assert padded[:4].max() == padded[:, -4:].max() == 0


def test_an_unknown_contract_is_refused():
    with pytest.raises(UsageError, match="interpolation is 'area'"):
        PixelContract(interpolation="area")
    with pytest.raises(UsageError, match="install a newer"):
        PixelContract(version=2)
