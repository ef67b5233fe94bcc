"""Settings of a label store (format 1), their defaults and the hashes that bind them.

docs/format.md is the normative text; layout.py turns settings into arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.augment import Augment, augment_from_json
from storage.box_codec import BOX_ARRAYS, check_view_codec
from storage.errors import FormatVersion, StoreError, UsageError
from storage.pixels import PixelContract
from storage.targets.kinds import check_target
from storage.targets.record import TargetRecord
from storage.teacher_record import TeacherRecord
from storage.typed import check_types, plain_dict
from storage.views import Sampler, sampler_from_json

FORMAT_VERSION = 1
ATTRIBUTE = "teachonce"  # the key of the root group's attributes that holds everything of ours
ORIGIN = "origin"  # of ours: where a store that was made from others comes from
DEFAULT_KEY_BYTES = 256
DEFAULT_PLANE_VIEWS = 4
MOST_VIEWS = 1 << 20
MAX_SEGMENT_VIEWS = 100
MAX_ONE_SEGMENT = 150
MOST_TARGET_BYTES = 256 << 20  # of a block's encoded targets, which a writer holds in memory


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """All settings of a store. Two runs with equal settings and images write equal bytes.

    block_images: images a work item (inner chunks and shards have as many).
    plane_views: views an inner chunk has, those an epoch uses together.
    segment_views: views a shard (a file) has; a multiple of plane_views.
    dataset: at least classes, class_order_hash, keys_hash and num_images.
    key_bytes: longest image key in bytes of UTF-8.
    targets: vectors of views beside the labels, by their path.
    pixel_digests: whether the store keeps a digest of every image's decoded pixels.
    augment: operations on every crop whose draws are stored; None where crops stay as they are.
    view_codec: how boxes and flips are kept, one of `box_codec.VIEW_CODECS`.
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
    targets: dict[str, TargetRecord] = field(default_factory=dict)
    pixel_digests: bool = False
    augment: Augment | None = None
    view_codec: str = BOX_ARRAYS

    def __post_init__(self) -> None:
        check_version(self.format_version)
        check_view_codec(self.view_codec)
        check_types(self)
        _check_dataset(self.dataset)
        dataset = plain_dict(self.dataset)  # as a store gives it back, so that specs compare
        dataset["classes"] = tuple(dataset.get("classes") or ())
        object.__setattr__(self, "dataset", dataset)
        for name in ("num_images", "num_views", "block_images", "plane_views", "segment_views",
                     "key_bytes"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; expected 0 or more")
        if max(self.num_views, self.segment_views) > MOST_VIEWS:
            raise UsageError(
                f"{self.num_views} views in segments of {self.segment_views}; expected at most "
                f"{MOST_VIEWS}"
            )
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
        for path, target in self.targets.items():
            self._check_target(path, target)

    def _check_target(self, path: str, target: TargetRecord) -> None:
        if path != target.path:
            raise UsageError(f"target {target.path} is filed under {path}")
        if target.views > self.num_views:
            raise UsageError(
                f"{path} has {target.views} views; the store has {self.num_views} of every image"
            )
        if target.teacher not in self.teachers:
            raise UsageError(
                f"{path} is of teacher {target.teacher!r}, whose labels the store doesn't have"
            )
        check_target(target)

    def settings(self) -> dict[str, Any]:
        """Plain values; `differences` compares two of these."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["sampler"] = self.sampler.to_json()
        values["pixel"] = self.pixel.to_json()
        values["teachers"] = {name: t.to_json() for name, t in sorted(self.teachers.items())}
        values["targets"] = {path: t.to_json() for path, t in sorted(self.targets.items())}
        values["augment"] = self.augment.to_json() if self.augment else None
        for name in ("targets", "pixel_digests", "augment"):  # later than format 1's first stores
            if not values[name]:
                del values[name]
        if self.view_codec == BOX_ARRAYS:  # what stores without the setting have
            del values["view_codec"]
        return plain_dict(values)

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
            values["augment"] = augment_from_json(values.get("augment"))
            values["teachers"] = {
                name: TeacherRecord.from_json(record, measured.get(name, {}))
                for name, record in values["teachers"].items()
            }
            values["targets"] = {
                path: TargetRecord.from_json(record)
                for path, record in values.get("targets", {}).items()
            }
            return StoreSpec(**values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
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


def check_attributes(ours: dict[str, Any]) -> None:
    """Refuse a store's attributes of wrong types; its settings check themselves.

    Raises:
        UsageError: names the attribute.
    """
    kinds = {"settings": dict, "software": dict, "measured": dict, "origin": dict,
             "first_view": int}  # fmt: skip
    for name, kind in kinds.items():
        if name in ours and type(ours[name]) is not kind:
            raise UsageError(f"{name} is {_short(ours[name])}; expected {kind.__name__}")
    if ours.get("first_view", 0) < 0:
        raise UsageError(f"first_view is {ours['first_view']}; expected 0 or more")


def _check_dataset(dataset: dict[str, Any]) -> None:
    """Refuse a data set's settings of wrong types."""
    classes = dataset.get("classes") or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        raise UsageError("dataset.classes must be a list of names")
    for name in ("class_order_hash", "keys_hash"):
        if not isinstance(dataset.get(name), str | None):
            raise UsageError(f"dataset.{name} is {dataset[name]!r}; expected text")
    for name, kind in (("num_images", int), ("imported", dict)):
        if name in dataset and type(dataset[name]) is not kind:
            raise UsageError(f"dataset.{name} is {dataset[name]!r}; expected {kind.__name__}")


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, two spaces, ASCII, one newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def default_block_images(num_images: int, num_views: int, image_bytes: int = 0) -> int:
    """Images a block has: the largest power of two that leaves 16 blocks and 2^21 crops a block.

    At most 4096, so that an epoch's plane is read in pieces of some hundred kilobytes; at least
    64, below which labels compress badly (docs/codec.md), or 8 where that would be too many crops.

    Args:
        image_bytes: bytes of encoded targets that one image has, all its views together; a block
            has at most 256 MiB of them, down to one image.
    """
    most = max(1, (1 << 21) // num_views)
    limit = min(4096, max(1, num_images // 16), most)
    least = 64 if most >= 64 else 8
    images = max(least, _power_of_two(limit))
    if image_bytes:
        images = min(images, _power_of_two(max(1, MOST_TARGET_BYTES // image_bytes)))
    return min(num_images, images)


def _power_of_two(limit: int) -> int:
    """The largest one that is at most `limit`."""
    return 1 << (limit.bit_length() - 1)


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
    words = np.ascontiguousarray(digests, np.uint8).view(">u8").astype(np.uint64)
    order = np.argsort(words[:, 0])
    first = words[order, 0]
    if bool((first[1:] == first[:-1]).any()):  # copies, or 64 bits alike: rare
        order = np.lexsort(words.T[::-1])
    return hashlib.sha256(np.ascontiguousarray(digests, np.uint8)[order].tobytes()).hexdigest()


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
