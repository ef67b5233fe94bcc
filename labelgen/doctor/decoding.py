"""How an image file becomes pixels: as the contract says, and in the ways that are taken for it."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable
from ctypes import c_int, c_size_t, c_ulong, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from storage.errors import BadImage
from storage.pixels import decode_rgb, open_image

Pixels = npt.NDArray[np.uint8]

EXACT = "exact"
TURBOJPEG = "libturbojpeg.so.0"
# flags of turbojpeg.h
_ACCURATE_DCT, _FAST_DCT, _FAST_UPSAMPLE = 4096, 2048, 256
QUALITIES = (95, 90, 85, 75)

# Bound when this module is loaded: what a path is later made to do doesn't reach the reference.
_decode, _open = decode_rgb, open_image


def decode(data: bytes, how: str = EXACT) -> Pixels | None:
    """Pixels uint8 [H, W, 3] of an encoded image; None where `how` does not apply to it.

    Raises:
        BadImage: it can't be decoded.
    """
    image = _decode(data) if how == EXACT else _OTHERS[how](data)
    return None if image is None else np.asarray(image)


def names() -> list[str]:
    """All of `how` but EXACT."""
    return list(_OTHERS)


def has_turbojpeg() -> bool:
    """Whether libjpeg-turbo's own C API is on this machine."""
    return _turbojpeg() is not None


def _bgr(data: bytes) -> Image.Image:
    return Image.fromarray(np.asarray(_decode(data))[..., ::-1].copy())


def _grey(data: bytes) -> Image.Image:
    return _decode(data).convert("L").convert("RGB")


def _exif(data: bytes) -> Image.Image | None:
    if _open(data).getexif().get(274, 1) == 1:
        return None
    return ImageOps.exif_transpose(_loaded(data)).convert("RGB")


def _encoded_again(quality: int) -> Callable[[bytes], Image.Image]:
    def again(data: bytes) -> Image.Image:
        buffer = io.BytesIO()
        _decode(data).save(buffer, "JPEG", quality=quality)
        return _decode(buffer.getvalue())

    return again


def _on(background: int) -> Callable[[bytes], Image.Image | None]:
    def composed(data: bytes) -> Image.Image | None:
        image = _loaded(data)
        if image.mode != "RGBA":
            return None
        sheet = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        return Image.alpha_composite(sheet, image).convert("RGB")

    return composed


def _cmyk_inverted(data: bytes) -> Image.Image | None:
    image = _loaded(data)
    return ImageOps.invert(image.convert("RGB")) if image.mode == "CMYK" else None


def _cmyk_plain(data: bytes) -> Image.Image | None:
    """Ink taken as light: the first three channels as they are."""
    image = _loaded(data)
    if image.mode != "CMYK":
        return None
    return Image.fromarray(np.asarray(image)[..., :3].copy())


def _deep_clipped(data: bytes) -> Image.Image | None:
    """16 bits cut off at 255 instead of shifted."""
    image = _loaded(data)
    if not image.mode.startswith("I"):
        return None
    levels = np.minimum(np.asarray(image), 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


def _palette_index(data: bytes) -> Image.Image | None:
    image = _loaded(data)
    return Image.fromarray(np.asarray(image)).convert("RGB") if image.mode == "P" else None


def _loaded(data: bytes) -> Image.Image:
    image = _open(data)
    image.load()
    return image


def _turbo(flags: int) -> Callable[[bytes], Image.Image | None]:
    def decoded(data: bytes) -> Image.Image | None:
        header, library = _open(data), _turbojpeg()
        if header.format != "JPEG" or header.mode == "CMYK" or library is None:
            return None
        pixels = np.empty((header.height, header.width, 3), np.uint8)
        source = np.frombuffer(data, np.uint8)
        handle = library.tjInitDecompress()
        try:
            status = library.tjDecompress2(
                handle, source.ctypes.data, source.size, pixels.ctypes.data,
                header.width, 0, header.height, 0, flags,
            )  # fmt: skip
        finally:
            library.tjDestroy(handle)
        if status != 0:
            raise BadImage("libjpeg-turbo can't decode the JPEG data")
        return Image.fromarray(pixels)

    return decoded


@cache
def _turbojpeg() -> ctypes.CDLL | None:
    """The library with the three functions used here declared; None where there is none.

    The trainer has its own door to it, which the layers keep from this package.
    """
    try:
        library = ctypes.CDLL(TURBOJPEG)
        library.tjInitDecompress.argtypes, library.tjInitDecompress.restype = [], c_void_p
        library.tjDecompress2.argtypes = [
            c_void_p, c_size_t, c_ulong, c_size_t, c_int, c_int, c_int, c_int, c_int,
        ]  # fmt: skip
        library.tjDestroy.argtypes = [c_void_p]
    except (OSError, AttributeError):
        return None
    return library


_OTHERS: dict[str, Callable[[bytes], Image.Image | None]] = {
    "fast-dct": _turbo(_FAST_DCT),
    "plain-upsampling": _turbo(_ACCURATE_DCT | _FAST_UPSAMPLE),
    "exif-rotated": _exif,
    "bgr": _bgr,
    "grey": _grey,
    "cmyk-inverted": _cmyk_inverted,
    "cmyk-plain": _cmyk_plain,
    "alpha-on-white": _on(255),
    "alpha-on-black": _on(0),
    "16-bit-clipped": _deep_clipped,
    "palette-index": _palette_index,
    **{f"encoded-again-{quality}": _encoded_again(quality) for quality in QUALITIES},
}
