"""Images of every kind that photo folders hold, good ones and bad ones."""

from __future__ import annotations

import ctypes
import io
from pathlib import Path

import numpy as np
from PIL import Image

TJSAMP_440, TJSAMP_411 = 4, 5  # turbojpeg.h; Pillow can't write these


def smooth_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Photo-like uint8 [height, width, 3]: gradients and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + seed) + np.cos(y / (4 + c)) for c in range(3)]
    pixels = 128 + 50 * np.stack(waves, axis=-1) + rng.normal(0, 12, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turbo_encoded(pixels: np.ndarray, subsampling: int) -> bytes:
    """A JPEG with a chroma subsampling that Pillow can't write."""
    library = ctypes.CDLL("libturbojpeg.so.0")
    library.tjInitCompress.restype = ctypes.c_void_p
    library.tjCompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_ulong), ctypes.c_int,
        ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.tjDestroy.argtypes = library.tjFree.argtypes = [ctypes.c_void_p]
    handle = library.tjInitCompress()
    data, size = ctypes.c_void_p(), ctypes.c_ulong()
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    code = library.tjCompress2(
        handle, pixels.ctypes.data, width, 0, height, 0, ctypes.byref(data), ctypes.byref(size),
        subsampling, 90, 0,
    )  # fmt: skip
    assert code == 0
    result = ctypes.string_at(data, size.value)
    library.tjFree(data)
    library.tjDestroy(handle)
    return result


def good_images() -> dict[str, bytes]:
    """File name -> bytes of images that can be decoded."""
    photo = Image.fromarray(smooth_pixels(61, 83))
    small = Image.fromarray(smooth_pixels(17, 31, seed=1))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: turn by 90 degrees
    sixteen = (np.arange(40 * 50, dtype=np.uint32).reshape(40, 50) * 31 % 65536).astype(np.uint16)
    jpeg = encoded(photo, "JPEG", quality=88)
    return {
        "444.jpg": encoded(photo, "JPEG", subsampling=0),
        "422.jpg": encoded(photo, "JPEG", subsampling=1),
        "420.jpg": encoded(photo, "JPEG", subsampling=2),
        "440.jpg": turbo_encoded(smooth_pixels(45, 70, seed=2), TJSAMP_440),
        "411.jpg": turbo_encoded(smooth_pixels(45, 70, seed=3), TJSAMP_411),
        "progressive.jpg": encoded(photo, "JPEG", progressive=True),
        "restart.jpg": encoded(photo, "JPEG", restart_marker_rows=1),
        "gray.jpg": encoded(photo.convert("L"), "JPEG"),
        "rgb_transform0.jpg": encoded(photo, "JPEG", keep_rgb=True),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "exif_rotated.jpg": encoded(photo, "JPEG", exif=rotated),
        "trailing_garbage.jpg": jpeg + b"garbage" * 9,
        "extraneous.jpg": jpeg[:-2] + b"\x11\x22\x33" + jpeg[-2:],
        "mpo.jpg": encoded(photo, "MPO", save_all=True, append_images=[small]),
        "one_pixel.jpg": encoded(Image.new("RGB", (1, 1), (9, 99, 199)), "JPEG"),
        "one_pixel.png": encoded(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"),
        "tall.jpg": encoded(Image.fromarray(smooth_pixels(130, 3, seed=4)), "JPEG"),
        "rgb.png": encoded(small, "PNG"),
        "rgba.png": encoded(Image.merge("RGBA", (*photo.split(), photo.getchannel(0))), "PNG"),
        "gray_alpha.png": encoded(small.convert("LA"), "PNG"),
        "palette.png": encoded(photo.quantize(31), "PNG"),
        "bilevel.png": encoded(photo.convert("1"), "PNG"),
        "sixteen_bit.png": encoded(Image.fromarray(sixteen), "PNG"),
        "named_wrongly.jpg": encoded(small, "PNG"),
        "still.gif": encoded(small, "GIF"),
        "small.bmp": encoded(small, "BMP"),
    }


def bad_images() -> dict[str, bytes]:
    """File name -> bytes that no decoder completes."""
    jpeg = encoded(Image.fromarray(smooth_pixels(61, 83)), "JPEG")
    png = encoded(Image.fromarray(smooth_pixels(61, 83)), "PNG")
    return {
        "bad_empty.jpg": b"",
        "bad_text.jpg": b"this is no image\n" * 20,
        "bad_truncated.jpg": jpeg[: len(jpeg) // 2],
        "bad_truncated.png": png[: len(png) // 2],
        "bad_header_only.jpg": jpeg[:30],
        "bad_corrupt.png": png[:60] + bytes(40) + png[100:],
    }


def write_folder(root: Path) -> list[str]:
    """Two classes, all the good and bad images; returns the bad ones' keys."""
    (root / "first").mkdir(parents=True)
    (root / "second").mkdir()
    files = {**good_images(), **bad_images()}
    for number, (name, data) in enumerate(files.items()):
        (root / ("first", "second")[number % 2] / name).write_bytes(data)
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/bad_*"))
