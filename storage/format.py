"""Settings of a label store (format 1), their defaults and the hashes that bind them.

docs/format.md is the normative text; layout.py turns settings into arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import TopKCodec
from storage.dictionary import codec_from_json
from storage.errors import FormatVersion, StoreError, UsageError
from storage.pixels import PixelContract
from storage.views import Sampler, sampler_from_json

FORMAT_VERSION = 1
ATTRIBUTE = "teachonce"  # the key of the root group's attributes that holds everything of ours
DEFAULT_KEY_BYTES = 256
DEFAULT_PLANE_VIEWS = 4
MAX_SEGMENT_VIEWS = 100
MAX_ONE_SEGMENT = 150
_TEACHER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Which network made one set of labels, and how; `measured` is filled when a store is sealed.

    digest: hex SHA-256 over the weights' sorted (name, dtype, shape, bytes).
    mean, std: three numbers each, for pixels scaled to 0..1.
    classes: names in the order of the outputs, or None where unknown.
    """

    name: str
    spec: str
    library: str
    version: str
    arch: str
    digest: str
    licence: str
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    num_classes: int
    classes: tuple[str, ...] | None
    class_order_hash: str | None
    precision: str
    batch_size: int
    codec: TopKCodec
    measured: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not _TEACHER_NAME.fullmatch(self.name):
            raise UsageError(
                f"teacher name {self.name!r} can't name a folder; expected up to 100 letters, "
                "digits, '.', '_', '@', '+' or '-', starting with a letter or digit"
            )
        if self.codec.num_classes != self.num_classes:
            raise UsageError(
                f"teacher {self.name}: codec has {self.codec.num_classes} classes, "
                f"the teacher {self.num_classes}"
            )
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise UsageError(
                f"teacher {self.name}: {len(self.classes)} class names for "
                f"{self.num_classes} classes"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings, without what was measured."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del values["measured"]
        values["codec"] = self.codec.to_json()
        return _plain_dict(values)

    @staticmethod
    def from_json(values: dict[str, Any], measured: dict[str, Any]) -> TeacherRecord:
        """The record that `to_json` described."""
        values = dict(values)
        values["codec"] = codec_from_json(values["codec"])
        for name in ("mean", "std", "classes"):
            if values[name] is not None:
                values[name] = tuple(values[name])
        return TeacherRecord(**values, measured=measured)


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """All settings of a store. Two runs with equal settings and images write equal bytes.

    block_images: images a work item (inner chunks and shards have as many).
    plane_views: views an inner chunk has, those an epoch uses together.
    segment_views: views a shard (a file) has; a multiple of plane_views.
    dataset: at least classes, class_order_hash, keys_hash and num_images.
    key_bytes: longest image key in bytes of UTF-8.
    """

    format_version: int = FORMAT_VERSION
    num_images: int
    num_views: int
    block_images: int
    plane_views: int
    segment_views: int
    sampler: Sampler
    pixel: PixelContract
    seed: int
    dataset: dict[str, Any]
    teachers: dict[str, TeacherRecord]
    key_bytes: int = DEFAULT_KEY_BYTES

    def __post_init__(self) -> None:
        check_version(self.format_version)
        dataset = _plain_dict(self.dataset)  # as a store gives it back, so that specs compare
        dataset["classes"] = tuple(dataset.get("classes") or ())
        object.__setattr__(self, "dataset", dataset)
        for name in ("num_images", "num_views", "block_images", "plane_views", "segment_views",
                     "key_bytes"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.segment_views % self.plane_views:
            raise UsageError(
                f"segment_views is {self.segment_views}; expected a multiple of plane_views "
                f"({self.plane_views})"
            )
        distinct = self.sampler.distinct_views
        if distinct is not None and self.num_views > distinct:
            raise UsageError(
                f"{self.num_views} views an image asked for, but {self.sampler.kind} has "
                f"{distinct} distinct ones: use at most --crops {distinct}"
            )
        if self.pixel.padding != self.sampler.padding:
            raise UsageError(
                f"pixel contract pads by {self.pixel.padding}, the sampler by "
                f"{self.sampler.padding}; expected the same"
            )
        if any(name != record.name for name, record in self.teachers.items()):
            raise UsageError("teachers must be filed under their own names")

    def settings(self) -> dict[str, Any]:
        """Plain values; `differences` compares two of these."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["sampler"] = self.sampler.to_json()
        values["pixel"] = self.pixel.to_json()
        values["teachers"] = {name: t.to_json() for name, t in sorted(self.teachers.items())}
        return _plain_dict(values)

    @staticmethod
    def from_settings(values: dict[str, Any], measured: dict[str, Any]) -> StoreSpec:
        """The settings that `settings` described; `measured` by teacher.

        Raises:
            FormatVersion: written by a newer release.
            StoreError: settings that this format doesn't have, or lacks some that it has.
        """
        check_version(values.get("format_version"))
        values = dict(values)
        try:
            values["sampler"] = sampler_from_json(values["sampler"])
            values["pixel"] = PixelContract(**values["pixel"])
            values["teachers"] = {
                name: TeacherRecord.from_json(record, measured.get(name, {}))
                for name, record in values["teachers"].items()
            }
            return StoreSpec(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the store's settings can't be read: {error!r}") from error

    @property
    def num_blocks(self) -> int:
        """Work items of the whole store."""
        return math.ceil(self.num_images / self.block_images)

    @property
    def num_segments(self) -> int:
        """Shards (files) of one block and one array with a view axis."""
        return math.ceil(self.num_views / self.segment_views)

    def block_rows(self, block: int) -> range:
        """Rows of one block."""
        if not 0 <= block < self.num_blocks:
            raise UsageError(f"block {block}; the store has blocks 0 to {self.num_blocks - 1}")
        first = block * self.block_images
        return range(first, min(first + self.block_images, self.num_images))


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, two spaces, ASCII, one newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def default_block_images(num_images: int, num_views: int) -> int:
    """Images a block has: the largest power of two that leaves 16 blocks and 2^21 crops a block.

    At most 4096, so that an epoch's plane is read in pieces of some hundred kilobytes; at least
    64, below which labels compress badly (docs/codec.md), or 8 where that would be too many crops.
    """
    most = max(1, (1 << 21) // num_views)
    limit = min(4096, max(1, num_images // 16), most)
    least = 64 if most >= 64 else 8
    return min(num_images, max(least, 1 << (limit.bit_length() - 1)))


def default_plane_views(num_views: int) -> int:
    """Views read together: 4, as FKD trains."""
    return min(DEFAULT_PLANE_VIEWS, num_views)


def default_segment_views(num_views: int, plane_views: int) -> int:
    """Views in one file, in whole planes: all of them up to 150, else 100 (no file of few views,
    whose index would take as much room as a full one's)."""
    most = MAX_SEGMENT_VIEWS if num_views > MAX_ONE_SEGMENT else num_views
    planes = max(1, min(math.ceil(num_views / plane_views), math.ceil(most / plane_views)))
    return planes * plane_views


def dataset_fingerprint(digests: npt.NDArray[np.uint8]) -> str:
    """Hex SHA-256 of the sorted content digests [N, 32]: the same images in any order."""
    rows = np.ascontiguousarray(digests, np.uint8).view("V32").ravel().tolist()
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def keys_hash(keys: Iterable[str]) -> str:
    """Hex SHA-256 that binds the image keys and their order."""
    joined = b"\0".join(key.encode("utf-8", "surrogateescape") for key in keys)
    return hashlib.sha256(joined).hexdigest()


def check_version(version: Any) -> None:
    """Refuse formats of other releases.

    Raises:
        FormatVersion: not a format this release can read.
    """
    if version != FORMAT_VERSION:
        raise FormatVersion(
            f"label store of format {version!r}; this release reads format {FORMAT_VERSION}: "
            "install a newer teachonce"
        )


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Every setting that differs, as 'name: ours, but theirs'."""
    found = []
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, dict) and isinstance(other, dict):
            found += differences(mine, other, f"{prefix}{name}.")
        elif mine != other:
            found.append(f"{prefix}{name} is {_short(mine)}, not {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain_dict(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists, keys strings."""
    plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return plain
