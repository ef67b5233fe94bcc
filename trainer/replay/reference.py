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


def read_packed(
    path: Path, record: np.void, contract: PixelContract, *, unchanged_jpeg: bool = False
) -> Image.Image:
    """The padded image of a beton's row.

    Args:
        unchanged_jpeg: only a JPEG whose bytes are those that were packed.
    Raises:
        BadImage: it is masked, can't be decoded, has another size than was packed, or isn't what
            `unchanged_jpeg` asks for.
    """
    if record["status"] != ImageStatus.OK:
        raise BadImage("masked")
    height, width = int(record["height"]), int(record["width"])
    size, start = int(record["size"]), int(record["ptr"])
    data = np.fromfile(path, np.uint8, count=size, offset=start).tobytes()
    is_jpeg = record["mode"] == MODE_JPEG
    if unchanged_jpeg and not (is_jpeg and content_digest(data) == record["digest"].tobytes()):
        raise BadImage("not the JPEG that was packed")
    if is_jpeg:
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
