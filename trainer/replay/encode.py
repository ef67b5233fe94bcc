"""One image file -> what the beton keeps of it. Imports nothing heavy: it runs in workers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import BadImage
from storage.images import ImageStatus, content_digest
from storage.pixels import decode_rgb, open_image
from trainer.replay import turbojpeg

MODE_JPEG = 0  # the source file's bytes, unchanged
MODE_RAW = 1  # decoded RGB pixels, row by row: everything TurboJPEG can't decode exactly
NO_DIGEST = bytes(32)  # of a file that could not be read
_OBJECT = re.compile(r"\s*<[^<>]* at 0x[0-9a-f]+>")
EXACT_MODES = ("RGB", "L")  # Pillow modes of JPEGs that TurboJPEG may decode as well


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """A beton row's image: `payload` by `mode`, empty unless `status` is OK.

    `warns`: libjpeg warns while decoding the bytes (odd, but decoded as Pillow does).
    `problem`: why the image is masked, for people.
    """

    status: ImageStatus
    digest: bytes
    mode: int = MODE_RAW
    warns: bool = False
    height: int = 0
    width: int = 0
    payload: bytes = b""
    problem: str = ""


def encode_file(path: Path) -> EncodedImage:
    """Read, check and encode one image file; damage becomes a status, never an exception.

    The JPEG bytes are kept only if libjpeg-turbo decodes them to the very pixels of the pixel
    contract (Pillow); this is checked on every image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        return EncodedImage(status=ImageStatus.MISSING, digest=NO_DIGEST, problem=reason)
    return encode_bytes(data)


def encode_bytes(data: bytes) -> EncodedImage:
    """As `encode_file`, from the file's bytes."""
    digest = content_digest(data)
    try:
        header = open_image(data)
        image = decode_rgb(data)
    except BadImage as error:
        return EncodedImage(status=ImageStatus.UNREADABLE, digest=digest, problem=_stable(error))
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    if header.format in ("JPEG", "MPO") and header.mode in EXACT_MODES:
        try:
            decoded, warns = turbojpeg.decode(data, height, width)
        except BadImage:
            decoded, warns = None, False
        if decoded is not None and np.array_equal(decoded, pixels):
            return EncodedImage(
                status=ImageStatus.OK, digest=digest, mode=MODE_JPEG, warns=warns,
                height=height, width=width, payload=data,
            )  # fmt: skip
    return EncodedImage(
        status=ImageStatus.OK, digest=digest, mode=MODE_RAW,
        height=height, width=width, payload=pixels.tobytes(),
    )  # fmt: skip


def _stable(error: BadImage) -> str:
    """The error's text without memory addresses (Pillow names the buffer it read): the sidecar
    is the same in every run."""
    return _OBJECT.sub("", str(error))
