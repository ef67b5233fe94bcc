"""Contact sheet: what a teacher sees and says, before a long run or from a finished store."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from labelgen.crop_worker import CropConfig, cut_unit
from labelgen.forward import Forward, matmul_precision
from labelgen.plan import Unit
from labelgen.teacher import Teacher
from storage.codecs import TopKLabels
from storage.errors import BadImage, StoreMismatch, TeachonceError
from storage.images import ImageFolder, ImageStatus, content_digest
from storage.pixels import cut_view, decode_rgb, pad_image
from storage.views import Sampler

if TYPE_CHECKING:
    from storage.store import LabelStore

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


@dataclass(frozen=True)
class ShownImage:
    """One row of a sheet.

    Attributes:
        photo: the padded image that the boxes lie in.
        box: uint16 [V, 4]; crops: uint8 [V, S, S, 3]; labels: V lists of (class, probability).
    """

    key: str
    photo: Image.Image
    box: npt.NDArray[np.uint16]
    crops: npt.NDArray[np.uint8]
    labels: list[list[tuple[str, float]]]


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
    rows = (
        live_row(teacher, folder, sampler, row, num_views, seed)
        for row in _random_rows(len(folder), seed)
    )
    return _sheet(rows, num_images, str(folder.root))


def stored_sheet(
    store: LabelStore, data: Path, teacher: str, *, num_images: int, num_views: int, seed: int
) -> tuple[Image.Image, list[str]]:
    """The same sheet from a store: its first views with the labels that it holds.

    Raises:
        StoreMismatch: an image at `data` is not the one that was labelled.
        TeachonceError: none of the store's images is at `data`.
    """
    images = store.read_images()
    plane = store.read_plane(0, num_views, teacher)
    record = store.spec.teachers[teacher]
    names = class_names(record.classes, record.num_classes)

    def stored_row(row: int) -> ShownImage | None:
        path = data / images.key[row]
        if images.status[row] != ImageStatus.OK or not path.is_file():
            return None
        encoded = path.read_bytes()
        if content_digest(encoded) != images.digest[row].tobytes():
            raise StoreMismatch(
                f"{path} is not the image that {store.path} has labels of: give the labelled "
                "images with --data"
            )
        photo = pad_image(decode_rgb(encoded), store.spec.pixel.padding)
        views = [
            cut_view(photo, box, bool(flip), record.input_size, store.spec.pixel.interpolation)
            for box, flip in zip(plane.box[row], plane.flip[row], strict=True)
        ]
        labels = TopKLabels(plane.index[row], plane.code[row], plane.tail[row])
        probs, _ = record.codec.decode(labels)
        top = [_named(names, *pair) for pair in zip(labels.index, probs, strict=True)]
        return ShownImage(images.key[row], photo, plane.box[row], np.stack(views), top)

    rows = (stored_row(row) for row in _random_rows(len(images.key), seed))
    return _sheet(rows, num_images, str(data))


def live_row(
    teacher: Teacher, folder: ImageFolder, sampler: Sampler, row: int, num_views: int, seed: int
) -> ShownImage | None:
    """One image as a run would label it; None where it can't be decoded."""
    size = teacher.spec.input_size
    config = CropConfig(
        root=str(folder.root),
        sampler=sampler.to_json(),
        seed=seed,
        size=size,
        interpolation=teacher.spec.interpolation,
        slots=num_views,
    )
    pixels = np.zeros((num_views, size, size, 3), np.uint8)
    cut = cut_unit(Unit(row, 0, num_views, 0), folder.keys[row], config, sampler, pixels)
    if cut.status != ImageStatus.OK or cut.box is None:
        return None
    with matmul_precision(teacher.precision):
        values, index = Forward(teacher, min(NUM_LABELS, teacher.spec.num_classes))(pixels)
    names = class_labels(teacher)
    labels = [_named(names, *pair) for pair in zip(index, np.exp(values), strict=True)]
    try:
        photo = pad_image(decode_rgb(folder.path(row).read_bytes()), sampler.padding)
    except (BadImage, OSError) as error:  # it could be read a moment ago
        raise TeachonceError(f"{folder.keys[row]} changed while it was drawn: {error}") from error
    return ShownImage(folder.keys[row], photo, cut.box, pixels, labels)


def _named(
    names: Sequence[str], index: npt.NDArray[Any], probs: npt.NDArray[Any]
) -> list[tuple[str, float]]:
    pairs = zip(index.tolist(), probs.tolist(), strict=True)
    return [(names[i], p) for i, p in pairs][:NUM_LABELS]


def _random_rows(count: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, count]).permutation(count).tolist()


def _sheet(
    rows: Iterable[ShownImage | None], num_images: int, where: str
) -> tuple[Image.Image, list[str]]:
    shown = list(islice((row for row in rows if row is not None), num_images))
    if not shown:
        raise TeachonceError(f"no image of {where} can be decoded or found: give another folder")
    tiles = [
        [_photo_tile(row), *(_crop_tile(*view) for view in zip(row.crops, row.labels,
                                                               cycle(_OUTLINES), strict=False))]
        for row in shown
    ]  # fmt: skip
    return _arrange(tiles), [row.key for row in shown]


def class_labels(teacher: Teacher) -> list[str]:
    """Short readable names of the teacher's classes."""
    return class_names(teacher.spec.classes, teacher.spec.num_classes)


def class_names(classes: tuple[str, ...] | None, num_classes: int) -> list[str]:
    """Short readable names: the words of a wnid, else what is known."""
    if classes is None:
        return [f"class {i}" for i in range(num_classes)]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": len(classes)})
    if subset and tuple(ImageNetInfo(subset).label_names()) == classes:
        info = ImageNetInfo(subset)
        return [info.index_to_description(i).split(",")[0] for i in range(len(classes))]
    return list(classes)


def _photo_tile(row: ShownImage) -> Image.Image:
    """The photo with the boxes of its views; below it the file's name, class and size."""
    scale = TILE / max(row.photo.size)
    width, height = (max(1, round(side * scale)) for side in row.photo.size)
    photo = row.photo.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    for (top, left, box_height, box_width), outline in zip(
        row.box.tolist(), cycle(_OUTLINES), strict=False
    ):
        corners = [left, top, left + box_width, top + box_height]
        x0, y0, x1, y1 = (round(value * scale) for value in corners)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=outline, width=2)
    tile = _blank_tile()
    tile.paste(photo, ((TILE - width) // 2, (TILE - height) // 2))
    *folders, name = row.key.split("/")
    _write_lines(tile, [(name, _INK), ("/".join(folders), _PALE),
                        (f"{row.photo.width} x {row.photo.height}", _PALE)])  # fmt: skip
    return tile


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
