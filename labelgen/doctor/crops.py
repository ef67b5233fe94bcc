"""The crops that are replayed: those that a store has canaries of, and the small ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.augment import Augment
from storage.canaries import Canary, read_canaries
from storage.canary_images import small_canaries, small_images
from storage.images import ImageStatus, read_image
from storage.store import LabelStore

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What is done to a decoded image: (top, left, height, width), mirrored or not, int16 [D]."""

    box: Box
    flip: bool
    draw: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryCrop:
    """One crop with all that is needed to replay it.

    Attributes:
        name: of the image, for people. data: the encoded image.
        view: what is replayed; before, after: the image's neighbouring views, where it has any.
        pixels, image, sketch: what it must be, as `storage.canaries.Canary` has them.
    """

    name: str
    data: bytes = field(repr=False)
    view: View
    before: View | None = None
    after: View | None = None
    size: int
    interpolation: str
    padding: int
    augment: Augment | None = None
    pixels: str
    image: str
    sketch: str


@dataclass(frozen=True, kw_only=True)
class StoredCanary:
    """A canary with what its store says of its image and view."""

    canary: Canary
    key: str
    digest: bytes
    height: int
    width: int
    view: View
    before: View | None
    after: View | None


def small_crops() -> list[CanaryCrop]:
    """The canaries that need no store."""
    images = small_images()
    return [
        CanaryCrop(
            name=f"built-in {small.name}", data=images[small.name],
            view=View(box=small.box, flip=small.flip), size=small.size,
            interpolation=small.interpolation, padding=small.padding,
            pixels=small.pixels, image=small.image, sketch=small.sketch,
        )
        for small in small_canaries()
    ]  # fmt: skip


def stored_canaries(store: LabelStore) -> list[StoredCanary] | None:
    """A store's canaries; None where it keeps none.

    Raises:
        CorruptStore: they make no sense, or are of masked images.
    """
    spec = store.spec
    canaries = read_canaries(store.attributes.get("measured", {}), spec.num_images, spec.num_views)
    if canaries is None:
        return None
    table = store.read_images()
    found = []
    for canary in canaries:
        row = canary.row
        if table.status[row] != ImageStatus.OK:
            continue
        first = max(canary.view - 1, 0)
        views = _views(store, row, slice(first, min(canary.view + 2, spec.num_views)))
        here = canary.view - first
        found.append(StoredCanary(
            canary=canary, key=table.key[row], digest=table.digest[row].tobytes(),
            height=int(table.size[row, 0]), width=int(table.size[row, 1]), view=views[here],
            before=views[here - 1] if here else None,
            after=views[here + 1] if here + 1 < len(views) else None,
        ))  # fmt: skip
    return found


def with_file(store: LabelStore, stored: StoredCanary, data: bytes) -> CanaryCrop:
    """The crop of a stored canary from an image file's bytes."""
    canary, spec = stored.canary, store.spec
    return CanaryCrop(
        name=f"{stored.key} view {canary.view}", data=data, view=stored.view,
        before=stored.before, after=stored.after, size=canary.size,
        interpolation=spec.pixel.interpolation, padding=spec.pixel.padding, augment=spec.augment,
        pixels=canary.pixels, image=canary.image, sketch=canary.sketch,
    )  # fmt: skip


def files_of(root: Path, keys: Sequence[str]) -> dict[str, bytes]:
    """The bytes of those files below a folder, or kept in a beton, that can be read."""
    found = {}
    for key in dict.fromkeys(keys):
        try:
            image = read_image(root, key)
        except OSError:
            continue
        if image.shape is None and not image.problem:
            found[key] = image.data
    return found


def _views(store: LabelStore, row: int, views: slice) -> list[View]:
    rows = slice(row, row + 1)
    box = store.read_array("views/box", rows, views)[0]
    flip = store.read_array("views/flip", rows, views)[0]
    draw = store.read_array("views/draw", rows, views)[0] if store.spec.augment else None
    return [
        View(
            box=(int(box[v, 0]), int(box[v, 1]), int(box[v, 2]), int(box[v, 3])),
            flip=bool(flip[v]), draw=None if draw is None else draw[v],
        )
        for v in range(len(flip))
    ]  # fmt: skip
