"""Betons: packed data sets in FFCV's file layout, as both stages read them.

    header · field descriptors · metadata of all rows · [pages of data] · allocation table

A row is an image: its source bytes (or raw pixels), digest, key, size, class and status. The types
are those of `ffcv/types.py` 1.0.2 (file version 2), repeated here so that betons can be written and
read where FFCV can't be built; a test compares the two. `trainer pack` writes betons.

A *re-encoded* beton (format 2) keeps other bytes than its source had: the digest of a row is of
the bytes that it keeps, a fourth field holds the digest of the source.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import CorruptStore, FormatVersion, UsageError
from storage.images import ImageBytes, ImageFolder, ImageStatus, content_digest

SUFFIX = ".beton"
FORMAT, REENCODED_FORMAT = 1, 2
MODE_JPEG = 0  # the payload is a JPEG file
MODE_RAW = 1  # decoded RGB pixels, row by row: everything TurboJPEG can't decode exactly

FILE_VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
DESCRIPTOR = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE_RECORD = np.dtype(
    [
        ("mode", "<u1"),
        ("status", "<u1"),
        ("warns", "<u1"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("ptr", "<u8"),
        ("size", "<u8"),
        ("digest", "<u1", (32,)),
    ]
)
BYTES_RECORD = np.dtype([("ptr", "<u8"), ("size", "<u8")])
# name -> FFCV's type id (255: custom, 1: IntField, 3: BytesField)
FIELDS = {"image": 255, "label": 1, "key": 3}
REENCODED_FIELDS = {**FIELDS, "origin": 3}
# members f0 (image), f1 (label), f2 (key), and f3 (origin) of re-encoded ones
ROW = np.dtype([("", IMAGE_RECORD), ("", "<i8"), ("", BYTES_RECORD)], align=True)
REENCODED_ROW = np.dtype(
    [("", IMAGE_RECORD), ("", "<i8"), ("", BYTES_RECORD), ("", BYTES_RECORD)], align=True
)


def field_descriptors(reencoded: bool) -> npt.NDArray[Any]:
    """`DESCRIPTOR` of every field."""
    fields = REENCODED_FIELDS if reencoded else FIELDS
    descriptors = np.zeros(len(fields), DESCRIPTOR)
    for descriptor, (name, type_id) in zip(descriptors, fields.items(), strict=True):
        encoded = np.frombuffer(name.encode("ascii"), np.uint8)
        descriptor["type_id"] = type_id
        descriptor["name"][: encoded.size] = encoded
    return descriptors


def read_rows(path: Path) -> npt.NDArray[Any]:
    """The metadata of all rows, `ROW` or `REENCODED_ROW` [N].

    Raises:
        ValueError: not a beton of this layout, or cut short.
    """
    header = np.fromfile(path, HEADER, count=1)
    if not header.size or int(header[0]["version"]) != FILE_VERSION:
        raise ValueError("no FFCV header")
    reencoded = int(header[0]["num_fields"]) == len(REENCODED_FIELDS)
    descriptors = field_descriptors(reencoded)
    found = np.fromfile(path, DESCRIPTOR, count=len(descriptors), offset=HEADER.itemsize)
    if header[0]["num_fields"] != len(descriptors) or found.tobytes() != descriptors.tobytes():
        raise ValueError("other fields than trainer pack writes")
    offset = HEADER.itemsize + descriptors.nbytes
    kind = REENCODED_ROW if reencoded else ROW
    rows = np.fromfile(path, kind, count=int(header[0]["num_samples"]), offset=offset)
    table = np.fromfile(path, ALLOCATION, offset=int(header[0]["alloc_table_ptr"]))
    names = kind.names or ()
    wanted = sum(np.count_nonzero(rows[n]["size"]) for n in names if n != "f1")
    if len(rows) != header[0]["num_samples"] or len(table) != wanted:
        raise ValueError("the file is cut short")
    return rows


def sidecar_path(beton: Path) -> Path:
    """`train.beton` -> `train.beton.json`."""
    return beton.with_name(beton.name + ".json")


@dataclass(frozen=True, kw_only=True, eq=False)
class Beton:
    """The tables of a beton; pixels are read by the loaders.

    N rows: `digests` uint8 [N, 32] (SHA-256 of the encoded image), `sizes` uint16 [N, 2]
    (height, width), `targets` int64 [N] (-1 without a class), `status` uint8 [N]
    (`storage.images.ImageStatus`; only OK rows have pixels).

    `reencoded` says how the images were encoded anew and `origins` uint8 [N, 32] is the SHA-256 of
    the files that they were made from; both are None where the source bytes were kept.
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
    reencoded: Mapping[str, Any] | None = None
    origins: npt.NDArray[np.uint8] | None = None

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
            keys=tuple(
                key.decode("utf-8", "surrogateescape") for key in _read_bytes(path, rows["f2"])
            ),
            sizes=np.stack([images["height"], images["width"]], axis=1),
            targets=rows["f1"].astype(np.int64),
            status=np.ascontiguousarray(images["status"]),
            classes=tuple(sidecar["classes"]),
            fingerprint=sidecar["dataset_fingerprint"],
            masked=tuple((entry["key"], entry["reason"]) for entry in sidecar["masked"]),
            records=images,
            reencoded=sidecar.get("reencoded"),
            origins=_read_origins(path, rows, sidecar) if rows.dtype == REENCODED_ROW else None,
        )

    def read(self, row: int) -> ImageBytes:
        """The bytes of one image, checked against its digest where they are a file's.

        A row that is masked as unreadable, or was damaged since, has a `problem`.

        Raises:
            FileNotFoundError: the row is masked as missing.
        """
        record = self.records[row]
        digest = record["digest"].tobytes()
        if record["status"] != ImageStatus.OK:
            reason = dict(self.masked).get(self.keys[row], "masked when it was packed")
            if record["status"] == ImageStatus.MISSING:
                raise FileNotFoundError(2, reason, self.keys[row])
            return ImageBytes(digest, b"", problem=reason)
        start, size = int(record["ptr"]), int(record["size"])
        data = np.fromfile(self.path, np.uint8, count=size, offset=start).tobytes()
        shape = int(record["height"]), int(record["width"])
        if record["mode"] == MODE_JPEG:
            sound = content_digest(data) == digest
        else:  # of pixels the digest is the file's: only their number is known
            sound = len(data) == 3 * shape[0] * shape[1]
        if not sound:
            problem = f"its bytes in {self.path.name} were damaged after packing"
            return ImageBytes(digest, b"", problem=problem)
        return ImageBytes(digest, data, None if record["mode"] == MODE_JPEG else shape)

    def listing(self) -> ImageFolder:
        """The beton as a list of images, in its own order."""
        return ImageFolder(
            root=self.path, keys=self.keys, targets=tuple(self.targets.tolist()),
            classes=self.classes, reencoded=self.reencoded,
        )  # fmt: skip


def read_image(path: Path, key: str) -> ImageBytes:
    """One image of a beton by its key; see `Beton.read`.

    Raises:
        FileNotFoundError: also where the beton has no such key.
    """
    status = path.stat()
    beton, row_of = _opened(path, status.st_size, status.st_mtime_ns)
    if key not in row_of:
        raise FileNotFoundError(2, f"not in {path.name}", key)
    return beton.read(row_of[key])


@functools.lru_cache(maxsize=2)
def _opened(path: Path, size: int, changed: int) -> tuple[Beton, dict[str, int]]:
    """Kept open while the file stays as it is: its size and time are part of the question."""
    beton = Beton.open(path)
    return beton, {key: row for row, key in enumerate(beton.keys)}


def _read_sidecar(path: Path) -> dict[str, Any]:
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
    if version not in (FORMAT, REENCODED_FORMAT):
        raise FormatVersion(
            f"{path} has beton format {version}; this release reads {FORMAT} and "
            f"{REENCODED_FORMAT}: install the release that wrote it or pack again"
        )
    return sidecar  # type: ignore[no-any-return]


def _read_bytes(path: Path, records: npt.NDArray[Any]) -> list[bytes]:
    data = np.memmap(path, np.uint8, mode="r")
    return [
        data[start : start + size].tobytes()
        for start, size in zip(records["ptr"].tolist(), records["size"].tolist(), strict=True)
    ]


def _read_origins(
    path: Path, rows: npt.NDArray[Any], sidecar: dict[str, Any]
) -> npt.NDArray[np.uint8]:
    found = b"".join(_read_bytes(path, rows["f3"]))
    if hashlib.sha256(found).hexdigest() != sidecar.get("origins_sha256"):
        raise CorruptStore(f"{path}: digests of the source images are damaged: pack it again")
    return np.frombuffer(found, np.uint8).reshape(-1, 32)
