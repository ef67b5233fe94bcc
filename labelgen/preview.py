"""Contact sheet: what a teacher sees and what it says, to be looked at before a long run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from labelgen.crop_worker import CropConfig, CutUnit, cut_unit
from labelgen.forward import Forward, matmul_precision
from labelgen.plan import Unit
from labelgen.teacher import Teacher
from storage.errors import BadImage, TeachonceError
from storage.images import ImageFolder, ImageStatus
from storage.pixels import decode_rgb, pad_image
from storage.views import Sampler

TILE = 176  # pixels a tile is wide and high
GAP = 8
NUM_LABELS = 3
_FONT_SIZE = 12
_LINE = 16
_LABELS_HEIGHT = NUM_LABELS * _LINE + 6
_BAR = (190, 214, 240)
_OUTLINES = ((230, 60, 60), (40, 140, 60), (50, 90, 220), (200, 120, 0), (140, 60, 180))
_INK = (20, 20, 20)
_PALE = (90, 90, 90)


def contact_sheet(
    teacher: Teacher,
    folder: ImageFolder,
    sampler: Sampler,
    *,
    num_images: int,
    num_views: int,
    seed: int,
) -> tuple[Image.Image, list[str]]:
    """One row an image: the photo with its boxes, then its first views with their top labels.

    The views are those that a run with this seed labels. Images are drawn at random by the seed;
    bad ones are passed over.

    Returns:
        the sheet, and the keys of the images on it.
    Raises:
        TeachonceError: no image can be decoded.
    """
    size = teacher.spec.input_size
    config = CropConfig(
        root=str(folder.root),
        sampler=sampler.to_json(),
        seed=seed,
        size=size,
        interpolation=teacher.spec.interpolation,
        slots=num_views,
    )
    forward = Forward(teacher, min(NUM_LABELS, teacher.spec.num_classes))
    names = class_labels(teacher)
    rows, shown = [], []
    for row in np.random.default_rng([seed, len(folder)]).permutation(len(folder)).tolist():
        pixels = np.zeros((num_views, size, size, 3), np.uint8)
        cut = cut_unit(Unit(row, 0, num_views, 0), folder.keys[row], config, sampler, pixels)
        if cut.status != ImageStatus.OK:
            continue
        with matmul_precision(teacher.precision):
            values, index = forward(pixels)
        tiles = [_photo_tile(folder, row, cut, sampler.padding)]
        for view in range(num_views):
            labels = [
                (names[i], float(np.exp(v))) for v, i in zip(values[view], index[view], strict=True)
            ]
            tiles.append(_crop_tile(pixels[view], labels, _OUTLINES[view % len(_OUTLINES)]))
        rows.append(tiles)
        shown.append(folder.keys[row])
        if len(rows) == num_images:
            break
    if not rows:
        raise TeachonceError(f"no image of {folder.root} can be decoded: give another folder")
    return _arrange(rows), shown


def class_labels(teacher: Teacher) -> list[str]:
    """Short readable names of the teacher's classes: the words of a wnid, else what is known."""
    classes = teacher.spec.classes
    if classes is None:
        return [f"class {i}" for i in range(teacher.spec.num_classes)]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": len(classes)})
    if subset and tuple(ImageNetInfo(subset).label_names()) == classes:
        info = ImageNetInfo(subset)
        return [info.index_to_description(i).split(",")[0] for i in range(len(classes))]
    return list(classes)


def _photo_tile(folder: ImageFolder, row: int, cut: CutUnit, padding: int) -> Image.Image:
    """The photo with the boxes of its views; below it the file's name and class."""
    try:
        photo = pad_image(decode_rgb(folder.path(row).read_bytes()), padding)
    except (BadImage, OSError) as error:  # it could be read a moment ago
        raise TeachonceError(f"{folder.keys[row]} changed while it was drawn: {error}") from error
    scale = TILE / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    photo = photo.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    for view, (top, left, box_height, box_width) in enumerate(_boxes(cut).tolist()):
        corners = [left, top, left + box_width, top + box_height]
        x0, y0, x1, y1 = (round(value * scale) for value in corners)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)),
                       outline=_OUTLINES[view % len(_OUTLINES)], width=2)  # fmt: skip
    tile = _blank_tile()
    tile.paste(photo, ((TILE - width) // 2, (TILE - height) // 2))
    *folders, name = folder.keys[row].split("/")
    _write_lines(tile, [(name, _INK), ("/".join(folders), _PALE),
                        (f"{cut.width} x {cut.height}", _PALE)])  # fmt: skip
    return tile


def _boxes(cut: CutUnit) -> npt.NDArray[np.uint16]:
    return np.zeros((0, 4), np.uint16) if cut.box is None else cut.box


def _crop_tile(
    pixels: npt.NDArray[np.uint8],
    labels: Sequence[tuple[str, float]],
    outline: tuple[int, int, int],
) -> Image.Image:
    """A crop as the teacher sees it; below it the top labels over bars of their probability."""
    tile = _blank_tile()
    filter_ = Image.Resampling.NEAREST if len(pixels) < TILE // 2 else Image.Resampling.BICUBIC
    tile.paste(Image.fromarray(pixels).resize((TILE, TILE), filter_), (0, 0))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, TILE - 1, TILE - 1), outline=outline, width=2)
    for line, (_, probability) in enumerate(labels):
        top = TILE + 4 + line * _LINE
        draw.rectangle((0, top, round(probability * (TILE - 1)), top + _LINE - 3), fill=_BAR)
    _write_lines(tile, [(name, _INK) for name, _ in labels], reserve=38)
    for line, (_, probability) in enumerate(labels):
        draw.text((TILE - 3, TILE + 3 + line * _LINE), f"{100 * probability:.0f} %",
                  fill=_INK, font=_font(), anchor="ra")  # fmt: skip
    return tile


def _write_lines(
    tile: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int]]], reserve: int = 0
) -> None:
    draw, font = ImageDraw.Draw(tile), _font()
    for number, (text, ink) in enumerate(lines):
        shown = text
        while shown and draw.textlength(shown, font=font) > TILE - 4 - reserve:
            text = text[:-1]
            shown = f"{text}…"
        draw.text((3, TILE + 3 + number * _LINE), shown, fill=ink, font=font)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageFont.load_default(_FONT_SIZE)


def _blank_tile() -> Image.Image:
    return Image.new("RGB", (TILE, TILE + _LABELS_HEIGHT), (255, 255, 255))


def _arrange(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    sheet = Image.new(
        "RGB",
        (GAP + len(rows[0]) * (width + GAP), GAP + len(rows) * (height + GAP)),
        (255, 255, 255),
    )
    for i, tiles in enumerate(rows):
        for j, tile in enumerate(tiles):
            sheet.paste(tile, (GAP + j * (width + GAP), GAP + i * (height + GAP)))
    return sheet
