"""Which images of a folder are the images that a store has labels for: by content, not by name.

An image file is *exact* when its bytes are those that were labelled (SHA-256): only these are
trained on. It has the *same pixels* when it decodes to the image that was labelled (its metadata
was edited, a PNG was packed again). Names count only when asked, and are never trusted: a file
under the same name with other pixels is *re-encoded* at best, another image at worst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from storage.beton import Beton
from storage.errors import BadImage
from storage.images import ImageBytes, ImageFolder, ImageStatus, read_image, scan_folder
from storage.manifest import file_entry
from storage.match_classes import ClassReport, compare_classes
from storage.pixels import open_image, pixel_digest
from storage.store import LabelStore
from storage.tables import ImageTable

Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")
UNREAD = bytes(32)  # digest of a row whose file could not be read when the store was made
SLICE = 4096  # files given to the threads at once


@dataclass(kw_only=True)
class MatchReport:
    """What `match` found. Rows are the store's, keys the folder's.

    exact, same_pixels, re_encoded: key -> row.
    missing: rows that no file of the folder is; extra: keys that no row is.
    masked: rows without labels among all of the store.
    moved: keys of exact and same-pixels files whose class has another name in the store.
    same_key: names that are both missing and extra (what `by_key` would list).
    pixels_unknown: rows left after exact matching whose original file isn't at hand.
    """

    images: int
    files: int
    exact: dict[str, int] = field(default_factory=dict)
    same_pixels: dict[str, int] = field(default_factory=dict)
    re_encoded: dict[str, int] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    same_key: int = 0
    pixels_unknown: int = 0
    trainable: int = 0
    classes: ClassReport
    keys: list[str]

    @property
    def exit_code(self) -> int:
        """0 where store and folder hold the same files under the same classes, else 1."""
        others = (self.same_pixels, self.re_encoded, self.missing, self.extra, self.moved)
        classes = self.classes.state == "different" or self.classes.problems
        return 1 if any(others) or classes else 0

    def to_json(self, examples: int) -> dict[str, Any]:
        """Counts with the first few of each kind."""
        found: dict[str, Any] = {
            "ok": self.exit_code == 0,
            "images": self.images,
            "files": self.files,
            "trainable": self.trainable,
        }
        for name in ("exact", "same_pixels", "re_encoded"):
            pairs = sorted(getattr(self, name).items())
            found[name] = {
                "count": len(pairs),
                "examples": [[key, row, self.keys[row]] for key, row in pairs[:examples]],
            }
        for name in ("missing", "masked"):
            rows = getattr(self, name)
            shown = [[row, self.keys[row]] for row in rows[:examples]]
            found[name] = {"count": len(rows), "examples": shown}
        for name in ("extra", "moved"):
            keys = getattr(self, name)
            found[name] = {"count": len(keys), "examples": keys[:examples]}
        return found | {
            "same_key": self.same_key,
            "pixels_unknown": self.pixels_unknown,
            "classes": self.classes.to_json(examples),
        }


def match(
    store: LabelStore,
    data: Path | str,
    *,
    by_key: bool = False,
    was: Path | str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> MatchReport:
    """Match the files of an image folder with the images of a store.

    Args:
        by_key: pair what is left by name.
        was: folder that the store was made from, for comparing pixels; its files are used only
            where they still have the digest that the store holds. None: the store's local hint.
        workers: threads that read and decode.
        progress: called with (files read, files).
    Raises:
        UsageError: no such folder, or no images in it.
        StoreError: the store can't be read.
    """
    folder, table = scan_folder(data), store.read_images()
    report = MatchReport(
        images=len(table.key), files=len(folder), keys=table.key,
        masked=np.flatnonzero(np.asarray(table.status) != ImageStatus.OK).tolist(),
        classes=compare_classes(store.spec, folder.classes),
    )  # fmt: skip
    digests = _file_digests(folder, workers, progress)
    left_files, left_rows = _match_exact(report, folder, table, digests)
    if left_files and left_rows:
        original = Path(was) if was is not None else store.local_data_folder()
        left_files, left_rows = _match_pixels(
            report, folder, table, left_files, left_rows, _known_pixels(store), original, workers
        )
    _finish(report, folder, table, left_files, left_rows, by_key)
    report.moved = _moved(report, folder, table, store.spec.dataset["classes"])
    return report


def explain_strangers(store: LabelStore, beton: Beton) -> str:
    """Why none of a beton's images is one that the store has labels for, and the way out."""
    spec, name = store.spec, beton.path.name
    ours = spec.dataset.get("reencoded")
    if beton.reencoded is not None and beton.origins is not None:
        known = {digest.tobytes() for digest in store.read_images().digest}
        made_of = sum(digest.tobytes() in known for digest in beton.origins)
        if made_of:
            return (
                f"{store.path} has labels of the source images of {made_of} rows of {name}, whose "
                f"own pixels are others: it was re-encoded ({describe(beton.reencoded)}); label "
                f"it with `labelgen run --data {name}`, or train on the source images"
            )
    if ours is not None:
        theirs = "" if beton.reencoded is None else f", {name} with {describe(beton.reencoded)}"
        return (
            f"{store.path} has labels of a re-encoded beton ({describe(ours)}){theirs}: give that "
            "beton with --data, or make it again with `trainer pack` and these settings"
        )
    return (
        f"{store.path} was made for other images: none of its {spec.num_images} is among "
        f"the {beton.num_rows} of the training data (example: {beton.keys[0]}); give the "
        "labelled images with --data, or label these with `labelgen run`"
    )


def describe(reencoded: Mapping[str, Any]) -> str:
    """Settings of a re-encoded beton as options of `trainer pack`, and what encoded it."""
    sides = [
        f"--{name.replace('_', '-')} {reencoded[name]} "
        for name in ("max_side", "min_side")
        if reencoded.get(name)
    ]
    return f"{''.join(sides)}--quality {reencoded.get('quality')}, {reencoded.get('encoder')}"


def _file_digests(folder: ImageFolder, workers: int, progress: Progress | None) -> list[bytes]:
    """SHA-256 of every file; `UNREAD` where it can't be read."""

    def digest(row: int) -> bytes:
        try:
            if folder.root.is_file():  # a beton, which knows them
                return folder.read(row).digest
            return bytes.fromhex(file_entry(folder.path(row))[1])
        except OSError:
            return UNREAD

    found = []
    for number, value in enumerate(_parallel(digest, range(len(folder)), workers)):
        found.append(value)
        if progress:
            progress(number + 1, len(folder))
    return found


def _match_exact(
    report: MatchReport, folder: ImageFolder, table: ImageTable, digests: list[bytes]
) -> tuple[list[int], list[int]]:
    """Pair equal files; what is left of both. A file's row is its namesake where copies exist."""
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in enumerate(table.digest):
        if digest.any():
            rows_of.setdefault(digest.tobytes(), []).append(row)
    left_files = []
    met: set[int] = set()
    for number, digest in enumerate(digests):
        rows = rows_of.get(digest)
        if rows is None:
            left_files.append(number)
            continue
        key = folder.keys[number]
        report.exact[key] = next((row for row in rows if table.key[row] == key), rows[0])
        met.update(rows)
    labelled = np.asarray(table.status) == ImageStatus.OK
    report.trainable = sum(bool(labelled[row]) for row in report.exact.values())
    return left_files, [row for row in range(len(table.key)) if row not in met]


def _match_pixels(
    report: MatchReport,
    folder: ImageFolder,
    table: ImageTable,
    left_files: list[int],
    left_rows: list[int],
    known: npt.NDArray[np.uint8] | None,
    original: Path | None,
    workers: int,
) -> tuple[list[int], list[int]]:
    """Pair files that decode to what was labelled; what is left of both.

    Args:
        known: u1 [N, 32], pixel digests that the store keeps; else an original must be at hand.
    """

    def original_pixels(row: int) -> bytes | None:
        if table.status[row] != ImageStatus.OK:
            return None
        if known is not None:
            return bytes(known[row])
        if original is None:
            return None
        try:
            found = read_image(original, table.key[row])
        except OSError:
            return None
        return _pixels(found, None) if found.digest == table.digest[row].tobytes() else None

    rows_of: dict[bytes, list[int]] = {}
    sizes: set[tuple[int, int]] = set()
    for row, digest in zip(left_rows, _parallel(original_pixels, left_rows, workers), strict=True):
        if digest is None:
            report.pixels_unknown += int(table.status[row] == ImageStatus.OK)
            continue
        rows_of.setdefault(digest, []).append(row)
        sizes.add((int(table.size[row, 0]), int(table.size[row, 1])))
    if not rows_of:
        return left_files, left_rows

    def file_pixels(number: int) -> bytes | None:
        try:
            return _pixels(folder.read(number), sizes)
        except OSError:
            return None

    met: set[int] = set()
    still: list[int] = []
    pixels = _parallel(file_pixels, left_files, workers)
    for number, digest in zip(left_files, pixels, strict=True):
        rows = rows_of.get(digest) if digest is not None else None
        if rows is None:
            still.append(number)
            continue
        key = folder.keys[number]
        report.same_pixels[key] = next((row for row in rows if table.key[row] == key), rows[0])
        met.update(rows)
    return still, [row for row in left_rows if row not in met]


def _known_pixels(store: LabelStore) -> npt.NDArray[np.uint8] | None:
    return store.read_array("images/pixels", slice(None)) if store.spec.pixel_digests else None


def _pixels(image: ImageBytes, sizes: set[tuple[int, int]] | None) -> bytes | None:
    """Pixel digest of an image of one of these (height, width); None for all others."""
    try:
        if sizes is not None and image.shape is None:
            header = open_image(image.data)
            if (header.height, header.width) not in sizes:
                return None
        return pixel_digest(image.rgb())
    except BadImage:
        return None


def _finish(
    report: MatchReport,
    folder: ImageFolder,
    table: ImageTable,
    left_files: list[int],
    left_rows: list[int],
    by_key: bool,
) -> None:
    row_of = {table.key[row]: row for row in left_rows}
    names = {folder.keys[number] for number in left_files} & set(row_of)
    if by_key:
        report.re_encoded = {key: row_of[key] for key in sorted(names)}
    else:
        report.same_key, names = len(names), set()
    report.missing = [row for row in left_rows if table.key[row] not in names]
    report.extra = [folder.keys[n] for n in left_files if folder.keys[n] not in names]


def _moved(
    report: MatchReport, folder: ImageFolder, table: ImageTable, classes: tuple[str, ...]
) -> list[str]:
    """Keys whose class folder isn't called as it was when the store was made."""
    if not classes or not folder.classes:
        return []
    target_of = dict(zip(folder.keys, folder.targets, strict=True))
    names_of: dict[bytes, set[str]] = {}  # copies of one image may lie in several classes
    for row, target in enumerate(np.asarray(table.target).tolist()):
        known = (classes[target],) if target >= 0 else classes
        names_of.setdefault(table.digest[row].tobytes(), set()).update(known)
    pairs = {**report.exact, **report.same_pixels}
    return sorted(
        key
        for key, row in pairs.items()
        if folder.classes[target_of[key]] not in names_of[table.digest[row].tobytes()]
    )


def _parallel(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterable[R]:
    """Results in order; hashing, reading and decoding leave the interpreter lock alone."""
    if workers <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(items), SLICE):
            yield from pool.map(work, items[first : first + SLICE])
