"""The student's data: images of a beton joined by content with the rows of a label store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storage import LabelStore
from storage.augment import Augment
from storage.errors import StoreMismatch, TrainingError, UsageError
from storage.images import ImageStatus
from storage.targets.features import VALUE
from storage.targets.record import TargetRecord
from trainer.batch import Batch, TopKTarget
from trainer.config import LabelConfig, StudentConfig
from trainer.distributed import World
from trainer.labels import as_label_type, decode_topk
from trainer.mean_tails import MeanTails, read_mean_tails
from trainer.plan import EpochPlan, share_of_rank
from trainer.replay.beton import Beton
from trainer.targets import StoredTarget, TargetPlane, read_target_plane, stored_target


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
        raise StoreMismatch(
            f"{store.path} was made for other images: none of its {len(images.status)} is among "
            f"the {beton.num_rows} of the training data (example: {beton.keys[0]}); give the "
            "labelled images with --data, or label these with `labelgen run`"
        )
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
        if teacher is None:
            return EpochTables(spread(plane.box), spread(plane.flip), draw=draw, features=vectors)
        labels = (plane.box, plane.flip, plane.index, plane.code, plane.tail)
        return EpochTables(*(spread(a) for a in labels), draw=draw, features=vectors)

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
        features=None if features is None else stored_target(store, features),
        notes=notes,
        prefetch=lambda plan: store.prefetch(plan.first_view, plan.num_views, teacher),
    )


def _spread_rows(
    rows: npt.NDArray[np.int64], source_rows: npt.NDArray[np.int64], num_rows: int
) -> Callable[[npt.NDArray], npt.NDArray]:
    """Function that lays store-ordered values out by beton row (rows left out stay zero)."""

    def spread(values: npt.NDArray) -> npt.NDArray:
        out = np.zeros((num_rows, *values.shape[1:]), dtype=values.dtype)
        out[rows] = values[source_rows]
        return out

    return spread


def fresh_views(beton: Beton, sampler, seed: int, views_per_image: int) -> TrainingData:
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

    On a CPU one compiled pass where numba is there, into memory that the next call uses again.
    """
    if device.type == "cpu":
        try:
            from trainer.replay.normalize import Normalizer
        except ImportError:  # numba comes with FFCV, which can't be built everywhere
            pass
        else:
            return Normalizer(student.mean, student.std, student.input_size)
    mean, std = torch.tensor(student.mean), torch.tensor(student.std)
    # one row of pixels at a time: faster than by channels of channels_last
    scale = (1 / (255 * std)).repeat(student.input_size).to(device)
    shift = (-mean / std).repeat(student.input_size).to(device)

    def normalise(images: Tensor) -> Tensor:
        # blocking: the loader's buffer is used again for a later batch
        rows = images.to(device).reshape(-1, len(scale)).float().mul_(scale).add_(shift)
        return rows.view(images.shape).permute(0, 3, 1, 2)

    return normalise


@dataclass
class BatchSource:
    """Turns replayed uint8 crops into the normalised, labelled batches of an epoch."""

    data: TrainingData
    student: StudentConfig
    labels: LabelConfig | None
    device: torch.device
    failed: set[int] = field(default_factory=set)  # beton rows whose decode failed while training

    def __post_init__(self) -> None:
        self._normalise = normaliser(self.student, self.device)
        table = self.data.tail_table
        self._tail_table = None if table is None else torch.from_numpy(table).to(self.device)

    def epoch(
        self,
        loader,
        epoch: int,
        plan: EpochPlan,
        step_images: int,
        first_step: int = 0,
        world: World = World(),  # noqa: B008 - frozen
    ) -> Iterator[Batch]:
        """This process's batches of one epoch from `first_step` on; images left over at the end
        are dropped."""
        tables = self.data.tables(epoch, plan)
        whole = len(plan.order) // step_images * step_images
        order = plan.order[first_step * step_images : whole]
        rows = self.data.rows[share_of_rank(order, step_images, world.rank, world.size)]
        for replayed in loader.epoch(rows, tables.box, tables.flip, tables.draw):
            self._check_identity(replayed.rows, replayed.digests)
            keep = ~np.asarray(replayed.failed)
            if not keep.all():
                self.failed.update(int(row) for row in replayed.rows[~keep])
            if keep.any():
                yield self._batch(replayed.images, np.asarray(replayed.rows), keep, tables)

    def failure_notes(self) -> tuple[str, ...]:
        """One line on the images whose decode failed while training, if any did."""
        names = [self.data.beton.keys[row] for row in sorted(self.failed)]
        if not names:
            return ()
        return (f"{len(names)} images failed to decode while training: {', '.join(names[:5])}",)

    def _check_identity(self, rows: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> None:
        """The images that were decoded are the images whose labels are about to be used."""
        wrong = (self.data.digests[rows] != digests).any(axis=1)
        if wrong.any():
            row = int(rows[np.flatnonzero(wrong)[0]])
            raise TrainingError(
                f"image {self.data.beton.keys[row]} of the beton is not the one its label was "
                "made for (content digests differ): pack the images again with `trainer pack`"
            )

    def _batch(
        self, images: Tensor, rows: npt.NDArray[np.int64], keep: npt.NDArray, tables: EpochTables
    ) -> Batch:
        if not keep.all():
            images, rows = images[torch.from_numpy(keep)], rows[keep]
        views = images.shape[1]
        target = torch.from_numpy(np.repeat(self.data.target[rows], views)).to(self.device)
        parts = None if tables.features is None else tables.features.batch(rows, self.device)
        return Batch(
            self._normalise(images.flatten(0, 1)),
            target,
            self._labels(rows, tables),
            features=None if parts is None else parts.get(VALUE),
            targets=parts,
        )

    def _labels(self, rows: npt.NDArray[np.int64], tables: EpochTables) -> TopKTarget | None:
        if tables.index is None or tables.code is None or tables.tail is None:
            return None
        assert self.labels is not None and self.data.code_step is not None
        k = tables.index.shape[-1]
        index = torch.from_numpy(tables.index[rows].reshape(-1, k).astype(np.int64))
        code = torch.from_numpy(tables.code[rows].reshape(-1, k)).to(self.device)
        tail_code = torch.from_numpy(tables.tail[rows].reshape(-1)).to(self.device)
        probs, tail = decode_topk(code, tail_code, self.data.code_step, self._tail_table)
        index, probs, tail = as_label_type(
            self.labels.label_type, self.labels.top_k, index.to(self.device), probs, tail
        )
        means = self.data.mean_tails
        if means is None or not means.serve(self.labels):
            return TopKTarget(index, probs, tail)
        even, listed, extra = means.spread(rows, tables.index.shape[1], index, tail)
        return TopKTarget(index, probs, even, listed, extra)
