"""One block of a store as its writer hands it over, checked and turned into arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.augment import NO_DRAW
from storage.block_values import AddedBlock, expect_array, value_arrays, value_problems
from storage.canaries import Canary
from storage.certificate import LabelSample
from storage.codecs import NO_CODE, TopKLabels
from storage.errors import UsageError
from storage.format import StoreSpec
from storage.images import ImageStatus
from storage.view_arrays import box_faults, to_view_arrays, view_faults

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockData:
    """n images with all M views.

    digest u1 [n, 32]; key: n names; size u2 [n, 2] (height, width); target i4 [n]; status u1 [n]
    (`ImageStatus`); box u2 [n, M, 4]; flip u1 [n, M]; labels: by teacher, of shape [n, M].
    draw: i2 [n, M, D] where the store has augmentations, else None.
    tail_mass: by teacher, float [n, C], for codecs with mean tails: probability of the classes that
    a label doesn't keep, summed over an image's views. samples: by teacher, the dense outputs that
    the certificate is measured on.
    targets: by path and array name, encoded vectors [n, F, ...] (storage/targets/vectors.py).
    pixels: u1 [n, 32], digests of the decoded pixels, where the store keeps them.
    canaries: of those crops of the block that `canary_views` names, where the writer has pixels.
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
    targets: dict[str, dict[str, Array]] = field(default_factory=dict)
    pixels: npt.NDArray[np.uint8] | None = None
    draw: npt.NDArray[np.int16] | None = None
    canaries: tuple[Canary, ...] = ()

    def values(self) -> AddedBlock:
        """Labels and targets alone."""
        return AddedBlock(
            labels=self.labels, tail_mass=self.tail_mass, samples=self.samples,
            targets=self.targets,
        )  # fmt: skip


def block_arrays(spec: StoreSpec, rows: range, data: BlockData) -> dict[str, Array]:
    """Every array's part of a block, by array path; masked images get fill values.

    Raises:
        UsageError: a wrong shape, type or range; the message names array and row.
    """
    n, M = len(rows), spec.num_views
    expect_array("digest", data.digest, "uint8", (n, 32))
    expect_array("size", data.size, "uint16", (n, 2))
    expect_array("target", data.target, "int32", (n,))
    expect_array("status", data.status, "uint8", (n,))
    expect_array("box", data.box, "uint16", (n, M, 4))
    expect_array("flip", data.flip, "uint8", (n, M))
    if (data.draw is None) != (spec.augment is None):
        raise UsageError(f"draws are {'missing' if data.draw is None else 'not in the settings'}")
    masked = data.status != ImageStatus.OK
    arrays: dict[str, Array] = {
        "images/digest": data.digest,
        "images/key": encode_keys(data.key, spec.key_bytes),
        "images/size": data.size,
        "images/target": data.target,
        "images/status": data.status,
    }
    box, flip = _mask(data.box, masked, 0), _mask(data.flip, masked, NO_CODE)
    for path, bad, what in box_faults(spec, box, flip, data.size, ~masked):
        if bad.any():
            raise UsageError(f"{path}: row {rows.start + int(bad.any(axis=1).argmax())} {what}")
    arrays |= to_view_arrays(spec, box, flip, data.size)
    if spec.augment is not None and data.draw is not None:
        expect_array("draw", data.draw, "int16", (n, M, spec.augment.columns))
        arrays["views/draw"] = _mask(data.draw, masked, NO_DRAW)
    if len(data.key) != n:
        raise UsageError(f"{len(data.key)} keys for {n} images")
    if spec.pixel_digests:
        if data.pixels is None:
            raise UsageError("a block without digests of its pixels; the store keeps them")
        expect_array("pixels", data.pixels, "uint8", (n, 32))
        arrays["images/pixels"] = _mask(data.pixels, masked, 0)
    arrays |= value_arrays(spec, rows, data.values(), masked)
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
    check("images/key", bad_keys(arrays["images/key"]), "has an unsafe or empty key")
    for path, bad, what in view_faults(spec, arrays, ok):
        check(path, bad, what)
    if spec.augment is not None:
        draw = arrays["views/draw"]
        wrong = spec.augment.faults(draw) & ok[:, None]
        check("views/draw", wrong, "has a draw that its settings can't give")
        check("views/draw", (draw != NO_DRAW) & ~ok[:, None, None], "is masked but has a draw")
    if spec.pixel_digests:
        digested = arrays["images/pixels"].any(axis=1)
        check("images/pixels", ~digested & ok, "has no digest of its pixels")
        check("images/pixels", digested & ~ok, "is masked but has a digest of its pixels")
    return found + value_problems(spec, arrays, ok)


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


def bad_keys(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which of the keys [n, W] have a `key_problem`; only those that may are decoded."""
    after = np.zeros_like(rows)
    after[:, :-1] = rows[:, 1:]
    odd_part = (rows == ord("/")) & np.isin(after, list(b"\0/."))
    cut = (rows == 0) & (after != 0)
    odd = odd_part.any(axis=1) | cut.any(axis=1) | np.isin(rows[:, 0], list(b"\0/.\\"))
    odd |= (rows[:, :2] == ord(":")).any(axis=1)
    for row in np.flatnonzero(odd):
        key = rows[row].tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape")
        odd[row] = key_problem(key) is not None
    return np.asarray(odd, bool)


def _mask(values: Array, masked: npt.NDArray[np.bool_], fill: int) -> Array:
    if not masked.any():
        return values
    values = values.copy()
    values[masked] = fill
    return values
