"""A process that reads images and cuts crops into shared memory. Loads neither torch nor zarr.

Started by labelgen.crop_pool as `python -c "from labelgen.crop_worker import main; main()"` with
two inherited file descriptors: a socket for messages and the memory of the ring.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from labelgen.plan import Unit
from storage.allocator import keep_freed_memory
from storage.augment import augment_from_json, replay_view
from storage.canaries import Canary, note_canary
from storage.errors import BadImage, UsageError
from storage.images import ImageStatus, read_image
from storage.pixels import pad_image, pixel_digest
from storage.views import Sampler, Views, sampler_from_json

if TYPE_CHECKING:
    from PIL import Image

# Below the forward pass in priority: on a CPU the two share cores, and a worker that takes a core
# makes all other threads of a matrix product wait.
NICENESS = 10


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What every crop of a run has in common.

    Attributes:
        root: image folder or beton. sampler: Sampler.to_json(). seed: the store's.
        size: side of a crop in pixels. slots: crops that the ring holds.
        first_view: the sampler's number of the store's first view.
        pixels: whether digests of the decoded images are wanted.
        augment: Augment.to_json(), None where crops stay as they are cut.
        canaries: views by row whose pixels are noted (storage.canaries.canary_views).
    """

    root: str
    sampler: dict[str, Any]
    seed: int
    size: int
    interpolation: str
    slots: int
    first_view: int = 0
    pixels: bool = False
    augment: list[dict[str, Any]] | None = None
    canaries: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredViews:
    """Views of one unit that a store has already, or the image that they must be of.

    Attributes:
        digest: of the image that they were drawn for; empty where it is masked.
        views: boxes, flips and draws, as they were drawn; None: they are to be drawn now.
    """

    digest: bytes
    views: Views | None


@dataclass(frozen=True)
class CutUnit:
    """What a worker found out about its views; the pixels are in the ring.

    Attributes:
        digest: SHA-256 of the file, zeros where it could not be read.
        height, width: of the image, 0 where it could not be decoded.
        status: ImageStatus. detail: why it is not OK.
        box: uint16 [views, 4] and flip: uint8 [views]; None where it is not OK.
        pixels: digest of the decoded image, where it is wanted and the unit is the image's first.
        draw: int16 [views, D], where the run has augmentations.
        canaries: of those of its views that are to be noted.
    """

    unit: Unit
    digest: bytes
    height: int
    width: int
    status: int
    detail: str
    box: npt.NDArray[np.uint16] | None
    flip: npt.NDArray[np.uint8] | None
    pixels: bytes | None = None
    draw: npt.NDArray[np.int16] | None = None
    canaries: tuple[Canary, ...] = ()


WorkItem = tuple[Unit, str, StoredViews | None]  # None: the views are to be drawn


def cut_unit(
    unit: Unit,
    key: str,
    config: CropConfig,
    sampler: Sampler,
    ring: npt.NDArray[np.uint8],
    stored: StoredViews | None = None,
) -> CutUnit:
    """Cut the views of one unit into their slots of the ring (uint8 [slots, S, S, 3]).

    A bad image leaves zeros in its slots and says why; nothing is raised for it. So does an image
    that is not the one which `stored` views were drawn for.
    """
    digest, pixels = bytes(32), None
    try:
        found = read_image(config.root, key)
        digest = found.digest
        if stored is not None and stored.digest != digest:
            raise BadImage("not the image that was labelled (other bytes)")
        image = found.rgb()
        width, height = image.size
        if config.pixels and unit.first_view == 0:
            pixels = pixel_digest(image)
        views = stored.views if stored is not None else None
        if views is None:
            views = _draw(unit, config, sampler, digest, height, width)
        decoded, image = image, pad_image(image, sampler.padding)
        augment = augment_from_json(config.augment)
        for j in range(unit.num_views):
            ring[(unit.slot + j) % config.slots] = replay_view(
                image, views.box[j], bool(views.flip[j]), config.size, config.interpolation,
                augment, None if views.draw is None else views.draw[j],
            )  # fmt: skip
        canaries = _note_canaries(unit, config, decoded, ring)
    except (BadImage, UsageError) as error:  # UsageError: sides that no box can hold
        status, detail = ImageStatus.UNREADABLE, str(error)
    except OSError as error:
        status, detail = ImageStatus.MISSING, error.strerror or str(error)
    else:
        return CutUnit(
            unit, digest, height, width, ImageStatus.OK, "", views.box, views.flip, pixels,
            views.draw, canaries,
        )  # fmt: skip
    for j in range(unit.num_views):
        ring[(unit.slot + j) % config.slots] = 0
    return CutUnit(unit, digest, 0, 0, status, detail, None, None)


def _note_canaries(
    unit: Unit, config: CropConfig, decoded: Image.Image, ring: npt.NDArray[np.uint8]
) -> tuple[Canary, ...]:
    last = unit.first_view + unit.num_views
    chosen = [v for v in config.canaries.get(unit.row, ()) if unit.first_view <= v < last]
    return tuple(
        note_canary(
            unit.row, view, decoded, ring[(unit.slot + view - unit.first_view) % config.slots]
        )
        for view in chosen
    )


def _draw(
    unit: Unit, config: CropConfig, sampler: Sampler, digest: bytes, height: int, width: int
) -> Views:
    first = config.first_view + unit.first_view
    views = sampler.draw(config.seed, digest, height, width, first, unit.num_views)
    augment = augment_from_json(config.augment)
    if augment is None:
        return views
    return replace(views, draw=augment.draw(config.seed, digest, first, unit.num_views))


def main() -> None:
    """Serve units until the parent closes the socket, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent acts
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    keep_freed_memory()
    connection_fd, ring_fd = (int(argument) for argument in sys.argv[1:3])
    with Connection(connection_fd) as connection:
        config: CropConfig = connection.recv()
        sampler = sampler_from_json(config.sampler)
        ring = map_ring(ring_fd, config.slots, config.size)
        while True:
            try:
                group: Sequence[WorkItem] = connection.recv()
                results = [
                    cut_unit(unit, key, config, sampler, ring, stored)
                    for unit, key, stored in group
                ]
                connection.send(results)
            except (EOFError, ConnectionError):  # the parent ended, in whatever way
                return


def map_ring(fd: int, slots: int, size: int) -> npt.NDArray[np.uint8]:
    """The ring's memory as uint8 [slots, size, size, 3]; closes `fd`, the mapping stays."""
    memory = mmap.mmap(fd, slots * size * size * 3)
    os.close(fd)
    return np.frombuffer(memory, np.uint8).reshape(slots, size, size, 3)
