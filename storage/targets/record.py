"""What a target is: named vectors of each of an image's first views, and what they share.

A store's settings hold one `TargetRecord` for each target; storage/layout.py makes arrays of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.typed import check_types

KINDS = ("features", "heads", "tokens", "dense")
CONSTANT_DTYPES = ("float32", "float64")
RESERVED_FILES = ("zarr.json", "c")
_PART_NAME = re.compile(r"[a-z0-9_]{1,60}")
_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}\.[a-z0-9]{1,20}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a vector part: type, shape a view, and the fill value of masked images.

    fill: as Zarr writes it. Only `value` arrays of affine8 can hold their fill in a labelled row;
    there the scale beside it tells.
    """

    dtype: str
    shape: tuple[int, ...]
    fill: int | str

    @property
    def view_bytes(self) -> int:
        """Bytes of one view."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


_VALUES: dict[str, tuple[str, int | str]] = {  # encoding -> type and fill value
    "fp32": ("float32", "NaN"),
    "fp16": ("float16", "NaN"),
    "int8": ("int8", -128),  # values are -127 .. 127
    "affine8": ("uint8", 0),
    "uint16": ("uint16", 65_535),  # whole numbers below it
}
_BESIDE = {"int8": ("scale",), "affine8": ("scale", "offset")}
ENCODINGS = tuple(_VALUES)


@dataclass(frozen=True, kw_only=True)
class VectorPart:
    """One named vector (or stack of vectors) a view has.

    name: [a-z0-9_]+, the array is <path>/<name>.
    shape: per view; the last axis is the vector; never empty.
    encoding: fp32, fp16, int8, affine8 or uint16 (vectors.py).
    """

    name: str
    shape: tuple[int, ...]
    encoding: str

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "shape", tuple(self.shape))
        if not _PART_NAME.fullmatch(self.name):
            raise UsageError(f"part name {self.name!r}; expected up to 60 of a-z, 0-9 and '_'")
        if not self.shape or min(self.shape) < 1:
            raise UsageError(
                f"part {self.name} has shape {self.shape}; expected sizes of 1 or more"
            )
        if self.encoding not in ENCODINGS:
            raise UsageError(
                f"part {self.name} has encoding {self.encoding!r}; expected {', '.join(ENCODINGS)}"
            )

    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays that hold it, by their name below the target's path."""
        dtype, fill = _VALUES[self.encoding]
        found = {self.name: ArraySpec(dtype, self.shape, fill)}
        for suffix in _BESIDE.get(self.encoding, ()):
            found[f"{self.name}_{suffix}"] = ArraySpec("float32", self.shape[:-1], "NaN")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "shape": list(self.shape), "encoding": self.encoding}


@dataclass(frozen=True, kw_only=True)
class Constant:
    """An array of the whole store: <path>/<name>.

    dtype: float32 or float64. sha256: of its little-endian bytes in C order.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or min(self.shape) < 1:
            raise UsageError(f"a constant has shape {self.shape}; expected sizes of 1 or more")
        if self.dtype not in CONSTANT_DTYPES:
            raise UsageError(
                f"a constant has type {self.dtype!r}; expected {' or '.join(CONSTANT_DTYPES)}"
            )
        if not _SHA256.fullmatch(self.sha256):
            raise UsageError(f"a constant has SHA-256 {self.sha256!r}; expected 64 hex digits")

    @staticmethod
    def of(values: Array) -> Constant:
        """The constant that an array is."""
        values = np.asarray(values)
        return Constant(shape=values.shape, dtype=values.dtype.name, sha256=constant_digest(values))

    def holds(self, values: Array) -> bool:
        """Whether an array is this constant."""
        same = values.shape == self.shape and values.dtype.name == self.dtype
        return same and constant_digest(values) == self.sha256

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """One target of a store: all its settings.

    kind: features, heads, tokens or dense. name: of its folder below the kind's.
    teacher: name of the store's teacher that it comes from.
    views: how many of each image's views have it, the first ones.
    parts: the vectors a view has. constants: arrays of the whole store, by name.
    files: hex SHA-256 of files of the whole store, by name.
    settings: plain JSON that the kind's own dataclass reads.
    """

    kind: str
    name: str
    teacher: str
    views: int
    parts: tuple[VectorPart, ...]
    constants: dict[str, Constant] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "parts", tuple(self.parts))
        plain = json.loads(json.dumps(self.settings, allow_nan=False))  # as a store gives it back
        object.__setattr__(self, "settings", plain)
        if self.kind not in KINDS:
            raise UsageError(f"a target of kind {self.kind!r}; expected {', '.join(KINDS)}")
        if not _TARGET_NAME.fullmatch(self.name):
            raise UsageError(
                f"target name {self.name!r} can't name a folder; expected up to 100 letters, "
                "digits, '.', '_', '@', '+' or '-', starting with a letter or digit"
            )
        if self.views < 1:
            raise UsageError(f"{self.path} has {self.views} views; expected 1 or more")
        if not self.parts:
            raise UsageError(f"{self.path} has no parts; expected at least one vector a view")
        for name in self.constants:
            if not _PART_NAME.fullmatch(name):
                raise UsageError(f"{self.path}: constant {name!r}; expected a-z, 0-9 and '_'")
        for name, digest in self.files.items():
            if not _FILE_NAME.fullmatch(name) or name in RESERVED_FILES:
                raise UsageError(f"{self.path}: file {name!r}; expected a name such as tail.bin")
            if not _SHA256.fullmatch(digest):
                raise UsageError(f"{self.path}: {name} has SHA-256 {digest!r}; expected 64 hex")
        names = [name for part in self.parts for name in part.arrays()] + list(self.constants)
        twice = sorted({name for name in names if names.count(name) > 1 or name == "c"})
        if twice:
            raise UsageError(f"{self.path} has two arrays called {twice[0]!r}: rename one")

    @property
    def path(self) -> str:
        """Folder in the store."""
        return f"{self.kind}/{self.name}"

    @property
    def view_bytes(self) -> int:
        """Bytes of one view, before compression."""
        return sum(spec.view_bytes for spec in self.arrays().values())

    def arrays(self) -> dict[str, ArraySpec]:
        """All arrays with views, by name below `path`."""
        return {name: spec for part in self.parts for name, spec in part.arrays().items()}

    def part(self, name: str) -> VectorPart:
        """The part of this name.

        Raises:
            UsageError: there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise UsageError(
            f"{self.path} has no part {name!r}; it has {', '.join(p.name for p in self.parts)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the store's settings."""
        return {
            "kind": self.kind,
            "name": self.name,
            "teacher": self.teacher,
            "views": self.views,
            "parts": [part.to_json() for part in self.parts],
            "constants": {name: c.to_json() for name, c in sorted(self.constants.items())},
            "files": dict(sorted(self.files.items())),
            "settings": self.settings,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TargetRecord:
        """The record that `to_json` described."""
        return TargetRecord(
            kind=values["kind"],
            name=values["name"],
            teacher=values["teacher"],
            views=values["views"],
            parts=tuple(VectorPart(**part) for part in values["parts"]),
            constants={name: Constant(**c) for name, c in values["constants"].items()},
            files=dict(values["files"]),
            settings=dict(values["settings"]),
        )


def constant_bytes(values: Array) -> bytes:
    """Little-endian bytes of an array in C order."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def constant_digest(values: Array) -> str:
    """Hex SHA-256 of an array's bytes, as `Constant` has it."""
    return hashlib.sha256(constant_bytes(values)).hexdigest()
