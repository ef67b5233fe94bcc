"""What a store's labels say: how sure the teacher was, where it disagrees with the folders.

Every label is looked at once, in small parts; what is kept grows with the number of images (a
few numbers each) and of confused pairs of classes, never with the number of labels. All numbers
are of decoded labels, in float64. Entropies are in nats and take the tail as spread evenly over
the classes that aren't kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.classes import map_classes
from storage.codecs import TopKCodec
from storage.errors import TeachonceError
from storage.label_stream import LabelPart, label_stream
from storage.measure import decoded_entropy
from storage.store import LabelStore
from storage.tables import ImageTable

CONFIDENT_MARGIN = 0.5  # of an image that is probably in the wrong folder
PROBABILITY_EDGES = np.linspace(0, 1, 41)
AREA_EDGES = np.linspace(0, 1, 21)
ASPECT_EDGES = np.linspace(-2, 2, 33)  # log2 of width / height; what is beyond counts as the last
ENTROPY_BINS = 40

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass
class Binned:
    """Counts and sums of values in bins of something else."""

    edges: Floats
    counts: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) - 1, np.int64)

    def add(self, values: Floats) -> Ints:
        """Count values; those beyond the edges go to the first or last bin. Their bins."""
        place = np.searchsorted(self.edges, values, side="right") - 1
        place = np.clip(place, 0, len(self.counts) - 1).ravel()
        self.counts += np.bincount(place, minlength=len(self.counts))
        return place

    def to_json(self) -> dict[str, Any]:
        """Edges and counts."""
        return {"edges": self.edges.round(6).tolist(), "counts": self.counts.tolist()}


@dataclass
class LabelStatistics:
    """Sums over the labels of one teacher.

    entropy, top1, tail: histograms of labels; area, aspect: of crops.
    image_*: sums over the views of each image, [N]: entropy; margin, how much more probable the
        likeliest other class is than the image's own; agreed views.
    area_*: sums by the share of the image that a crop shows.
    own, agreed_by_class: labels and agreeing labels of each folder class.
    confused: labels by (folder class, the teacher's first class).
    suggested: [N], the wrong class of most probability in the views where it came first, or -1.
    """

    entropy: Binned
    top1: Binned
    tail: Binned
    area: Binned
    aspect: Binned
    image_entropy: Floats
    image_margin: Floats
    image_agreed: Ints
    suggested: npt.NDArray[np.int32]
    area_entropy: Floats
    area_agreed: Ints
    area_compared: Ints
    own: Ints
    agreed_by_class: Ints
    confused: Counter[tuple[int, int]] = field(default_factory=Counter)
    sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("labels", "entropy", "top1", "tail", "flipped", "enlarged", "compared", "agreed"), 0.0
        )
    )


@dataclass(frozen=True)
class Collected:
    """Statistics with what they are of.

    views: how many of each image were looked at. mapped: the teacher's class of every folder
        class, None where their names don't tell.
    """

    store: LabelStore
    teacher: str
    views: int
    images: ImageTable
    mapped: Ints | None
    found: LabelStatistics

    @property
    def classes(self) -> list[str]:
        """Names of the folder's classes."""
        return list(self.store.spec.dataset.get("classes") or ())


def collect(
    store: LabelStore,
    teacher: str,
    num_views: int | None = None,
    progress: Callable[[int], None] = lambda labels: None,
) -> Collected:
    """Look at every label of a teacher (of the first `num_views` views).

    Args:
        progress: called with the number of labels just looked at.
    Raises:
        UsageError, IncompleteStore, CorruptStore: see `storage.label_stream.label_stream`.
        TeachonceError: no image of the store has labels.
    """
    images, spec = store.read_images(), store.spec
    record = spec.teachers.get(teacher)
    names = spec.dataset.get("classes") or ()
    mapped = map_classes(names, record.classes) if record else None
    num_classes = record.num_classes if record else 1
    N, bins = len(images.key), len(AREA_EDGES) - 1
    found = LabelStatistics(
        entropy=Binned(np.linspace(0, math.log(num_classes), ENTROPY_BINS + 1)),
        top1=Binned(PROBABILITY_EDGES), tail=Binned(PROBABILITY_EDGES),
        area=Binned(AREA_EDGES), aspect=Binned(ASPECT_EDGES),
        image_entropy=np.zeros(N), image_margin=np.zeros(N), image_agreed=np.zeros(N, np.int64),
        suggested=np.full(N, -1, np.int32), area_entropy=np.zeros(bins),
        area_agreed=np.zeros(bins, np.int64), area_compared=np.zeros(bins, np.int64),
        own=np.zeros(len(names), np.int64), agreed_by_class=np.zeros(len(names), np.int64),
    )  # fmt: skip
    wrong = _WrongClasses(found.suggested)
    for part in label_stream(store, teacher, num_views):
        _add_part(found, wrong, store, teacher, images, mapped, part)
        progress(part.labels.tail.size)
    wrong.settle()
    if not found.sums["labels"]:
        raise TeachonceError(
            f"none of the {N} images of {store.path} has labels: there is nothing to count"
        )
    views = min(num_views or spec.num_views, spec.num_views)
    return Collected(store, teacher, views, images, mapped, found)


def _add_part(
    found: LabelStatistics,
    wrong: _WrongClasses,
    store: LabelStore,
    teacher: str,
    images: ImageTable,
    mapped: Ints | None,
    part: LabelPart,
) -> None:
    record, labels, sums = store.spec.teachers[teacher], part.labels, found.sums
    probs, tail = (values.astype(np.float64) for values in record.codec.decode(labels))
    entropy = decoded_entropy(record.codec, probs, tail)
    found.entropy.add(entropy)
    found.top1.add(probs[..., 0])
    found.tail.add(tail)
    found.image_entropy[part.row] += entropy.sum(axis=1)
    for name, values in (("entropy", entropy), ("top1", probs[..., 0]), ("tail", tail)):
        sums[name] += float(values.sum())
    sums["labels"] += tail.size
    area_bin = _add_views(found, store, record.input_size, images, part)
    found.area_entropy += np.bincount(area_bin, entropy.ravel(), len(found.area_entropy))
    if mapped is not None:
        _add_agreement(found, wrong, record.codec, images, mapped, part, probs, tail, area_bin)


def _add_agreement(
    found: LabelStatistics,
    wrong: _WrongClasses,
    codec: TopKCodec,
    images: ImageTable,
    mapped: Ints,
    part: LabelPart,
    probs: Floats,
    tail: Floats,
    area_bin: Ints,
) -> None:
    """Compare the labels of images that have a class with it."""
    known = np.flatnonzero(images.target[part.row] >= 0)
    row, target = part.row[known], images.target[part.row[known]]
    index, probs = part.labels.index[known], probs[known]
    first, views = index[..., 0], index.shape[1]
    agreed = first == mapped[target][:, None]
    found.image_margin[row] += _margins(codec, index, probs, tail[known], mapped[target])
    found.image_agreed[row] += agreed.sum(axis=1)
    found.sums["compared"] += agreed.size
    found.sums["agreed"] += int(agreed.sum())
    classes, bins = len(found.own), len(found.area_agreed)
    found.own += np.bincount(target, minlength=classes) * views
    of_labels = np.repeat(target, views).reshape(agreed.shape)
    found.agreed_by_class += np.bincount(of_labels[agreed], minlength=classes)
    known_bins = area_bin.reshape(tail.shape)[known]
    found.area_compared += np.bincount(known_bins.ravel(), minlength=bins)
    found.area_agreed += np.bincount(known_bins[agreed], minlength=bins)
    missed = ~agreed
    pairs = of_labels[missed].astype(np.int64) * 65_536 + first[missed]
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        found.confused[int(pair) >> 16, int(pair) & 0xFFFF] += int(count)
    rows = np.repeat(row, views).reshape(agreed.shape)
    wrong.add(part.block, rows[missed], first[missed], probs[..., 0][missed])


def _margins(
    codec: TopKCodec, index: npt.NDArray[np.uint16], probs: Floats, tail: Floats, own: Ints
) -> Floats:
    """Sum over the views [n] of how much more probable the likeliest class beside `own` [n] is.

    A class that a label doesn't keep has an even share of its tail.
    """
    share = tail / max(codec.num_classes - codec.top_k, 1)
    is_own = index == own[:, None, None]
    own_prob = np.where(is_own.any(axis=-1), (probs * is_own).sum(axis=-1), share)
    other_prob = np.maximum(np.where(is_own, 0, probs).max(axis=-1), share)
    return np.asarray((other_prob - own_prob).sum(axis=1))


def _add_views(
    found: LabelStatistics, store: LabelStore, size: int, images: ImageTable, part: LabelPart
) -> Ints:
    """Count boxes and flips; the bin of area of every crop."""
    sides = images.size[part.row].astype(np.float64) + 2 * store.spec.pixel.padding
    height, width = (part.box[..., i].astype(np.float64) for i in (2, 3))
    found.aspect.add(np.log2(width / height))
    found.sums["flipped"] += int(part.flip.sum())
    found.sums["enlarged"] += int(((height < size) | (width < size)).sum())
    return found.area.add(height * width / sides.prod(axis=1)[:, None])


class _WrongClasses:
    """For each image the wrong class with the largest summed probability where it came first.

    The sums of one block at a time are in memory; equal sums go to the lower class.
    """

    def __init__(self, suggested: npt.NDArray[np.int32]) -> None:
        self._suggested, self._block = suggested, -1
        self._pairs: list[Ints] = []
        self._mass: list[Floats] = []

    def add(self, block: int, row: Ints, wrong: npt.NDArray[np.uint16], prob: Floats) -> None:
        """Add wrong labels [n]; the parts of a block come after one another."""
        if block != self._block:
            self.settle()
            self._block = block
        pairs, place = np.unique(row * 65_536 + wrong, return_inverse=True)
        self._pairs.append(pairs)
        self._mass.append(np.bincount(place, prob, len(pairs)).astype(np.float64))

    def settle(self) -> None:
        """Decide for the images of the block that is over."""
        if self._pairs:
            pairs, place = np.unique(np.concatenate(self._pairs), return_inverse=True)
            mass = np.bincount(place, np.concatenate(self._mass), len(pairs))
            order = np.lexsort((-pairs, mass))  # the last of an image's has most and is lowest
            self._suggested[pairs[order] >> 16] = pairs[order] & 0xFFFF
            self._pairs, self._mass = [], []
