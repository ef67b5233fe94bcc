"""Views that a sealed store has already, and the images they were drawn for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labelgen.blocks import BlockBuffer
from labelgen.crop_worker import CutUnit, StoredViews
from labelgen.plan import Unit
from storage.block import key_problem
from storage.errors import StoreMismatch, UsageError
from storage.images import ImageFolder, ImageStatus
from storage.match import match
from storage.parents import Parent
from storage.views import Views


class StoredBlocks:
    """A store's views, handed out unit by unit, and buffers that know its images.

    One block of views is in memory at a time. `views` and `digests` are called from the pool's
    thread, all else from the engine's.

    Args:
        num_views: how many of each image's views will be asked for.
    """

    def __init__(self, parent: Parent, num_views: int) -> None:
        self._parent, self._num_views = parent, num_views
        self._images = parent.images()
        self._block = -1
        self._views: list[Views] = []

    def views(self, unit: Unit) -> StoredViews:
        """The unit's own views; of a masked image none."""
        digest = self.digests(unit).digest
        block = unit.row // self._parent.spec.block_images
        if block != self._block:
            self._views, self._block = self._read(block), block
        found = self._views[unit.row - self._parent.spec.block_rows(block).start]
        part = slice(unit.first_view, unit.first_view + unit.num_views)
        draw = None if found.draw is None else found.draw[part]
        return StoredViews(digest, Views(found.box[part], found.flip[part], draw))

    def digests(self, unit: Unit) -> StoredViews:
        """What the unit's image must be; its views are to be drawn."""
        sound = self._images.status[unit.row] == ImageStatus.OK
        return StoredViews(self._images.digest[unit.row].tobytes() if sound else b"", None)

    def fill(self, buffer: BlockBuffer) -> BlockBuffer:
        """Put what the store knows of a block's images into its buffer."""
        rows = slice(buffer.rows.start, buffer.rows.stop)
        buffer.digest[:] = self._images.digest[rows]
        buffer.size[:] = self._images.size[rows]
        buffer.status[:] = self._images.status[rows]
        if self._parent.spec.pixel_digests:
            numbers = np.asarray(buffer.rows, np.int64)
            buffer.pixels[:] = self._parent.gather("images/pixels", numbers, 0, 0)
        return buffer

    def note(self, buffer: BlockBuffer, cut: CutUnit, key: str) -> None:
        """Check that a unit was cut from the image that the store has views of.

        Raises:
            StoreMismatch: the file is gone, or isn't the image that was labelled.
        """
        i = cut.unit.row - buffer.rows.start
        if buffer.status[i] != ImageStatus.OK:
            return
        if cut.status != ImageStatus.OK or cut.box is None or cut.flip is None:
            raise StoreMismatch(
                f"{key}: {cut.detail}, but {self._parent.store.path} has views of it: bring the "
                "labelled image back (`labelstore match` lists all that differ), or leave it out "
                "with `labelstore subset --images`, then run the same command again"
            )
        views = slice(cut.unit.first_view, cut.unit.first_view + cut.unit.num_views)
        buffer.box[i, views], buffer.flip[i, views] = cut.box, cut.flip
        if buffer.draw is not None and cut.draw is not None:
            buffer.draw[i, views] = cut.draw

    def _read(self, block: int) -> list[Views]:
        rows = np.asarray(self._parent.spec.block_rows(block), np.int64)
        paths = ["views/box", "views/flip", *(["views/draw"] if self._parent.spec.augment else [])]
        parts = [self._parent.gather(path, rows, 0, self._num_views) for path in paths]
        return [Views(*values) for values in zip(*parts, strict=True)]


def images_of(parent: Parent, data: Path | str, workers: int) -> ImageFolder:
    """The files of a folder that are a store's images, in its order.

    Files lie under the store's own keys; where some don't, all are looked for by content.

    Returns:
        a folder with a key for every row; those of masked rows may be no files.
    Raises:
        StoreMismatch: images that were labelled are not in the folder; names the first.
    """
    table, root = parent.images(), Path(data)
    if not root.exists():
        raise UsageError(f"{root} is not a folder: give the labelled images with --data")
    for key in table.key:
        if problem := key_problem(key):
            raise UsageError(f"{parent.store.path}: image key {key!r} {problem}")
    sound = np.flatnonzero(table.status == ImageStatus.OK).tolist()
    keys = list(table.key)
    if root.is_file() or not all((root / keys[row]).is_file() for row in sound):
        found = match(parent.store, data, workers=workers).exact
        by_content = {table.digest[row].tobytes(): key for key, row in found.items()}
        lost = [row for row in sound if table.digest[row].tobytes() not in by_content]
        if lost:
            names = ", ".join(table.key[row] for row in lost[:3])
            raise StoreMismatch(
                f"{len(lost)} images that {parent.store.path} has views of are not in {root}, such "
                f"as {names}: bring them back, or leave them out with `labelstore subset --images`"
            )
        for row in sound:
            keys[row] = by_content[table.digest[row].tobytes()]
    targets = tuple(table.target.tolist())
    return ImageFolder(root=root, keys=tuple(keys), targets=targets, classes=())
