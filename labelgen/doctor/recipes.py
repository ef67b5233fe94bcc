"""Ways to make a crop: the contract's, and every mistake that the doctor knows by name.

A mistake is a `Hypothesis`: the contract's recipe with something changed. Made in the reference
arithmetic of this package, its crop is compared with what a path gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from labelgen.doctor import decoding, resampling
from labelgen.doctor.crops import Box, CanaryCrop, View
from labelgen.doctor.resampling import AREA, CONTRACT, FILTERS, PILLOW, POINTS

Pixels = npt.NDArray[np.uint8]

OWN = "own"
NEAREST = "nearest"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a crop is made; the defaults are the contract.

    decode: a name of labelgen.doctor.decoding. view: own, before or after.
    padding: own, none or edge. shift: (down, right) in pixels.
    box: own, swapped (left, top, width, height), centre or whole.
    around: whether the filter reads beyond the box. filter: own, nearest or a resampling filter.
    kind: of labelgen.doctor.resampling. flip: own, none, always, opposite, first or upside-down.
    colour: own, none or before-flip.
    """

    decode: str = decoding.EXACT
    view: str = OWN
    padding: str = OWN
    shift: tuple[int, int] = (0, 0)
    box: str = OWN
    around: bool = False
    filter: str = OWN
    kind: str = CONTRACT
    flip: str = OWN
    colour: str = OWN


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One mistake: what it is called, what a person should know, how it is undone."""

    cause: str
    what: str
    way_out: str
    changes: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The contract with this mistake."""
        return replace(Recipe(), **self.changes)


def make(crop: CanaryCrop, recipe: Recipe) -> Pixels | None:
    """The crop uint8 [S, S, 3] by a recipe; None where that asks for what isn't there.

    Raises:
        BadImage: the image can't be decoded.
    """
    pixels = _decoded(crop.data, recipe.decode)
    view = {OWN: crop.view, "before": crop.before, "after": crop.after}[recipe.view]
    if pixels is None or view is None:
        return None
    pixels = _padded(pixels, crop.padding, recipe.padding)
    height, width = pixels.shape[:2]
    box = _box(view.box, recipe, height, width)
    top, left, tall, wide = box
    # Pillow's crop fills with black what lies beyond the image
    before = max(-top, 0), max(-left, 0)
    beyond = max(top + tall - height, 0), max(left + wide - width, 0)
    if any((*before, *beyond)):
        pixels = np.pad(pixels, (*zip(before, beyond, strict=True), (0, 0)))
        box = (top + before[0], left + before[1], tall, wide)
    if recipe.flip == "first" and view.flip:
        pixels = pixels[:, ::-1]
    return _coloured(_resized(pixels, box, crop, recipe), crop, view, recipe)


def hypotheses() -> list[Hypothesis]:
    """Every mistake that the doctor knows, the likelier of two equal ones first."""
    return [*_decoders(), *_filters(), *_geometry(), *_colours()]


def is_joint(one: Hypothesis, other: Hypothesis) -> bool:
    """Whether two mistakes can be made at once: they change different steps."""
    return not set(one.changes) & set(other.changes)


@lru_cache(maxsize=4)  # photos are large; callers go crop by crop
def _decoded(data: bytes, how: str) -> Pixels | None:
    return decoding.decode(data, how)


def _padded(pixels: Pixels, padding: int, how: str) -> Pixels:
    if not padding or how == "none":
        return pixels
    edges = ((padding, padding), (padding, padding), (0, 0))
    return np.pad(pixels, edges, mode="edge" if how == "edge" else "constant")


def _box(box: Box, recipe: Recipe, height: int, width: int) -> Box:
    top, left, tall, wide = box
    if recipe.box == "swapped":
        top, left, tall, wide = left, top, wide, tall
    elif recipe.box == "whole":
        top, left, tall, wide = 0, 0, height, width
    elif recipe.box == "centre":
        top, left = (height - tall) // 2, (width - wide) // 2
    return top + recipe.shift[0], left + recipe.shift[1], tall, wide


def _resized(pixels: Pixels, box: Box, crop: CanaryCrop, recipe: Recipe) -> Pixels:
    top, left, tall, wide = box
    cut = pixels[top : top + tall, left : left + wide]
    filter_name = crop.interpolation if recipe.filter == OWN else recipe.filter
    if filter_name == NEAREST:
        return resampling.nearest(cut, crop.size)
    if recipe.around:
        return resampling.resize_box(pixels, box, crop.size, filter_name, recipe.kind)
    return resampling.resize(cut, crop.size, filter_name, recipe.kind)


def _coloured(pixels: Pixels, crop: CanaryCrop, view: View, recipe: Recipe) -> Pixels:
    """Flip, and what the view's draw does."""
    flip = {"none": False, "always": True, "opposite": not view.flip, "first": False,
            "upside-down": False}.get(recipe.flip, view.flip)  # fmt: skip
    draws = crop.augment is not None and view.draw is not None and recipe.colour != "none"

    def colour(values: Pixels) -> Pixels:
        assert crop.augment is not None and view.draw is not None
        return crop.augment.apply(np.ascontiguousarray(values), view.draw) if draws else values

    if draws and recipe.colour == "before-flip":
        pixels = colour(pixels)
    if flip:
        pixels = pixels[:, ::-1]
    if view.flip and recipe.flip == "upside-down":
        pixels = pixels[::-1]
    if draws and recipe.colour != "before-flip":
        pixels = colour(pixels)
    return np.ascontiguousarray(pixels)


_DECODE = "decode with Pillow, or libjpeg-turbo with its accurate DCT, as docs/pixels.md says"
_FILTER = "install pillow-simd (scripts/setup.sh), or use the loaders of `trainer`"


def _decoders() -> Iterator[Hypothesis]:
    texts = {
        "fast-dct": ("JPEGs are decoded with the fast DCT", _DECODE),
        "plain-upsampling": ("JPEGs are decoded with plain chroma upsampling", _DECODE),
        "exif-rotated": ("EXIF rotation is applied", "leave images as they are stored: no "
                         "exif_transpose, cv2 with IMREAD_IGNORE_ORIENTATION"),
        "bgr": ("colours come in the order BGR", "swap the channels: the contract is RGB"),
        "grey": ("colours are lost: images are made grey", "decode to RGB"),
        "cmyk-inverted": ("CMYK images come out inverted", "convert CMYK as Pillow does"),
        "cmyk-plain": ("ink of CMYK images is taken as light", "convert CMYK as Pillow does"),
        "alpha-on-white": ("alpha is laid on white", "drop alpha: convert('RGB')"),
        "alpha-on-black": ("alpha is laid on black", "drop alpha: convert('RGB')"),
        "16-bit-clipped": ("16-bit images are clipped at 255", "shift their samples right by 8"),
        "palette-index": ("palette numbers are taken as grey", "expand palettes: convert('RGB')"),
    }  # fmt: skip
    for how in decoding.names():
        cause = "re-encoded" if how.startswith("encoded-again") else how
        what, way_out = texts.get(how, (
            f"images are encoded again as JPEG (quality {how.rpartition('-')[2]} fits)",
            "keep the source files' bytes; `trainer pack` does",
        ))  # fmt: skip
        yield Hypothesis(cause=cause, what=what, way_out=way_out, changes={"decode": how})


def _filters() -> Iterator[Hypothesis]:
    yield Hypothesis(
        cause="pillow", what="Pillow resizes instead of pillow-simd", way_out=_FILTER,
        changes={"kind": PILLOW},
    )  # fmt: skip
    yield Hypothesis(
        cause="box-filtering", what="the filter reads beyond the box, as resize(box=...) does",
        way_out="cut the box first, then resize", changes={"around": True},
    )  # fmt: skip
    yield Hypothesis(
        cause="inter-area", what="OpenCV's INTER_AREA resizes", way_out=_FILTER,
        changes={"kind": AREA},
    )  # fmt: skip
    yield Hypothesis(
        cause="antialias-off", what="crops are resized without antialiasing",
        way_out="interpolate with antialias=True, on uint8", changes={"kind": POINTS},
    )  # fmt: skip
    for name in (NEAREST, *FILTERS):
        yield Hypothesis(
            cause=f"interpolation-{name}", what=f"crops are resized with the filter {name}",
            way_out="use the interpolation that the store's pixel contract names",
            changes={"filter": name},
        )  # fmt: skip


def _geometry() -> Iterator[Hypothesis]:
    boxes = "cut the stored (top, left, height, width) of the padded image"
    for down, right in product((-1, 0, 1), repeat=2):
        if (down, right) != (0, 0):
            yield Hypothesis(
                cause="shift", what=f"boxes lie {down:+d} pixels down and {right:+d} right of "
                "their place", way_out=boxes, changes={"shift": (down, right)},
            )  # fmt: skip
    for where in ("before", "after"):
        yield Hypothesis(
            cause="view-number", what=f"the view {where} the right one is replayed",
            way_out="count views from 0 as the store does", changes={"view": where},
        )  # fmt: skip
    named = {
        "swapped": ("box-order", "boxes are read as (left, top, width, height)"),
        "centre": ("box-ignored", "boxes are cut from the image's centre"),
        "whole": ("box-ignored", "boxes are ignored: whole images are resized"),
    }
    for box, (cause, what) in named.items():
        yield Hypothesis(cause=cause, what=what, way_out=boxes, changes={"box": box})
    yield Hypothesis(
        cause="padding-missing", what="images are not padded before the box is cut", way_out=boxes,
        changes={"padding": "none"},
    )  # fmt: skip
    yield Hypothesis(
        cause="padding-edge", what="images are padded with their border pixels, not with zeros",
        way_out="pad with zeros", changes={"padding": "edge"},
    )  # fmt: skip
    flips = {
        "none": ("flip-missing", "views are never flipped"),
        "first": ("flip-before", "images are flipped before the box is cut, not after"),
        "opposite": ("flip-opposite", "views are flipped that should not be, and the other way"),
        "always": ("flip-always", "all views are flipped"),
        "upside-down": ("flip-vertical", "views are flipped upside down, not left to right"),
    }
    for flip, (cause, what) in flips.items():
        yield Hypothesis(
            cause=cause, what=what, changes={"flip": flip},
            way_out="mirror a view left to right, after resizing, where its flip is 1",
        )  # fmt: skip


def _colours() -> Iterator[Hypothesis]:
    yield Hypothesis(
        cause="draws-ignored", what="the stored augmentations are not applied",
        way_out="apply views/draw after the flip (docs/pixels.md, step 6)",
        changes={"colour": "none"},
    )  # fmt: skip
    yield Hypothesis(
        cause="draws-before-flip", what="the stored augmentations are applied before the flip",
        way_out="apply views/draw after the flip (docs/pixels.md, step 6)",
        changes={"colour": "before-flip"},
    )  # fmt: skip
