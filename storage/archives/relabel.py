"""ReLabel's label maps (Yun et al. 2021, naver-ai/relabel_imagenet): `<class>/<stem>.pt`.

Each is a torch-save tensor [2, 5, H', W'] (15 x 15): at every place of the image, squeezed to a
square, the scores (before softmax) of the five largest classes, and those classes. There are no
crops in it: a crop's label is the map pooled over the crop's box by RoIAlign, then softmax. So
views are drawn here, by our own sampler, and labelled as their training code does. Those labels
are an approximation of what a teacher would say of the crop; that is what ReLabel is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.errors import BadRecord
from storage.archives.importing import SourceImage, ViewLabels
from storage.archives.join import join_by_stem, label_files
from storage.archives.numbers import as_array, as_classes, softmax_topk
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.archives.torch_file import read_torch_file
from storage.images import ImageFolder
from storage.views import RandomResizedCrop, Sampler

SUFFIX = ".pt"
AXES = ("published", "natural")
MAX_SIDE = 64  # of a map; the published ones have 15


def parse_relabel(
    data: bytes, num_classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores and classes, [K, H', W'] each.

    Raises:
        BadRecord: not such a file.
    """
    value = as_array(read_torch_file(data), "label map")
    if value.ndim != 4 or value.shape[0] != 2 or not all(value.shape):
        raise BadRecord(f"a label map of shape {value.shape}; expected [2, K, H, W]")
    if max(value.shape[2:]) > MAX_SIDE or value.shape[1] > num_classes:
        raise BadRecord(f"a label map of shape {value.shape}: larger than any published")
    scores = value[0].astype(np.float64)
    if not np.isfinite(scores).all():
        raise BadRecord("scores that aren't finite")
    return scores, as_classes(value[1], num_classes, "label map")


def dense_map(
    scores: npt.NDArray[np.float64], classes: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.float64]:
    """[C, H', W'] with zero where a class isn't among the kept, as ReLabel's trainer has it."""
    dense = np.zeros((num_classes, *scores.shape[1:]))
    np.put_along_axis(dense, classes, scores, axis=0)
    return dense


def roi_align(
    field: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """torchvision.ops.roi_align with output 1 x 1, adaptive sampling and aligned=False.

    Args:
        field: [C, H, W].
        boxes: [n, 4] (x1, y1, x2, y2) in cells.
    Returns:
        [n, C].
    """
    weights_x, weights_y = (
        np.stack([_weights(low, high, side) for low, high in zip(starts, ends, strict=True)])
        for starts, ends, side in (
            (boxes[:, 0], boxes[:, 2], field.shape[2]),
            (boxes[:, 1], boxes[:, 3], field.shape[1]),
        )
    )
    rows = np.einsum("nh,chw->ncw", weights_y, field)
    pooled: npt.NDArray[np.float64] = np.einsum("ncw,nw->nc", rows, weights_x)
    return pooled


def _weights(low: float, high: float, side: int) -> npt.NDArray[np.float64]:
    """Mean bilinear weight [side] of the sample points of one axis; points outside count 0."""
    length = max(high - low, 1.0)
    count = int(np.ceil(length))
    at = low + (np.arange(count) + 0.5) * length / count
    inside = (at >= -1) & (at <= side)
    at = np.maximum(at, 0)
    first = np.minimum(np.floor(at).astype(np.int64), side - 1)
    part = np.where(first >= side - 1, 0.0, at - first)
    weights = np.zeros(side)
    np.add.at(weights, first, (1 - part) * inside)
    np.add.at(weights, np.minimum(first + 1, side - 1), part * inside)
    return weights / count


class RelabelRecords:
    """A ReLabel archive joined to an image folder; see `importing.Records`."""

    def __init__(
        self,
        source: ArchiveSource,
        folder: ImageFolder,
        report: ImportReport,
        *,
        num_classes: int = 1000,
        num_views: int = 100,
        top_k: int = 10,
        axes: str = "published",
        seed: int = 0,
        scale: tuple[float, float] = (0.08, 1.0),
    ) -> None:
        """Join by class and name.

        Args:
            num_views: crops to draw and label of each image.
            axes: "published": the box's (top, left) in the map's (x, y), as their training code
                passes it; "natural": (left, top).
        """
        for name, reason in source.refused.items():
            report.problem(name, reason)
        self._source, self._axes, self._seed = source, axes, seed
        self._names = join_by_stem(label_files(source.names, SUFFIX, report), folder, report)
        self.rows: Sequence[int] = sorted(self._names)
        self.num_views, self.num_classes = num_views, num_classes
        self.top_k = min(top_k, num_classes)
        self.sampler: Sampler = RandomResizedCrop(scale=scale)
        self.facts: dict[str, Any] = {
            "labels": "label maps pooled over the views (RoIAlign 1x1, softmax after), not "
            "answers of a teacher to the views",
            "map_axes": axes,
        }
        report.notes.append(
            f"{num_views} views drawn here; label maps pooled over them ({axes} axes)"
        )

    def labels(self, image: SourceImage) -> ViewLabels:
        """One image's drawn views and pooled labels; see `importing.Records`."""
        scores, classes = parse_relabel(self._source.read(self._names[image.row]), self.num_classes)
        views = self.sampler.draw(
            self._seed, image.digest, image.height, image.width, 0, self.num_views
        )
        field = dense_map(scores, classes, self.num_classes)
        logits = roi_align(field, self._cells(views.box, image, field.shape[2]))
        index, prob, tail = softmax_topk(logits, self.top_k, "label map")
        return ViewLabels(views.box, views.flip, index, prob, tail)

    def _cells(
        self, box: npt.NDArray[np.uint16], image: SourceImage, side: int
    ) -> npt.NDArray[np.float64]:
        sides = np.array([image.height, image.width, image.height, image.width], np.float64)
        shares = box / sides
        shares[:, 2:] += shares[:, :2]
        order = [0, 1, 2, 3] if self._axes == "published" else [1, 0, 3, 2]
        return shares[:, order] * side - 0.5
