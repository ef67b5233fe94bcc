"""TurboJPEG as it is called here decodes what Pillow decodes, to the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from odd_images import bad_images, encoded, good_images, smooth_pixels
from PIL import Image

from storage.errors import BadImage, UsageError
from storage.images import ImageStatus
from storage.pixels import decode_rgb
from trainer.replay import turbojpeg
from trainer.replay.encode import MODE_JPEG, MODE_RAW, encode_bytes

GOOD, BAD = good_images(), bad_images()
RAW_JPEGS = {"cmyk.jpg", "named_wrongly.jpg"}


@pytest.mark.parametrize("name", [name for name in GOOD if name.endswith(".jpg")])
def test_jpegs_are_kept_when_both_decoders_agree(name):
    image = encode_bytes(GOOD[name], check_all=True)
    expected = np.asarray(decode_rgb(GOOD[name]))
    assert image.status == ImageStatus.OK
    assert (image.height, image.width) == expected.shape[:2]
    if name in RAW_JPEGS:
        assert (image.mode, image.payload) == (MODE_RAW, expected.tobytes())
    else:
        assert (image.mode, image.payload) == (MODE_JPEG, GOOD[name])
        decoded, warned = turbojpeg.decode(GOOD[name], image.height, image.width)
        np.testing.assert_array_equal(decoded, expected)
        assert warned == image.warns


def test_a_warning_of_the_decoder_is_remembered():
    assert encode_bytes(GOOD["extraneous.jpg"], check_all=True).warns
    assert not encode_bytes(GOOD["420.jpg"]).warns


@pytest.mark.parametrize("name", [name for name in GOOD if not name.endswith(".jpg")])
def test_other_formats_become_the_contracts_pixels(name):
    image = encode_bytes(GOOD[name])
    assert image.mode == MODE_RAW
    assert image.payload == np.asarray(decode_rgb(GOOD[name])).tobytes()


def test_exif_rotation_is_not_applied():
    image = encode_bytes(GOOD["exif_rotated.jpg"])
    assert (image.width, image.height) == Image.open(io.BytesIO(GOOD["exif_rotated.jpg"])).size


def test_sixteen_bits_keep_their_high_byte():
    with Image.open(io.BytesIO(GOOD["sixteen_bit.png"])) as image:
        expected = np.asarray(image) >> 8
    payload = np.frombuffer(encode_bytes(GOOD["sixteen_bit.png"]).payload, np.uint8)
    np.testing.assert_array_equal(payload.reshape(40, 50, 3)[..., 1], expected)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_become_a_status_with_a_reason(name):
    image = encode_bytes(BAD[name])
    assert image.status == ImageStatus.UNREADABLE
    assert image.payload == b""
    assert image.problem


def test_wrong_sizes_and_broken_data_are_errors():
    data = encoded(Image.fromarray(smooth_pixels(20, 30)), "JPEG")
    with pytest.raises(BadImage, match="30x20, not 20x30"):
        turbojpeg.decode(data, 30, 20)
    with pytest.raises(BadImage):
        turbojpeg.decode(b"\xff\xd8" + bytes(50), 20, 30)


def test_a_missing_library_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(turbojpeg, "LIBRARY", "libnothing.so.0")
    with pytest.raises(UsageError, match="libturbojpeg0"):
        turbojpeg.TurboJPEG()
