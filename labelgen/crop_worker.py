"""A process that reads images and cuts crops into shared memory. Loads neither torch nor zarr.

Started by labelgen.crop_pool as `python -c "from labelgen.crop_worker import main; main()"` with
two inherited file descriptors: a socket for messages and the memory of the ring.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelgen.plan import Unit
from storage.allocator import keep_freed_memory
from storage.errors import BadImage, UsageError
from storage.images import ImageStatus, content_digest
from storage.pixels import cut_view, decode_rgb, pad_image
from storage.views import Sampler, sampler_from_json

# Below the forward pass in priority: on a CPU the two share cores, and a worker that takes a core
# makes all other threads of a matrix product wait.
NICENESS = 10


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What every crop of a run has in common.

    Attributes:
        root: image folder. sampler: Sampler.to_json(). seed: the store's.
        size: side of a crop in pixels. slots: crops that the ring holds.
    """

    root: str
    sampler: dict[str, Any]
    seed: int
    size: int
    interpolation: str
    slots: int


@dataclass(frozen=True)
class CutUnit:
    """What a worker found out about its views; the pixels are in the ring.

    Attributes:
        digest: SHA-256 of the file, zeros where it could not be read.
        height, width: of the image, 0 where it could not be decoded.
        status: ImageStatus. detail: why it is not OK.
        box: uint16 [views, 4] and flip: uint8 [views]; None where it is not OK.
    """

    unit: Unit
    digest: bytes
    height: int
    width: int
    status: int
    detail: str
    box: npt.NDArray[np.uint16] | None
    flip: npt.NDArray[np.uint8] | None


def cut_unit(
    unit: Unit, key: str, config: CropConfig, sampler: Sampler, ring: npt.NDArray[np.uint8]
) -> CutUnit:
    """Cut the views of one unit into their slots of the ring (uint8 [slots, S, S, 3]).

    A bad image leaves zeros in its slots and says why; nothing is raised for it.
    """
    digest = bytes(32)
    try:
        data = (Path(config.root) / key).read_bytes()
        digest = content_digest(data)
        image = decode_rgb(data)
        width, height = image.size
        views = sampler.draw(config.seed, digest, height, width, unit.first_view, unit.num_views)
        image = pad_image(image, sampler.padding)
        for j in range(unit.num_views):
            ring[(unit.slot + j) % config.slots] = cut_view(
                image, views.box[j], bool(views.flip[j]), config.size, config.interpolation
            )
    except (BadImage, UsageError) as error:  # UsageError: sides that no box can hold
        status, detail = ImageStatus.UNREADABLE, str(error)
    except OSError as error:
        status, detail = ImageStatus.MISSING, error.strerror or str(error)
    else:
        return CutUnit(unit, digest, height, width, ImageStatus.OK, "", views.box, views.flip)
    for j in range(unit.num_views):
        ring[(unit.slot + j) % config.slots] = 0
    return CutUnit(unit, digest, 0, 0, status, detail, None, None)


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
                group: Sequence[tuple[Unit, str]] = connection.recv()
                results = [cut_unit(unit, key, config, sampler, ring) for unit, key in group]
                connection.send(results)
            except (EOFError, ConnectionError):  # the parent ended, in whatever way
                return


def map_ring(fd: int, slots: int, size: int) -> npt.NDArray[np.uint8]:
    """The ring's memory as uint8 [slots, size, size, 3]; closes `fd`, the mapping stays."""
    memory = mmap.mmap(fd, slots * size * size * 3)
    os.close(fd)
    return np.frombuffer(memory, np.uint8).reshape(slots, size, size, 3)
