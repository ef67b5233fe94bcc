"""Hugging Face image data sets on disk: folders of `save_to_disk`, or of parquet files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from storage.errors import BadImage, UsageError
from storage.pixels import decode_rgb
from trainer.sources import open_source
from trainer.sources.base import LABEL_COLUMNS
from trainer.sources.hugging_face import PREFIX, HubSource, parse
from trainer.sources.parquet import ParquetSource

SPLITS_NAME = "dataset_dict.json"  # of `save_to_disk`, where there are several
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first that is there


@dataclass(frozen=True, eq=False)
class HfImages:
    """A split of a data set whose images are encoded files."""

    source: HubSource | ParquetSource
    folder_of_origin: Path

    @property
    def location(self) -> str:
        """As it was given, with its split."""
        return self.source.location

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data set's classes."""
        return self.source.classes

    @property
    def targets(self) -> tuple[int, ...]:
        """Class of every image."""
        return tuple(self.source.targets)

    def name(self, row: int) -> str:
        """The data set's own name of an image, where it has one."""
        return self.source.keys[row]

    def content(self, row: int) -> bytes:
        """The encoded file."""
        found = self.source.read(row)
        return found if isinstance(found, bytes) else b""

    def decode(self, row: int) -> Image.Image:
        """The decoded file."""
        content = self.content(row)
        if not content:
            raise BadImage(f"{self.name(row)} of {self.location} holds no bytes")
        return decode_rgb(content)

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The file itself."""
        return self.content(row), Path(self.name(row)).suffix or ".image"


def open_hf(root: str, split: str) -> HfImages:
    """A split of a data set of images with classes.

    Args:
        root: a folder, maybe with :SPLIT. Without one `train` is its split train, and `test` its
            split test, else validation.
    Raises:
        UsageError: no such split, images without a class, or see `trainer.sources.open_source`.
    """
    place, asked = parse(PREFIX + root)
    folder = Path(place)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    there = _splits(folder)
    wanted = ("train",) if split == "train" else TEST_SPLITS
    name = asked or next((one for one in wanted if one in there), None)
    if name is None and there:
        raise UsageError(
            f"{PREFIX}{place} has no split {' or '.join(wanted)} but {', '.join(there)}: choose "
            f"one with {PREFIX}{place}:{there[0]}"
        )
    source = open_source(f"{PREFIX}{place}:{name}" if name else f"{PREFIX}{place}")
    assert isinstance(source, (HubSource, ParquetSource))  # by its prefix
    if not source.classes or min(source.targets, default=-1) < 0:
        raise UsageError(
            f"{source.location} has images without a class: a column of classes is expected, "
            f"named {LABEL_COLUMNS[0]!r} where there are several"
        )
    return HfImages(source, folder)


def _splits(folder: Path) -> tuple[str, ...]:
    """Names of the splits that a folder holds, empty where it isn't divided."""
    if (folder / SPLITS_NAME).is_file():
        return tuple(json.loads((folder / SPLITS_NAME).read_text())["splits"])
    names = [path.name for pattern in ("*.parquet", "data/*.parquet")
             for path in folder.glob(pattern)]  # fmt: skip
    known = ("train", *TEST_SPLITS)
    found = [one for one in known if any(name.startswith(f"{one}-") for name in names)]
    return tuple(found)
