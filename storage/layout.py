"""The Zarr v3 arrays of a label store (format 1): a pure function of its settings.

docs/format.md is the normative text. Letters: N images, M views an image, k kept classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.augment import NO_DRAW
from storage.box_codec import BOX_NUMBERS, NO_VIEW
from storage.codecs import NO_CODE, NO_INDEX
from storage.dictionary import DictionaryCodec
from storage.format import StoreSpec
from storage.targets.record import TargetRecord

NO_TARGET_FILL = -2  # -1 is an image without a class; -2 has never been written
MOST_TARGET_CHUNK = 1 << 20  # bytes, so that a few images of a large target can be read alone


@dataclass(frozen=True)
class ArrayLayout:
    """One array: its path in the store, element type, chunks and impossible fill value.

    compressors: Zarr codecs from a chunk's bytes to checksummed, smaller ones.
    """

    path: str
    dtype: str
    fill: int | str  # as Zarr writes it: "NaN" for numbers with a fraction
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None  # None: one chunk a file
    axes: tuple[str, ...]
    compressors: tuple[dict[str, Any], ...]

    @property
    def chunk_bytes(self) -> int:
        """Of one chunk, decoded."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def num_segments(self) -> int:
        """Files of one block."""
        return 1 if self.shard is None else math.ceil(self.shape[1] / self.shard[1])

    def block_objects(self, block: int) -> list[str]:
        """All files of one block, in order."""
        return self.object_paths(block, range(self.num_segments))

    def segments_of(self, first: int, last: int) -> range:
        """Segments that hold views `first` to `last - 1`."""
        assert self.shard is not None, "only arrays with views have segments"
        return range(first // self.shard[1], math.ceil(last / self.shard[1]))

    def object_paths(self, block: int, segments: Iterable[int] = (0,)) -> list[str]:
        """Files of one block (and of some segments where there is a view axis), in order."""
        if self.shard is None:
            rest = ["0"] * (len(self.shape) - 1)
            return ["/".join([self.path, "c", str(block), *rest])]
        rest = ["0"] * (len(self.shape) - 2)
        return ["/".join([self.path, "c", str(block), str(s), *rest]) for s in segments]

    def metadata(self) -> dict[str, Any]:
        """The array's zarr.json (core codecs of Zarr v3 only)."""
        itemsize = np.dtype(self.dtype).itemsize
        to_bytes: dict[str, Any] = {"name": "bytes"}
        if itemsize > 1:
            to_bytes["configuration"] = {"endian": "little"}
        codecs: list[dict[str, Any]] = [to_bytes, *self.compressors]
        if self.shard is not None:
            index = [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ]
            sharding = {
                "chunk_shape": list(self.chunk),
                "codecs": codecs,
                "index_codecs": index,
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": str(np.dtype(self.dtype)),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.shard or self.chunk)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.fill,
            "codecs": codecs,
            "attributes": {},
            "dimension_names": list(self.axes),
            "storage_transformers": [],
        }


def _zstd(level: int) -> tuple[dict[str, Any], ...]:
    return ({"name": "zstd", "configuration": {"level": level, "checksum": True}},)


def _bit_planes(itemsize: int) -> tuple[dict[str, Any], ...]:
    """Bits of equal weight together: geometry is noise in its low bits only."""
    return _blosc(itemsize, "bitshuffle", 5)


def _bytes_apart(itemsize: int) -> tuple[dict[str, Any], ...]:
    """Bytes of equal weight together: the upper ones are nearly always 0."""
    return _blosc(itemsize, "shuffle", 9)


def _blosc(itemsize: int, shuffle: str, level: int) -> tuple[dict[str, Any], ...]:
    blosc = {
        "typesize": itemsize,
        "cname": "zstd",
        "clevel": level,
        "shuffle": shuffle,
        "blocksize": 0,
    }
    return ({"name": "blosc", "configuration": blosc}, {"name": "crc32c"})


def array_layouts(spec: StoreSpec) -> dict[str, ArrayLayout]:
    """Every array of a store by path, in the order blocks are written."""

    def image_array(
        path: str,
        dtype: str,
        fill: int,
        *inner: tuple[str, int],
        packed: tuple[dict[str, Any], ...] = _zstd(9),
    ) -> ArrayLayout:
        sizes = tuple(size for _, size in inner)
        return ArrayLayout(
            path=path, dtype=dtype, fill=fill,
            shape=(spec.num_images, *sizes), chunk=(spec.block_images, *sizes), shard=None,
            axes=("image", *(axis for axis, _ in inner)), compressors=packed,
        )  # fmt: skip

    def view_array(
        path: str,
        dtype: str,
        fill: int,
        compressors: tuple[dict[str, Any], ...],
        *inner: tuple[str, int],
    ) -> ArrayLayout:
        sizes = tuple(size for _, size in inner)
        return ArrayLayout(
            path=path, dtype=dtype, fill=fill,
            shape=(spec.num_images, spec.num_views, *sizes),
            chunk=(spec.block_images, spec.plane_views, *sizes),
            shard=(spec.block_images, spec.segment_views, *sizes),
            axes=("image", "view", *(axis for axis, _ in inner)), compressors=compressors,
        )  # fmt: skip

    layouts = [
        image_array("images/digest", "uint8", 0, ("byte", 32)),
        image_array("images/key", "uint8", 0, ("byte", spec.key_bytes)),
        image_array("images/size", "uint16", 0, ("height_width", 2)),
        image_array("images/target", "int32", NO_TARGET_FILL),
        image_array("images/status", "uint8", 255),
    ]
    if spec.view_codec == BOX_NUMBERS:
        layouts.append(view_array("views/crop", "uint64", NO_VIEW, _bytes_apart(8)))
    else:
        layouts += [
            view_array("views/box", "uint16", 0, _bit_planes(2), ("top_left_height_width", 4)),
            view_array("views/flip", "uint8", 255, _bit_planes(1)),
        ]
    if spec.augment is not None:
        columns = spec.augment.columns
        layouts.append(
            view_array(
                "views/draw", "int16", NO_DRAW, _bit_planes(2 * columns), ("number", columns)
            )
        )
    for name, teacher in sorted(spec.teachers.items()):
        codec, path = teacher.codec, f"labels/{name}"
        rank = ("rank", codec.top_k)
        if isinstance(codec, DictionaryCodec):
            listed = ("listed_class", codec.num_classes)
            layouts += [
                image_array(f"{path}/classes", "uint16", NO_INDEX, listed, packed=_bytes_apart(2)),
                view_array(f"{path}/place", "uint16", NO_INDEX, _bytes_apart(2), rank),
                view_array(f"{path}/fall", "uint8", NO_CODE, _zstd(19),
                           ("rank_after_first", max(codec.top_k - 1, 1))),
                view_array(f"{path}/tail", "uint8", NO_CODE, _zstd(19)),
            ]  # fmt: skip
            if codec.spread_classes:
                layouts.append(
                    image_array(f"{path}/spread", "uint8", NO_CODE, listed, packed=_zstd(19))
                )
        else:
            layouts += [
                view_array(f"{path}/index", "uint16", NO_INDEX, _zstd(19), rank),
                view_array(f"{path}/gap", "uint8", NO_CODE, _zstd(15), rank),
                view_array(f"{path}/tail", "uint8", NO_CODE, _zstd(9)),
            ]
    if spec.pixel_digests:
        layouts.append(image_array("images/pixels", "uint8", 0, ("byte", 32)))
    for _, target in sorted(spec.targets.items()):
        layouts += target_layouts(spec, target)
    return {layout.path: layout for layout in layouts}


def target_layouts(spec: StoreSpec, target: TargetRecord) -> list[ArrayLayout]:
    """Arrays of a target's vectors. Their chunks hold as many of a block's images as fit."""
    views = min(spec.plane_views, target.views)
    segment = min(spec.segment_views, math.ceil(target.views / views) * views)
    found = []
    for name, array in target.arrays().items():
        images = _chunk_images(spec.block_images, views * array.view_bytes)
        # one byte a value is noise to a compressor; of others the upper bytes are alike
        packed = _zstd(3) if np.dtype(array.dtype).itemsize == 1 else _blosc(
            np.dtype(array.dtype).itemsize, "shuffle", 5)  # fmt: skip
        found.append(
            ArrayLayout(
                path=f"{target.path}/{name}", dtype=array.dtype, fill=array.fill,
                shape=(spec.num_images, target.views, *array.shape),
                chunk=(images, views, *array.shape),
                shard=(spec.block_images, segment, *array.shape),
                axes=("image", "view", *(f"axis{i}" for i in range(len(array.shape)))),
                compressors=packed,
            )
        )  # fmt: skip
    return found


def _chunk_images(block_images: int, image_bytes: int) -> int:
    """The largest divisor of a block whose chunk has at most 1 MiB; 1 if none."""
    most = min(block_images, MOST_TARGET_CHUNK // image_bytes)
    return next((n for n in range(most, 0, -1) if block_images % n == 0), 1)


def constant_layouts(spec: StoreSpec) -> dict[str, ArrayLayout]:
    """Arrays of the whole store by path, one chunk (and file) each."""
    found = {}
    for path, target in sorted(spec.targets.items()):
        for name, constant in sorted(target.constants.items()):
            found[f"{path}/{name}"] = ArrayLayout(
                path=f"{path}/{name}", dtype=constant.dtype, fill="NaN",
                shape=constant.shape, chunk=constant.shape, shard=None,
                axes=tuple(f"axis{i}" for i in range(len(constant.shape))),
                compressors=_blosc(np.dtype(constant.dtype).itemsize, "shuffle", 5),
            )  # fmt: skip
    return found


def constant_objects(target: TargetRecord) -> list[str]:
    """Files of the whole store that a target has: its constants' chunks, and its own files."""
    chunks = [
        "/".join([target.path, name, "c", *["0"] * len(constant.shape)])
        for name, constant in sorted(target.constants.items())
    ]
    return chunks + [f"{target.path}/{name}" for name in sorted(target.files)]


def store_objects(spec: StoreSpec) -> list[str]:
    """Files of the whole store that belong to no block, metadata aside."""
    return [n for _, target in sorted(spec.targets.items()) for n in constant_objects(target)]


def node_metadata(spec: StoreSpec) -> dict[str, dict[str, Any]]:
    """zarr.json of every group and array below the root, by path."""
    arrays = array_layouts(spec) | constant_layouts(spec)
    groups = {path: group_metadata({}) for path in group_paths(spec)}
    return groups | {path: layout.metadata() for path, layout in arrays.items()}


def view_paths(spec: StoreSpec) -> list[str]:
    """The arrays that say what a view shows."""
    return [path for path in array_layouts(spec) if path.startswith("views/")]


def group_paths(spec: StoreSpec) -> list[str]:
    """Groups below the root."""
    return [
        "images", "labels", "views", *(f"labels/{name}" for name in sorted(spec.teachers)),
        *sorted({target.kind for target in spec.targets.values()}), *sorted(spec.targets),
    ]  # fmt: skip


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """A group's zarr.json."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
