"""One image -> what the beton keeps of it. Imports nothing heavy: it runs in workers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from storage.beton import MODE_JPEG, MODE_RAW
from storage.errors import BadImage, TrainingError
from storage.images import ImageStatus, content_digest
from storage.pixels import MAX_PIXELS, decode_rgb, open_image
from trainer.replay import turbojpeg
from trainer.replay.jpeg_structure import ordinary_size
from trainer.replay.reencode import Reencoding

__all__ = ["MODE_JPEG", "MODE_RAW", "NO_DIGEST", "EncodedImage", "encode_bytes", "missing"]

NO_DIGEST = bytes(32)  # of a file that could not be read
_OBJECT = re.compile(r"\s*<[^<>]* at 0x[0-9a-f]+>")
EXACT_MODES = ("RGB", "L")  # Pillow modes of JPEGs that TurboJPEG may decode as well
SAMPLE = 64  # of the ordinary JPEGs one in so many is decoded, chosen by its digest


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """A beton row's image: `payload` by `mode`, empty unless `status` is OK.

    `warns`: libjpeg warns while decoding the bytes (odd, but decoded as Pillow does).
    `problem`: why the image is masked, for people.
    `origin`: digest of the source file, where the payload was encoded anew.
    """

    status: ImageStatus
    digest: bytes
    mode: int = MODE_RAW
    warns: bool = False
    height: int = 0
    width: int = 0
    payload: bytes = b""
    problem: str = ""
    origin: bytes = NO_DIGEST


def missing(reason: str) -> EncodedImage:
    """The masked row of an image that could not be read."""
    return EncodedImage(status=ImageStatus.MISSING, digest=NO_DIGEST, problem=reason)


def encode_bytes(
    data: bytes, reencoding: Reencoding | None = None, check_all: bool = False
) -> EncodedImage:
    """Check and encode one image file; damage becomes a status, never an exception.

    A JPEG's bytes are kept only if libjpeg-turbo decodes them to the very pixels of the pixel
    contract (Pillow). Files of the ordinary kind (`jpeg_structure`) do; every other one is decoded
    and compared, and so is a sample of the ordinary ones.

    Args:
        reencoding: encode the image anew; the digest is then of the new bytes.
        check_all: decode and compare the ordinary JPEGs too.
    Raises:
        TrainingError: an ordinary JPEG decodes otherwise here than with Pillow.
    """
    if reencoding is None:
        return _keep(data, check_all)
    origin = content_digest(data)
    try:
        made = reencoding.encode(decode_rgb(data))
    except BadImage as error:
        return replace(_unreadable(origin, error), origin=origin)
    return replace(_keep(made, check_all), origin=origin)


def _keep(data: bytes, check_all: bool) -> EncodedImage:
    digest = content_digest(data)
    size = ordinary_size(data)
    if size is not None and size[0] * size[1] <= MAX_PIXELS:
        sampled = int.from_bytes(digest[:2], "little") % SAMPLE == 0
        if not (check_all or sampled):
            return EncodedImage(
                status=ImageStatus.OK, digest=digest, mode=MODE_JPEG,
                height=size[0], width=size[1], payload=data,
            )  # fmt: skip
    return _compared(data, digest, trusted=size is not None and not check_all)


def _compared(data: bytes, digest: bytes, trusted: bool) -> EncodedImage:
    """Decode with Pillow and with libjpeg-turbo; pixels are kept where the two differ."""
    try:
        header = open_image(data)
        image = decode_rgb(data)
    except BadImage as error:
        return _unreadable(digest, error)
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    if header.format in ("JPEG", "MPO") and header.mode in EXACT_MODES:
        try:
            decoded, warns = turbojpeg.decode(data, height, width)
        except BadImage:
            decoded, warns = None, True
        if decoded is not None and np.array_equal(decoded, pixels):
            return EncodedImage(
                status=ImageStatus.OK, digest=digest, mode=MODE_JPEG, warns=warns,
                height=height, width=width, payload=data,
            )  # fmt: skip
        if trusted and not warns:  # then the files that aren't sampled can't be trusted either
            raise TrainingError(
                f"a plain JPEG of {width}x{height} pixels decodes otherwise with libturbojpeg than "
                "with Pillow: give both the same libjpeg-turbo (`labelgen doctor` shows them), or "
                "pack with --check all"
            )
    return EncodedImage(
        status=ImageStatus.OK, digest=digest, mode=MODE_RAW,
        height=height, width=width, payload=pixels.tobytes(),
    )  # fmt: skip


def _unreadable(digest: bytes, error: BadImage) -> EncodedImage:
    """The masked row; its text has no memory addresses (Pillow names the buffer it read), so that
    the sidecar is the same in every run."""
    problem = _OBJECT.sub("", str(error))
    return EncodedImage(status=ImageStatus.UNREADABLE, digest=digest, problem=problem)
