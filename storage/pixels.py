"""The pixel contract: the one definition of a decoded image and of a view cut from it.

Stage 1 cuts the teacher's crops with these functions. Stage 2's FFCV operation repeats them
bit for bit; the tests compare the two. The contract's text is docs/pixels.md.

1. Decode: Pillow's exact (slow integer) DCT, fancy chroma upsampling, no EXIF rotation, first
   frame. Grayscale is repeated, alpha dropped, palettes expanded, CMYK converted as Pillow
   does, 16-bit samples shifted right by 8.
2. Pad by `padding` zero pixels on every side (padded-crop views only).
3. Cut the integer box, so that the filter never reads a pixel outside it.
4. Resize the cut to `size` x `size` with the fixed-point antialiased filter of pillow-simd
   12.1.1 (horizontal pass first, 16-bit weights); equal sizes are copied.
5. Flip left-right where the view says so.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from storage.errors import BadImage, UsageError
from storage.typed import check_types

CONTRACT_VERSION = 1
MAX_PIXELS = 1 << 28  # a 16384 x 16384 photo; larger ones are masked, not decoded
MAX_SIDE = 65_535  # boxes are stored as uint16
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, kw_only=True)
class PixelContract:
    """How a stored view becomes pixels; written into every store, compared by the trainer."""

    interpolation: str = "bilinear"
    padding: int = 0
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        check_types(self)
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"interpolation is {self.interpolation!r}; expected one of "
                f"{', '.join(sorted(INTERPOLATIONS))}"
            )
        if self.version != CONTRACT_VERSION:
            raise UsageError(
                f"pixel contract version is {self.version}; this release knows "
                f"{CONTRACT_VERSION}: install a newer teachonce"
            )
        if not 0 <= self.padding <= 64:
            raise UsageError(f"padding is {self.padding}; expected 0 to 64 pixels")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return asdict(self)


def open_image(data: bytes) -> Image.Image:
    """Parse the header of an encoded image without decoding its pixels.

    Raises:
        BadImage: empty, not an image of a known format, or larger than the contract allows.
    """
    if not data:
        raise BadImage("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decompression-bomb notices: checked below
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow raises many types on damaged headers
        if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
            raise BadImage(f"not a readable image: none of {', '.join(IMAGE_FORMATS)}") from error
        raise BadImage(f"not a readable image: {_first_line(error)}") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImage(
            f"{width}x{height} pixels; the contract allows sides to {MAX_SIDE} "
            f"and {MAX_PIXELS} pixels"
        )
    return image


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an encoded image to 8-bit RGB as the contract says (step 1).

    Raises:
        BadImage: the bytes can't be decoded completely.
    """
    image = open_image(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _to_rgb(image)
    except BadImage:
        raise
    except Exception as error:  # truncated and corrupt data raise OSError, SyntaxError, ...
        raise BadImage(f"can't be decoded: {_first_line(error)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise BadImage("floating-point pixels; expected 8 or 16 bits a sample")
    if image.mode.startswith("I"):  # 16-bit grayscale, "I;16" and its relatives
        high_byte = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(np.minimum(high_byte, 255).astype(np.uint8))
    return image.convert("RGB")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def pixel_digest(image: Image.Image) -> bytes:
    """Identity of a decoded RGB image: SHA-256 of a domain, height, width and its 8-bit samples."""
    height, width = image.height.to_bytes(4, "little"), image.width.to_bytes(4, "little")
    return hashlib.sha256(b"teachonce/rgb8\0" + height + width + image.tobytes()).digest()


def pad_image(image: Image.Image, padding: int) -> Image.Image:
    """Black border of `padding` pixels on every side (step 2)."""
    return ImageOps.expand(image, border=padding, fill=0) if padding else image


def cut_view(
    image: Image.Image,
    box: npt.NDArray[np.uint16] | tuple[int, int, int, int],
    flip: bool,
    size: int,
    interpolation: str = "bilinear",
) -> npt.NDArray[np.uint8]:
    """One view of a decoded (and padded) RGB image, steps 3 to 5.

    Args:
        box: (top, left, height, width) in pixels of `image`, wholly inside it.
        flip: mirror left-right after resizing.
        size: output side in pixels.
        interpolation: a key of `INTERPOLATIONS`.
    Returns:
        uint8 [size, size, 3].
    """
    top, left, height, width = (int(value) for value in box)
    view = image.crop((left, top, left + width, top + height))
    if view.size != (size, size):
        view = view.resize((size, size), INTERPOLATIONS[interpolation])
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)
