"""WebDataset tars as a source: `000001.jpg` and `000001.cls` beside each other make one sample.

Only images, `.cls`, `.json` and `.txt` members are ever read. WebDataset's members with pickles
(`.pyd`, `.pickle`, `.pkl`, `.pth`, `.npy` ...) are passed over. The tars are indexed by their
headers; workers read the images' bytes straight from where they lie.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.errors import StoreError, UsageError
from storage.extras import needs_extra
from storage.pixels import IMAGE_SUFFIXES
from trainer.sources.base import (
    CHUNK_IMAGES,
    Content,
    stamp_files,
    targets_by_name,
    unique_keys,
)

LABEL_SUFFIXES = (".cls", ".json")
JSON_KEYS = ("cls", "label", "class", "target")
MOST_LABEL_BYTES = 1 << 20
Label = int | str | None


@dataclass(frozen=True)
class Member:
    """One image of a tar."""

    key: str
    offset: int
    size: int
    label: Label


@dataclass(frozen=True)
class TarChunk:
    """Images of one tar by where their bytes lie."""

    path: Path
    places: tuple[tuple[int, int], ...]  # (offset, size)

    def read(self) -> Iterator[Content]:
        """Their bytes."""
        try:
            with self.path.open("rb") as file:
                found = [os.pread(file.fileno(), size, offset) for offset, size in self.places]
        except OSError as error:
            raise StoreError(f"{self.path} can't be read any more ({error.strerror})") from error
        for data, (_, size) in zip(found, self.places, strict=True):
            if len(data) != size:
                raise StoreError(f"{self.path} is cut short: fetch it again")
            yield data


@dataclass
class _Sample:
    image: tuple[str, int, int] | None = None  # member's name, offset, size
    labels: dict[str, bytes] = field(default_factory=dict)


class TarSource:
    """The samples of WebDataset tars that have an image.

    Args:
        location: as it was given. paths: the tars, in order.
        names: of the classes, where labels are numbers.
    Raises:
        UsageError: no images, two images in one sample, or labels that can't be read.
        StoreError: a tar is damaged.
    """

    def __init__(
        self, location: str, paths: Sequence[Path], names: Sequence[str] | None = None
    ) -> None:
        self.location, self._paths = location, tuple(paths)
        self.name = self._paths[0].stem if len(self._paths) == 1 else self._paths[0].parent.name
        self._members = [read_index(path) for path in self._paths]
        members = [member for each in self._members for member in each]
        if not members:
            raise UsageError(
                f"{location} holds no images (looked for {', '.join(IMAGE_SUFFIXES)} members)"
            )
        shards = [p.stem for p, m in zip(self._paths, self._members, strict=True) for _ in m]
        self.keys = unique_keys([member.key for member in members], shards)
        labels = [member.label for member in members]
        self.targets, self.classes = targets_by_name(labels, names, location)

    def __len__(self) -> int:
        return len(self.keys)

    def chunks(self) -> Iterator[TarChunk]:
        """Images in the order of the tars."""
        for path, members in zip(self._paths, self._members, strict=True):
            for start in range(0, len(members), CHUNK_IMAGES):
                part = members[start : start + CHUNK_IMAGES]
                yield TarChunk(path, tuple((member.offset, member.size) for member in part))

    def stamp(self) -> str:
        """Of the tars."""
        return stamp_files(self._paths, map(str, self._paths))


def expand(pattern: str) -> list[Path]:
    """Paths of a pattern such as `train-{0000..0146}.tar`, in its order.

    Raises:
        UsageError: a file of it isn't there, or the package is missing.
    """
    if "{" not in pattern:
        paths = [Path(pattern)]
    else:
        try:
            from braceexpand import braceexpand
        except ImportError as error:
            raise needs_extra(pattern, "webdataset", "data") from error
        paths = [Path(name) for name in braceexpand(pattern)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist ({len(paths)} tars make up {pattern})")
    return paths


def read_index(path: Path) -> list[Member]:
    """The samples of one tar that have an image, by its headers and label members.

    Raises:
        UsageError: two images in one sample, or a label that can't be read.
        StoreError: the tar is damaged, cut short or packed.
    """
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isfile():
                    continue
                folder, _, name = info.name.removeprefix("./").rpartition("/")
                stem, dot, suffix = name.partition(".")
                if not stem or not dot:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                _note(path, samples.setdefault(key, _Sample()), archive, info, suffix.lower())
            _check_end(path, archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise StoreError(
            f"{path} is not a readable tar ({error}): fetch it again; packed ones (.tar.gz) must "
            "be unpacked first"
        ) from error
    return [
        Member(sample.image[0], sample.image[1], sample.image[2], _label(path, key, sample.labels))
        for key, sample in samples.items()
        if sample.image is not None
    ]


def _note(
    path: Path, sample: _Sample, archive: tarfile.TarFile, info: tarfile.TarInfo, suffix: str
) -> None:
    last = "." + suffix.rpartition(".")[2]  # of `left.jpg` too
    if last in IMAGE_SUFFIXES:
        if sample.image is not None:
            raise UsageError(
                f"{path}: sample {info.name} has two images ({sample.image[0]}): keep one of them"
            )
        sample.image = (info.name.removeprefix("./"), info.offset_data, info.size)
    elif "." + suffix in LABEL_SUFFIXES and info.size <= MOST_LABEL_BYTES:
        file = archive.extractfile(info)
        sample.labels["." + suffix] = file.read() if file else b""


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """The block of zeros that ends a tar is there: `tarfile` takes any end for the end."""
    end = max((member.offset_data + member.size for member in archive.getmembers()), default=0)
    with path.open("rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut short")


def _label(path: Path, key: str, labels: dict[str, bytes]) -> Label:
    if ".cls" in labels:
        text = labels[".cls"].decode("utf-8", "replace").strip()
        return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() else text
    if ".json" in labels:
        try:
            values = json.loads(labels[".json"])
        except ValueError as error:
            raise UsageError(f"{path}: {key}.json is not JSON ({error})") from error
        found = (
            values.get(next((k for k in JSON_KEYS if k in values), ""))
            if isinstance(values, dict)
            else values
        )
        if isinstance(found, bool) or not isinstance(found, int | str | None):
            raise UsageError(f"{path}: the label in {key}.json is {found!r}; expected one class")
        return found
    return None
