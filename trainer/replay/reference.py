"""Views of a packed image by Pillow, whose pixels are the contract's; slow, and always right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.augment import Augment, replay_view
from storage.errors import BadImage
from storage.images import ImageStatus, content_digest
from storage.pixels import PixelContract, decode_rgb, pad_image
from trainer.replay.encode import MODE_JPEG


def read_packed(path: Path, record: np.void, contract: PixelContract) -> Image.Image:
    """The padded image of a beton's row.

    Raises:
        BadImage: it is masked, can't be decoded, or has another size than was packed.
    """
    if record["status"] != ImageStatus.OK:
        raise BadImage("masked")
    height, width = int(record["height"]), int(record["width"])
    data = _payload(path, record)
    if record["mode"] == MODE_JPEG:
        image = decode_rgb(data)
    elif len(data) == 3 * height * width:
        image = Image.frombytes("RGB", (width, height), data)
    else:
        raise BadImage(f"{len(data)} bytes of pixels for {height}x{width}")
    if image.size != (width, height):
        raise BadImage(f"{image.size[0]}x{image.size[1]} pixels, packed as {width}x{height}")
    return pad_image(image, contract.padding)


def cut_packed(
    image: Image.Image,
    box: npt.NDArray[np.uint16],
    flip: npt.NDArray[np.uint8],
    draw: npt.NDArray[np.int16] | None,
    contract: PixelContract,
    augment: Augment | None,
    out: npt.NDArray[np.uint8],
) -> None:
    """Write V views of a padded image into `out`, uint8 [V, S, S, 3].

    Args:
        box: [V, 4]. flip: [V]. draw: [V, D].
    """
    for view in range(len(out)):
        out[view] = replay_view(
            image, box[view], bool(flip[view]), out.shape[1], contract.interpolation, augment,
            None if draw is None else draw[view],
        )  # fmt: skip


def is_as_packed(path: Path, record: np.void) -> bool:
    """Whether a JPEG's bytes are still those that were packed."""
    if record["mode"] != MODE_JPEG:
        return False
    return bool(content_digest(_payload(path, record)) == record["digest"].tobytes())


def _payload(path: Path, record: np.void) -> bytes:
    size, start = int(record["size"]), int(record["ptr"])
    return np.fromfile(path, np.uint8, count=size, offset=start).tobytes()
