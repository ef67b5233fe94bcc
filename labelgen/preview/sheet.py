"""A contact sheet as one picture."""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from labelgen.preview.marks import badge_places, outline, scaled_box
from labelgen.preview.rows import NUM_LABELS, Shown, ShownImage, ShownView
from storage.page import printable

GAP = 12
FRAME = 2  # around a crop, never on it
CROP = 192  # pixels a small crop is enlarged to, about; crops of 96 to 256 are shown as they are
MAX_CROP = 256
PHOTO = 280  # width of a photo's place
HEAD = 20  # line above a crop
LINE = 18
BADGE = (17, 15)
FONT_SIZE = 12
INK, PALE, PAPER = "#1c2430", "#5d6878", "#ffffff"
BAR, OWN_BAR, GOOD, BAD = "#c9dcf2", "#bfe5c9", "#1d7a3c", "#b3372b"


def draw_sheet(shown: Shown) -> Image.Image:
    """One row an image: the photo with numbered boxes, then its crops with their labels.

    Above each crop stand its number, its label's entropy and tail mass, and a tick or cross: does
    the label's first class agree with the folder's. Bars below are probabilities, that of the
    folder's own class in green.
    """
    tiles = [
        [_photo_tile(image), *(_crop_tile(n, view) for n, view in enumerate(image.views))]
        for image in shown.images
    ]
    heights = [max(tile.height for tile in row) for row in tiles]
    width = max(GAP + sum(tile.width + GAP for tile in row) for row in tiles)
    notes = [shown.title, *shown.notes, *(f"not shown: {key}: {why}"
                                          for key, why in shown.passed_over)]  # fmt: skip
    footer = LINE * len(notes) + GAP
    sheet = Image.new("RGB", (width, GAP + sum(h + GAP for h in heights) + footer), PAPER)
    y = GAP
    for row, height in zip(tiles, heights, strict=True):
        x = GAP
        for tile in row:
            sheet.paste(tile, (x, y))
            x += tile.width + GAP
        y += height + GAP
    draw = ImageDraw.Draw(sheet)
    for number, note in enumerate(notes):
        _text(draw, (GAP, y + number * LINE), note, PALE, width - 2 * GAP)
    return sheet


def shown_crop(crop: npt.NDArray[np.uint8]) -> Image.Image:
    """A crop as it is; small ones with every pixel repeated, those above 256 scaled down."""
    image, size = Image.fromarray(crop), len(crop)
    if size > MAX_CROP:
        return image.resize((MAX_CROP, MAX_CROP), Image.Resampling.BICUBIC)
    factor = max(1, round(CROP / size)) if size < 96 else 1
    return image.resize((size * factor,) * 2, Image.Resampling.NEAREST)


def fitted_photo(photo: Image.Image, width: int, height: int) -> tuple[Image.Image, float]:
    """The photo scaled into a place, and by how much; small ones by a whole factor."""
    scale = min(width / photo.width, height / photo.height)
    if scale >= 1:
        scale = float(int(scale))
        size = photo.width * int(scale), photo.height * int(scale)
        return photo.resize(size, Image.Resampling.NEAREST), scale
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    return photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0), scale


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image's file, "PNG" or "JPEG"."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _photo_tile(image: ShownImage) -> Image.Image:
    """The photo with the numbered boxes of its views; below it its name, class and size."""
    side = shown_crop(image.views[0].crop).height + 2 * FRAME
    tile = Image.new("RGB", (PHOTO, HEAD + side + NUM_LABELS * LINE), PAPER)
    photo, scale = fitted_photo(image.photo, PHOTO, side)
    draw = ImageDraw.Draw(photo)
    boxes = [scaled_box(view.box, scale, photo.size) for view in image.views]
    for number, box in enumerate(boxes):
        draw.rectangle(box, outline=outline(number), width=2)
    for number, place in enumerate(badge_places(boxes, photo.size, BADGE)):
        _badge(draw, place, number)
    tile.paste(photo, ((PHOTO - photo.width) // 2, HEAD + (side - photo.height) // 2))
    *folders, name = image.key.split("/")
    size = f"{image.photo.width} x {image.photo.height} pixels"
    draw = ImageDraw.Draw(tile)
    lines = [(name, INK), (image.class_name or "/".join(folders), INK), (size, PALE)]
    for number, (text, ink) in enumerate(lines):
        _text(draw, (0, HEAD + side + 4 + number * LINE), text, ink, PHOTO)
    return tile


def _crop_tile(number: int, view: ShownView) -> Image.Image:
    """A crop as the teacher sees it; above it what its label is like, below it the classes."""
    crop = shown_crop(view.crop)
    width = crop.width + 2 * FRAME
    tile = Image.new("RGB", (width, HEAD + width + NUM_LABELS * LINE), PAPER)
    draw = ImageDraw.Draw(tile)
    _badge(draw, (0, 1), number)
    text = f"{view.entropy:.2f} nats, tail {view.tail:.2f}" + (", flipped" if view.flip else "")
    _text(draw, (BADGE[0] + 5, 1), text, PALE, width - BADGE[0] - 21)
    _verdict(draw, width - 11, view.agrees)
    draw.rectangle((0, HEAD, width - 1, HEAD + width - 1), outline=outline(number), width=FRAME)
    tile.paste(crop, (FRAME, HEAD + FRAME))
    for rank, (name, probability, own) in enumerate(view.top):
        top = HEAD + width + 3 + rank * LINE
        length = round(probability * (width - 1))
        draw.rectangle((0, top, length, top + LINE - 4), fill=OWN_BAR if own else BAR)
        percent = f"{100 * probability:.0f} %"
        room = width - 8 - draw.textlength(percent, font=_font())
        _text(draw, (3, top - 1), name, GOOD if own else INK, room)
        draw.text((width - 3, top - 1), percent, fill=INK, font=_font(), anchor="ra")
    return tile


def _badge(draw: ImageDraw.ImageDraw, place: tuple[int, int], number: int) -> None:
    x, y = place
    draw.rectangle((x, y, x + BADGE[0] - 1, y + BADGE[1] - 1), fill=outline(number))
    middle = x + BADGE[0] / 2, y + BADGE[1] / 2
    draw.text(middle, str(number + 1), fill=PAPER, font=_font(), anchor="mm")


def _verdict(draw: ImageDraw.ImageDraw, x: int, agrees: bool | None) -> None:
    """A tick or a cross, drawn: the font has neither."""
    if agrees:
        draw.line([(x, 9), (x + 3, 13), (x + 10, 4)], fill=GOOD, width=2)
    elif agrees is not None:
        draw.line([(x + 1, 4), (x + 9, 12)], fill=BAD, width=2)
        draw.line([(x + 9, 4), (x + 1, 12)], fill=BAD, width=2)


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink: str, room: float
) -> None:
    """One line, cut with an ellipsis where it has no room."""
    draw.text(place, fitted_text(printable(text), room), fill=ink, font=_font())


def fitted_text(text: str, room: float) -> str:
    """As much of a text as `room` pixels hold."""
    measure = _font().getlength
    if measure(text) <= room:
        return text
    keep = _longest(text, room - measure("…"))
    return text[:keep].rstrip() + "…"


def _longest(text: str, room: float) -> int:
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if _font().getlength(text[:middle]) <= room else (low, middle - 1)
        )
    return low


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageFont.load_default(FONT_SIZE)
