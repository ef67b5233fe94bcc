"""A packed data set: rows of source bytes with digest, key, size, class and status."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.errors import CorruptStore, FormatVersion, UsageError
from trainer.replay.layout import read_rows
from trainer.replay.packing import BETON_FORMAT, PackReport, pack, sidecar_path

__all__ = ["Beton", "PackReport", "pack", "sidecar_path"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Beton:
    """The tables of a beton; pixels are read by the loaders.

    N rows: `digests` uint8 [N, 32] (SHA-256 of the source file), `sizes` uint16 [N, 2]
    (height, width), `targets` int64 [N] (-1 without a class), `status` uint8 [N]
    (`storage.images.ImageStatus`; only OK rows have pixels).
    """

    path: Path
    digests: npt.NDArray[np.uint8]
    keys: tuple[str, ...]
    sizes: npt.NDArray[np.uint16]
    targets: npt.NDArray[np.int64]
    status: npt.NDArray[np.uint8]
    classes: tuple[str, ...]
    fingerprint: str
    masked: tuple[tuple[str, str], ...]  # (key, reason)
    records: npt.NDArray[np.void]  # the image field's metadata, [N]

    @property
    def num_rows(self) -> int:
        """N, masked rows included."""
        return len(self.status)

    @staticmethod
    def open(path: Path | str) -> Beton:
        """Read the tables of a beton and its sidecar.

        Raises:
            UsageError: there is no such file, or not one that `trainer pack` wrote.
            FormatVersion: written by a newer release.
            CorruptStore: damaged, cut short, or the sidecar of another file.
        """
        path = Path(path)
        sidecar = _read_sidecar(path)
        try:
            rows = read_rows(path)
        except ValueError as error:
            raise CorruptStore(
                f"{path} is not a readable beton ({error}): pack it again"
            ) from error
        if hashlib.sha256(rows.tobytes()).hexdigest() != sidecar["rows_sha256"]:
            raise CorruptStore(f"{path} and {sidecar_path(path).name} don't match: pack it again")
        images = rows["f0"]
        return Beton(
            path=path,
            digests=np.ascontiguousarray(images["digest"]),
            keys=_read_keys(path, rows["f2"]),
            sizes=np.stack([images["height"], images["width"]], axis=1),
            targets=rows["f1"].astype(np.int64),
            status=np.ascontiguousarray(images["status"]),
            classes=tuple(sidecar["classes"]),
            fingerprint=sidecar["dataset_fingerprint"],
            masked=tuple((entry["key"], entry["reason"]) for entry in sidecar["masked"]),
            records=images,
        )


def _read_sidecar(path: Path) -> dict:  # type: ignore[type-arg]
    if not path.is_file():
        raise UsageError(f"{path} does not exist: make it with `trainer pack`")
    try:
        sidecar = json.loads(sidecar_path(path).read_text())
        version = sidecar["beton_format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{sidecar_path(path)} is missing or unreadable ({error}): `trainer pack` writes it "
            "beside the beton, copy both"
        ) from error
    if version != BETON_FORMAT:
        raise FormatVersion(
            f"{path} has beton format {version}; this release reads {BETON_FORMAT}: "
            "install the release that wrote it or pack again"
        )
    return sidecar  # type: ignore[no-any-return]


def _read_keys(path: Path, records: np.ndarray) -> tuple[str, ...]:
    data = np.memmap(path, np.uint8, mode="r")
    return tuple(
        data[start : start + size].tobytes().decode("utf-8", "surrogateescape")
        for start, size in zip(records["ptr"].tolist(), records["size"].tolist(), strict=True)
    )
