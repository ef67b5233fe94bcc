"""FKD's label files (Shen & Xing 2022, szq0214/FKD): `<split>/<class>/<stem>.tar`, one an image.

Each is a torch-save file (not a tar) of the list [coords, flips, labels]:

    coords  float32 or float16 [M, 4]   (top / H, left / W, height / H, width / W)
    flips   bool [M]                    mirrored after the crop and the resize
    labels  [M] hard · [M, 2] smoothing · [M, 2, K] marginal (classes as floats, then
            probabilities, both falling) · [M, C] full

Nothing in a file says which type it is, nor which teacher, temperature or pixels made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.boxes import FP16_EXACT_SIDE, boxes_from_shares, ratio_agreement
from storage.archives.errors import BadRecord
from storage.archives.importing import SourceImage, ViewLabels, sampled, source_image
from storage.archives.join import join_by_stem, label_files
from storage.archives.numbers import (
    as_array,
    as_classes,
    check_probabilities,
    most_probable,
)
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.archives.torch_file import read_torch_file
from storage.errors import BadImage, UsageError
from storage.images import ImageFolder
from storage.imported import ImportedViews
from storage.views import Sampler

SUFFIX = ".tar"
LABEL_TYPES = ("marginal_smoothing", "marginal_renorm", "smoothing", "hard", "full")
MIN_RATIO_AGREEMENT = 0.9


@dataclass(frozen=True)
class FkdFile:
    """One file's content, of any length M. index, prob and tail as in `ViewLabels`."""

    coords: npt.NDArray[Any]
    flips: npt.NDArray[np.bool_]
    index: npt.NDArray[np.int64]
    prob: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]
    rows_cut: int


def parse_fkd(data: bytes, label_type: str, num_classes: int, top_k: int | None = None) -> FkdFile:
    """Read one label file.

    Members of different length are aligned at the start and cut to the shortest: the public
    generator drops the remainder of its last segment from the labels only.

    Args:
        top_k: of `full` labels, classes to keep.
    Raises:
        BadRecord: not such a file.
    """
    value = read_torch_file(data)
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise BadRecord("expected the list [coords, flips, labels]")
    coords, flips, labels = (
        as_array(part, name)
        for part, name in zip(value, ("coords", "flips", "labels"), strict=True)
    )
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype.kind != "f" or flips.ndim != 1:
        raise BadRecord(f"coords {coords.shape} and flips {flips.shape}; expected [M, 4] and [M]")
    if labels.ndim < 1:
        raise BadRecord("labels of shape (); expected [M, ...]")
    lengths = (len(coords), len(flips), len(labels))
    rows = min(lengths)
    if not rows:
        raise BadRecord("no crops")
    index, prob, tail = _decode(labels[:rows], label_type, num_classes, top_k)
    return FkdFile(
        coords[:rows], flips[:rows] != 0, index, prob, tail, rows_cut=max(lengths) - rows
    )


def _decode(
    labels: npt.NDArray[Any], label_type: str, num_classes: int, top_k: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    shape = labels.shape[1:]
    match label_type, shape:
        case "hard", ():
            index = as_classes(labels, num_classes, "labels")[:, None]
            return index, np.ones(index.shape), np.zeros(len(index))
        case "smoothing", (2,):
            index = as_classes(labels[:, :1], num_classes, "labels")
            prob = check_probabilities(labels[:, 1:], "labels")
            return index, prob, 1 - prob[:, 0]
        case "marginal_smoothing" | "marginal_renorm", (2, kept) if 0 < kept <= num_classes:
            index = as_classes(labels[:, 0], num_classes, "labels")
            prob = check_probabilities(labels[:, 1], "labels")
            if (prob[:, 1:] > prob[:, :-1]).any():
                raise BadRecord("labels: probabilities that rise; expected falling ones")
            ranked = np.sort(index, axis=-1)
            if (ranked[:, 1:] == ranked[:, :-1]).any():
                raise BadRecord("labels: the same class twice")
            return index, prob, np.clip(1 - prob.sum(axis=-1), 0, 1)
        case "full", (classes,) if classes == num_classes:
            prob = check_probabilities(labels, "labels")
            every = np.broadcast_to(np.arange(classes), prob.shape)
            index, kept_prob = most_probable(every, prob, top_k or min(10, classes))
            return index, kept_prob, np.clip(1 - kept_prob.sum(axis=-1), 0, 1)
    raise BadRecord(
        f"labels of shape [M{''.join(f', {n}' for n in shape)}] are not {label_type} of "
        f"{num_classes} classes (see --label-type, --num-classes)"
    )


class FkdRecords:
    """An FKD archive joined to an image folder; see `importing.Records`."""

    def __init__(
        self,
        source: ArchiveSource,
        folder: ImageFolder,
        report: ImportReport,
        *,
        label_type: str = "marginal_smoothing",
        num_classes: int = 1000,
        num_views: int | None = None,
        top_k: int | None = None,
    ) -> None:
        """Join by class and name, and look at up to 200 files for what the archive is.

        Args:
            num_views: crops kept of each image; None: as most of the files have.
            top_k: of `full` labels, classes to keep (10).
        Raises:
            UsageError: no file is usable, or the coordinates are in another order.
        """
        self._source, self._report = source, report
        self._label_type, self._top_k = label_type, top_k
        self.num_classes = num_classes
        for name, reason in source.refused.items():
            report.problem(name, reason)
        self._names = join_by_stem(label_files(source.names, SUFFIX, report), folder, report)
        self.rows: Sequence[int] = sorted(self._names)
        self.sampler: Sampler = ImportedViews(source="fkd")
        looked = self._look(folder)
        self.top_k = looked.most_common(1)[0][0][1] if looked else 1
        self.num_views = num_views or (looked.most_common(1)[0][0][0] if looked else 1)
        self._float16 = any(key[2] == "float16" for key in looked)
        kind = f"{label_type}, K = {self.top_k}" if "marginal" in label_type else label_type
        report.notes.append(f"label type {kind}, {num_classes} classes, temperature 1 (declared)")
        self.facts: dict[str, Any] = {
            "label_type": label_type,
            "temperature": 1.0,
            "coordinates": "float16: boxes of images with a side over "
            f"{FP16_EXACT_SIDE} pixels may be off by 2"
            if self._float16
            else "exact",
        }

    def _look(self, folder: ImageFolder) -> Counter[tuple[int, int, str]]:
        """(M, k, dtype of the coordinates) of sampled files; refuses swapped coordinates."""
        found: Counter[tuple[int, int, str]] = Counter()
        as_yx, as_xy = [], []
        reasons = []
        for row in sampled(self.rows):
            try:
                file = self._parse(row)
                image = source_image(folder, row)
            except (BadRecord, BadImage, OSError) as error:
                reasons.append(f"{folder.keys[row]}: {error}")
                continue
            found[(len(file.coords), file.index.shape[1], str(file.coords.dtype))] += 1
            if abs(image.height - image.width) > 0.1 * max(image.height, image.width):
                with np.errstate(divide="ignore", invalid="ignore"):
                    yx, xy = ratio_agreement(file.coords, image.height, image.width)
                as_yx.append(yx)
                as_xy.append(xy)
        if reasons and not found:
            raise UsageError(
                f"none of {len(reasons)} sampled label files can be used; the first: {reasons[0]}"
            )
        if as_yx and np.mean(as_yx) < MIN_RATIO_AGREEMENT and np.mean(as_xy) > np.mean(as_yx):
            raise UsageError(
                f"only {np.mean(as_yx):.0%} of the crops have an aspect ratio of 3/4 to 4/3 when "
                f"read as FKD's (top, left, height, width), {np.mean(as_xy):.0%} when read as "
                "(left, top, width, height): this archive isn't in FKD's order"
            )
        return found

    def _parse(self, row: int) -> FkdFile:
        data = self._source.read(self._names[row])
        return parse_fkd(data, self._label_type, self.num_classes, self._top_k)

    def labels(self, image: SourceImage) -> ViewLabels:
        """One image's crops; see `importing.Records`."""
        file = self._parse(image.row)
        M = self.num_views
        if file.index.shape[1] != self.top_k:
            raise BadRecord(f"keeps {file.index.shape[1]} classes, the archive {self.top_k}")
        if len(file.coords) < M:
            raise BadRecord(f"has {len(file.coords)} crops, expected {M} (see --crops)")
        if (file.coords.dtype == np.float16) != self._float16:
            raise BadRecord("has coordinates of another precision than the archive's others")
        if file.rows_cut:
            self._report.count("rows cut to the file's shortest member", file.rows_cut)
        if len(file.coords) > M:
            self._report.count("crops beyond --crops left out", len(file.coords) - M)
        if self._float16 and max(image.height, image.width) > FP16_EXACT_SIDE:
            self._report.count("images over 1024 pixels with boxes to 2 pixels (float16)")
        return ViewLabels(
            box=boxes_from_shares(file.coords[:M], image.height, image.width),
            flip=file.flips[:M].astype(np.uint8),
            index=file.index[:M],
            prob=file.prob[:M],
            tail=file.tail[:M],
        )
