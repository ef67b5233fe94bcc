"""The student's data: images of a beton joined by content with the rows of a label store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storage import LabelStore
from storage.augment import Augment
from storage.errors import StoreMismatch, UsageError
from storage.images import ImageStatus
from storage.match import explain_strangers
from storage.targets.record import TargetRecord
from storage.thresholds import Thresholds, stored_thresholds
from storage.views import Sampler
from trainer.config import StudentConfig
from trainer.mean_tails import MeanTails, read_mean_tails
from trainer.plan import EpochPlan
from trainer.replay.beton import Beton
from trainer.targets import StoredTarget, TargetPlane, read_target_plane, stored_target

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EpochTables:
    """What one epoch replays, indexed by beton row.

    Attributes:
        box: uint16 [R, V, 4]; flip: uint8 [R, V]; draw: int16 [R, V, D], or None where nothing is
            done to views.
        features: vectors of the method's target, where it reads one.
        index, code: [R, V, k] and tail: [R, V] stored label codes, or None without a store.
    """

    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]
    index: npt.NDArray[np.uint16] | None = None
    code: npt.NDArray[np.uint8] | None = None
    tail: npt.NDArray[np.uint8] | None = None
    draw: npt.NDArray[np.int16] | None = None
    features: TargetPlane | None = None

    @property
    def nbytes(self) -> int:
        """Of all arrays together."""
        arrays = (self.box, self.flip, self.index, self.code, self.tail, self.draw)
        vectors = 0 if self.features is None else self.features.nbytes
        return vectors + sum(array.nbytes for array in arrays if array is not None)

    def without_labels(self) -> EpochTables:
        """The rest, once the labels lie elsewhere."""
        return replace(self, index=None, code=None, tail=None)


@dataclass(frozen=True)
class TrainingData:
    """Rows of a beton that take part, where their views come from, and their labels.

    Attributes:
        rows: int64 [n] beton rows that take part, ascending.
        digests: uint8 [R, 32] content digests by beton row, from the *label* side: what the
            loader's own digests are compared with on every batch.
        target: int64 [R] hard class by beton row.
        tables: epoch number and plan -> the views and labels of that epoch.
        stored_views: M views to plan over.
        code_step: nats per label code, None without labels.
        tail_table: tail mass of each of 256 tail codes, None without labels.
        mean_tails: mean tails of the images, None where the labels have none.
        augment: what the loader does to every view, by the draws of the tables.
        adapted: how the labels were adapted (storage.ferkd), None where they are the teacher's.
    """

    beton: Beton
    rows: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    target: npt.NDArray[np.int64]
    tables: Callable[[int, EpochPlan], EpochTables]
    stored_views: int
    interpolation: str
    padding: int
    code_step: float | None
    tail_table: npt.NDArray[np.float32] | None = None
    mean_tails: MeanTails | None = None
    augment: Augment | None = None
    adapted: Thresholds | None = None
    features: StoredTarget | None = None  # the target that the method learns from
    notes: tuple[str, ...] = ()
    # asks a store that lies elsewhere for an epoch's plane ahead of time
    prefetch: Callable[[EpochPlan], None] = lambda _plan: None


def match_rows(
    digests: npt.NDArray[np.uint8], known: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Row in `known` [N, 32] of every digest [R, 32], -1 where there is none.

    Equal files have equal digests and equal labels, so the first of several rows serves.
    """
    row_of: dict[bytes, int] = {}
    for row, digest in enumerate(known):
        row_of.setdefault(digest.tobytes(), row)
    return np.array([row_of.get(digest.tobytes(), -1) for digest in digests], dtype=np.int64)


def join_store(
    beton: Beton,
    store: LabelStore,
    teacher: str | None,
    features: TargetRecord | None = None,
) -> TrainingData:
    """Join a beton with a label store by the content of the images.

    Args:
        teacher: name of the labels to read, None when the method reads none.
        features: the target to read; only views that have it are planned over.
    Raises:
        StoreMismatch: no image of the beton is in the store.
    """
    images = store.read_images()
    labelled = np.asarray(images.status) == ImageStatus.OK
    store_row = match_rows(beton.digests, images.digest)
    matched = store_row >= 0
    if not matched.any():
        raise StoreMismatch(explain_strangers(store, beton))
    usable = matched & labelled[store_row] & (np.asarray(beton.status) == ImageStatus.OK)
    rows = np.flatnonzero(usable)
    if not len(rows):
        raise StoreMismatch(
            f"{store.path}: every image that it shares with the training data is masked as "
            "unreadable; nothing can be trained on"
        )
    digests = np.zeros_like(beton.digests)
    digests[rows] = images.digest[store_row[rows]]

    spread = _spread_rows(rows, store_row[rows], beton.num_rows)

    def tables(_epoch: int, plan: EpochPlan) -> EpochTables:
        plane = store.read_plane(plan.first_view, plan.num_views, teacher)
        draw = None if plane.draw is None else spread(plane.draw)
        vectors = None
        if features is not None:
            vectors = read_target_plane(store, features.path, plan, store_row)
        labels = (plane.index, plane.code, plane.tail) if teacher is not None else (None,) * 3
        index, code, tail = (None if one is None else spread(one) for one in labels)
        return EpochTables(
            spread(plane.box), spread(plane.flip), index, code, tail, draw=draw, features=vectors
        )

    spec = store.spec
    missing = int((~matched).sum())
    masked = beton.num_rows - missing - len(rows)
    notes = (
        *(
            (f"{missing} of {beton.num_rows} images are not in the store: left out",)
            * (missing > 0)
        ),
        *((f"{masked} images are masked as unreadable: left out",) * (masked > 0)),
    )
    return TrainingData(
        beton=beton,
        rows=rows,
        digests=digests,
        target=np.asarray(beton.targets, dtype=np.int64),
        tables=tables,
        stored_views=spec.num_views if features is None else features.views,
        interpolation=spec.pixel.interpolation,
        padding=spec.pixel.padding,
        code_step=None if teacher is None else spec.teachers[teacher].codec.step,
        tail_table=None if teacher is None else spec.teachers[teacher].codec.tail_table(),
        mean_tails=None if teacher is None else read_mean_tails(store, teacher, spread),
        augment=spec.augment,
        adapted=None if teacher is None else stored_thresholds(spec.teachers[teacher].adapted),
        features=None if features is None else stored_target(store, features),
        notes=notes,
        prefetch=lambda plan: store.prefetch(plan.first_view, plan.num_views, teacher),
    )


def _spread_rows(
    rows: npt.NDArray[np.int64], source_rows: npt.NDArray[np.int64], num_rows: int
) -> Callable[[Array], Array]:
    """Function that lays store-ordered values out by beton row (rows left out stay zero)."""

    def spread(values: Array) -> Array:
        out = np.zeros((num_rows, *values.shape[1:]), dtype=values.dtype)
        out[rows] = values[source_rows]
        return out

    return spread


def fresh_views(beton: Beton, sampler: Sampler, seed: int, views_per_image: int) -> TrainingData:
    """Views drawn anew for every epoch, without a store (supervised training).

    Epoch e takes views e*V .. e*V + V - 1 of the sampler; a sampler with finitely many views
    starts again when they are used up.
    """
    rows = np.flatnonzero(np.asarray(beton.status) == ImageStatus.OK)
    if not len(rows):
        raise UsageError(f"none of the {beton.num_rows} images can be decoded")
    distinct = getattr(sampler, "distinct_views", None)
    if distinct is not None and views_per_image > distinct:
        raise UsageError(f"--views-per-image is {views_per_image}; there are {distinct} views")
    period = distinct // views_per_image if distinct is not None else None

    def tables(epoch: int, plan: EpochPlan) -> EpochTables:
        box = np.zeros((beton.num_rows, plan.num_views, 4), dtype=np.uint16)
        flip = np.zeros((beton.num_rows, plan.num_views), dtype=np.uint8)
        first = (epoch if period is None else epoch % period) * plan.num_views
        for row in rows:
            height, width = (int(side) for side in beton.sizes[row])
            digest = beton.digests[row].tobytes()
            views = sampler.draw(seed, digest, height, width, first, plan.num_views)
            box[row], flip[row] = views.box, views.flip
        return EpochTables(box, flip)

    masked = beton.num_rows - len(rows)
    return TrainingData(
        beton=beton,
        rows=rows,
        digests=np.asarray(beton.digests),
        target=np.asarray(beton.targets, dtype=np.int64),
        tables=tables,
        stored_views=views_per_image,
        interpolation="bilinear",
        padding=sampler.padding,
        code_step=None,
        notes=(f"{masked} images are masked as unreadable: left out",) if masked else (),
    )


def normaliser(student: StudentConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in channels_last order, (x / 255 - mean) / std.

    Any S. On a CPU one compiled pass where numba is there, into memory that the next call of the
    same S uses again.
    """
    by_side: dict[int, Callable[[Tensor], Tensor]] = {}

    def normalise(images: Tensor) -> Tensor:
        side = images.shape[2]
        if side not in by_side:
            by_side[side] = _normaliser_of_side(student, side, device)
        return by_side[side](images)

    return normalise


def _normaliser_of_side(
    student: StudentConfig, side: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    if device.type == "cpu":
        try:
            from trainer.replay.normalize import Normalizer
        except ImportError:  # numba comes with FFCV, which can't be built everywhere
            pass
        else:
            return Normalizer(student.mean, student.std, side)
    # one row of pixels at a time: faster than by channels of channels_last
    mean, std = torch.tensor(student.mean), torch.tensor(student.std)
    scale = (1 / (255 * std)).repeat(side).to(device)
    shift = (-mean / std).repeat(side).to(device)

    def normalise(images: Tensor) -> Tensor:
        # blocking: the loader's buffer is used again for a later batch
        rows = images.to(device).reshape(-1, len(scale)).float().mul_(scale).add_(shift)
        return rows.view(images.shape).permute(0, 3, 1, 2)

    return normalise
