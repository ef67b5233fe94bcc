"""One block of a store as its writer hands it over, checked and turned into arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.certificate import LabelSample
from storage.codecs import NO_CODE, TopKLabels
from storage.errors import UsageError
from storage.format import StoreSpec
from storage.images import ImageStatus
from storage.label_arrays import label_faults, label_parts, to_arrays

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockData:
    """n images with all M views.

    digest u1 [n, 32]; key: n names; size u2 [n, 2] (height, width); target i4 [n]; status u1 [n]
    (`ImageStatus`); box u2 [n, M, 4]; flip u1 [n, M]; labels: by teacher, of shape [n, M].
    tail_mass: by teacher, float [n, C], for codecs with mean tails: probability of the classes that
    a label doesn't keep, summed over an image's views. samples: by teacher, the dense outputs that
    the certificate is measured on.
    """

    digest: npt.NDArray[np.uint8]
    key: list[str]
    size: npt.NDArray[np.uint16]
    target: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]
    labels: dict[str, TopKLabels]
    tail_mass: dict[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    samples: dict[str, LabelSample] = field(default_factory=dict)


def block_arrays(spec: StoreSpec, rows: range, data: BlockData) -> dict[str, Array]:
    """Every array's part of a block, by array path; masked images get fill values.

    Raises:
        UsageError: a wrong shape, type or range; the message names array and row.
    """
    n, M = len(rows), spec.num_views
    if sorted(data.labels) != sorted(spec.teachers):
        raise UsageError(
            f"labels of {sorted(data.labels)}; the store is for {sorted(spec.teachers)}"
        )
    _expect("digest", data.digest, "uint8", (n, 32))
    _expect("size", data.size, "uint16", (n, 2))
    _expect("target", data.target, "int32", (n,))
    _expect("status", data.status, "uint8", (n,))
    _expect("box", data.box, "uint16", (n, M, 4))
    _expect("flip", data.flip, "uint8", (n, M))
    masked = data.status != ImageStatus.OK
    arrays: dict[str, Array] = {
        "images/digest": data.digest,
        "images/key": encode_keys(data.key, spec.key_bytes),
        "images/size": data.size,
        "images/target": data.target,
        "images/status": data.status,
        "views/box": _mask(data.box, masked, 0),
        "views/flip": _mask(data.flip, masked, NO_CODE),
    }
    if len(data.key) != n:
        raise UsageError(f"{len(data.key)} keys for {n} images")
    for name, labels in data.labels.items():
        k = spec.teachers[name].codec.top_k
        _expect(f"labels/{name}/index", labels.index, "uint16", (n, M, k))
        _expect(f"labels/{name}/code", labels.code, "uint8", (n, M, k))
        _expect(f"labels/{name}/tail", labels.tail, "uint8", (n, M))
        falls = (labels.code[..., 1:] < labels.code[..., :-1]).reshape(n, -1).any(axis=1) & ~masked
        if falls.any():
            raise UsageError(
                f"labels/{name}: row {rows.start + int(falls.argmax())} has probabilities that "
                "rise along a label"
            )
        codec, mass = spec.teachers[name].codec, data.tail_mass.get(name)
        for part, values in to_arrays(codec, labels, ~masked, mass).items():
            arrays[f"labels/{name}/{part}"] = values
    for kind, where, detail in block_problems(spec, arrays):
        raise UsageError(f"{kind}: row {rows.start + where} {detail}")
    return arrays


def block_problems(spec: StoreSpec, arrays: dict[str, Array]) -> list[tuple[str, int, str]]:
    """What is wrong in the values of a block: (array path, first row of the block, what).

    Used on what is to be written, and by `verify` on what was.
    """
    status = arrays["images/status"]
    ok = status == ImageStatus.OK
    found: list[tuple[str, int, str]] = []

    def check(path: str, bad: Array, what: str) -> None:
        rows = np.flatnonzero(bad.reshape(len(status), -1).any(axis=1))
        if rows.size:
            found.append((path, int(rows[0]), what))

    known = [ImageStatus.OK, ImageStatus.UNREADABLE, ImageStatus.MISSING]
    check("images/status", ~np.isin(status, known), "has an unknown status")
    check("images/target", arrays["images/target"] < -1, "has no target")
    classes = len(spec.dataset.get("classes") or ()) or 1 << 31
    check("images/target", arrays["images/target"] >= classes, "has a target beyond the classes")
    check("images/size", (arrays["images/size"] == 0).any(axis=1) & ok, "has no size")
    bad_keys = [key_problem(key) is not None for key in _key_rows(arrays["images/key"])]
    check("images/key", np.array(bad_keys, bool), "has an unsafe or empty key")
    box, flip = arrays["views/box"].astype(np.int64), arrays["views/flip"]
    inside = arrays["images/size"].astype(np.int64)[:, None] + 2 * spec.pixel.padding
    outside = (box[..., :2] + box[..., 2:] > inside) | (box[..., 2:] == 0)
    check("views/box", outside.any(axis=-1) & ok[:, None], "has a box outside the image")
    check("views/box", box.any(axis=-1) & ~ok[:, None], "is masked but has a box")
    check("views/flip", (flip > 1) & ok[:, None], "has a flip that is neither 0 nor 1")
    check("views/flip", (flip != NO_CODE) & ~ok[:, None], "is masked but has a flip")
    for name, teacher in sorted(spec.teachers.items()):
        path = f"labels/{name}"
        parts = {part: arrays[f"{path}/{part}"] for part in label_parts(teacher.codec)}
        for part, where, what in label_faults(teacher.codec, parts, ok):
            check(f"{path}/{part}", where, what)
    return found


def key_problem(key: str) -> str | None:
    """Why a path from a store must not be joined to a folder, or None."""
    if not key or "\0" in key:
        return "is empty or has a NUL"
    if PurePosixPath(key).is_absolute() or key.startswith("\\") or ":" in key[:2]:
        return "is absolute"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "has an empty, '.' or '..' part"
    return None


def encode_keys(keys: list[str], width: int) -> npt.NDArray[np.uint8]:
    """Image keys as zero-padded UTF-8 [n, width]; names that aren't Unicode keep their bytes."""
    rows = np.zeros((len(keys), width), np.uint8)
    for row, key in enumerate(keys):
        problem = key_problem(key)
        if problem:
            raise UsageError(f"image key {key!r} {problem}; expected a path below the image folder")
        encoded = key.encode("utf-8", "surrogateescape")
        if len(encoded) > width:
            raise UsageError(
                f"image key {key!r} has {len(encoded)} bytes; this store holds keys to {width}: "
                "shorten the path, or create the store with a larger key_bytes"
            )
        rows[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return rows


def _key_rows(rows: npt.NDArray[np.uint8]) -> list[str]:
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape") for row in rows]


def _mask(values: Array, masked: npt.NDArray[np.bool_], fill: int) -> Array:
    if not masked.any():
        return values
    values = values.copy()
    values[masked] = fill
    return values


def _expect(name: str, values: Array, dtype: str, shape: tuple[int, ...]) -> None:
    if values.dtype != np.dtype(dtype) or values.shape != shape:
        raise UsageError(
            f"block array {name} is {values.dtype} {list(values.shape)}; "
            f"expected {dtype} {list(shape)}"
        )
