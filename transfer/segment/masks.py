"""Masks as class numbers: what their ids or colours mean, and reading them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.errors import UsageError
from transfer.segment.settings import IGNORED

CLASSES_NAME = "classes.json"
MOST_CLASSES = 254  # 255 is IGNORED
_ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B")
_COLOUR_MODES = ("RGB", "RGBA")
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """What a data set's masks mean.

    Attributes:
        names: of the classes that are learnt. ids: of each, in a mask.
        ignored: ids that count nowhere. source: where this stands, for people.
        colours: id by colour, for masks in RGB; None where masks hold ids.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    ignored: frozenset[int]
    source: str
    colours: tuple[tuple[Colour, int], ...] | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= MOST_CLASSES:
            raise UsageError(
                f"{self.source} has {len(self.names)} classes to learn; expected 2 to "
                f"{MOST_CLASSES}"
            )

    def lookup(self) -> npt.NDArray[np.int16]:
        """Class by id; IGNORED where it counts nowhere, -1 where it means nothing."""
        table = np.full(max(*self.ids, *self.ignored, 255) + 1, -1, dtype=np.int16)
        table[list(self.ids)] = np.arange(len(self.ids))
        table[list(self.ignored)] = IGNORED
        return table


def read_classes(path: Path) -> ClassTable:
    """The table of a `classes.json`.

    `{"names": [...], "ignore_index": 255, "colors": [[r, g, b], ...]}`: names by id; ignore_index
    is an id or a list of them, and may be left out; colors, one for each name, are for masks in
    RGB alone.

    Raises:
        UsageError: no such file, or one that says something else.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is missing: write what the ids of the masks mean, as in "
            '{"names": ["sky", "road"], "ignore_index": 255}'
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as JSON ({error})") from error
    try:
        return _table(values, str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} does not say what the masks mean ({error!r}): expected "
            '{"names": [...], "ignore_index": 255}'
        ) from error


def _table(values: Any, source: str) -> ClassTable:
    names = [str(name) for name in values["names"]]
    ignore = values.get("ignore_index", [])
    ignored = frozenset(int(i) for i in (ignore if isinstance(ignore, list) else [ignore]))
    if ignored and (min(ignored) < 0 or max(ignored) > 65535):
        raise ValueError(f"ignore_index {sorted(ignored)}")
    colours = values.get("colors")
    if colours is not None and len(colours) != len(names):
        raise ValueError(f"{len(colours)} colors for {len(names)} names")
    kept = [i for i in range(len(names)) if i not in ignored]
    return ClassTable(
        names=tuple(names[i] for i in kept),
        ids=tuple(kept),
        ignored=ignored,
        source=source,
        colours=None if colours is None else tuple((_colour(c), i) for i, c in enumerate(colours)),
    )


def _colour(values: Any) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def decode_mask(
    data: bytes, name: str, table: ClassTable, size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """An encoded mask as uint8 [H, W], numbers of `table.names` and IGNORED.

    Args:
        name: of the file, for messages. size: width and height of its image.
    Raises:
        UsageError: it can't be decoded, has another size, or holds what the table doesn't know.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # pillow raises many types on damaged files
        raise UsageError(
            f"mask {name} can't be decoded ({error}): repair it, or take its image out"
        ) from error
    if image.size != size:
        raise UsageError(
            f"mask {name} is {image.width}x{image.height} and its image {size[0]}x{size[1]}: "
            "resize the mask with nearest neighbours, or take the image out"
        )
    ids = _ids(image, name, table)
    lookup = table.lookup()
    found = np.where(ids < len(lookup), lookup[np.minimum(ids, len(lookup) - 1)], -1)
    if (found < 0).any():
        _refuse_ids(ids, found < 0, name, table)
    return found.astype(np.uint8)


def _ids(image: Image.Image, name: str, table: ClassTable) -> npt.NDArray[np.int64]:
    if image.mode in _COLOUR_MODES and table.colours is not None:
        return _ids_of_colours(np.asarray(image.convert("RGB")), name, table)
    if image.mode in _COLOUR_MODES:
        raise UsageError(
            f"mask {name} holds colours ({image.mode}), not class ids: store it with one channel "
            f'of ids, or give each class its colour as "colors" in {table.source}'
        )
    if image.mode not in _ID_MODES:
        raise UsageError(
            f"mask {name} has pixels of mode {image.mode}; expected one channel of class ids "
            "(an 8-bit or palette PNG)"
        )
    return np.asarray(image).astype(np.int64)


def _ids_of_colours(
    pixels: npt.NDArray[np.uint8], name: str, table: ClassTable
) -> npt.NDArray[np.int64]:
    assert table.colours is not None
    weights = np.array([65536, 256, 1])
    packed = pixels.astype(np.int64) @ weights
    colours, place = np.unique(packed, return_inverse=True)
    known = {int(np.dot(colour, weights)): number for colour, number in table.colours}
    unknown = [int(colour) for colour in colours if int(colour) not in known]
    if unknown:
        red, rest = divmod(unknown[0], 65536)
        raise UsageError(
            f"mask {name} has {len(unknown)} colours that {table.source} doesn't know, such as "
            f"{[red, *divmod(rest, 256)]}: add them (a mask saved as JPEG has many)"
        )
    ids = np.array([known[int(colour)] for colour in colours])
    return ids[place].reshape(packed.shape)


def _refuse_ids(
    ids: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], name: str, table: ClassTable
) -> None:
    values = np.unique(ids[wrong])
    row, column = (int(place[0]) for place in np.nonzero(wrong))
    shown = ", ".join(str(value) for value in values[:5]) + ", ..." * (len(values) > 5)
    raise UsageError(
        f"mask {name} has ids that mean nothing: {shown} (first at row {row}, column {column}); "
        f"{table.source} knows {_ranges((*table.ids, *table.ignored))}: add them there, as names "
        "or under ignore_index"
    )


def _ranges(ids: tuple[int, ...]) -> str:
    """`0 to 11, 255`."""
    parts: list[list[int]] = []
    for number in sorted(set(ids)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in parts)
