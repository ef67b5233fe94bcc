"""From replayed crops and the labels of their pass to the batches that a student learns from."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from storage.errors import TrainingError
from storage.targets.dense import LOGITS
from storage.targets.features import VALUE
from trainer.batch import Batch, TopKTarget
from trainer.config import FULL, LabelConfig, StudentConfig
from trainer.data import EpochTables, TrainingData, normaliser
from trainer.distributed import World
from trainer.label_plane import LabelPlane, label_plane
from trainer.labels import as_label_type, decode_topk, full_labels, within
from trainer.plan import EpochPlan, share_of_rank
from trainer.read_ahead import ReadAhead
from trainer.replay.epoch import ReplayBatch, ReplayLoader
from trainer.replay.pages import file_pages, with_pages_read

MOST_AHEAD = 4 << 30  # bytes of a pass's tables, beyond which two passes' aren't held at a time

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PassTables:
    """What one pass reads of the store: tables by beton row, its labels on the device."""

    tables: EpochTables
    labels: LabelPlane | None
    nbytes: int


@dataclass
class BatchSource:
    """Turns replayed uint8 crops into the normalised, labelled batches of an epoch.

    Attributes:
        failed: beton rows whose decode failed while training.
        reads_pages: whether whole pages of the beton are read ahead (quasi-random order).
    """

    data: TrainingData
    student: StudentConfig
    labels: LabelConfig | None
    device: torch.device
    failed: set[int] = field(default_factory=set)
    reads_pages: bool = False

    def __post_init__(self) -> None:
        self._normalise = normaliser(self.student, self.device)
        table = self.data.tail_table
        self._tail_table = None if table is None else torch.from_numpy(table).to(self.device)
        self._ahead: ReadAhead[PassTables] = ReadAhead()
        means, self._means = self.data.mean_tails, None
        if means is not None and self.labels is not None and means.serve(self.labels):
            self._means = means.on(self.device)

    def epoch(
        self,
        loader: ReplayLoader,
        epoch: int,
        plan: EpochPlan,
        step_images: int,
        first_step: int = 0,
        world: World = World(),  # noqa: B008 - frozen
        after: tuple[int, EpochPlan] | None = None,
    ) -> Iterator[Batch]:
        """This process's batches of one epoch from `first_step` on; images left over at the end
        are dropped.

        Args:
            after: number and plan of the epoch after this one, whose labels are read meanwhile.
        """
        read = self._ahead.take(_key(epoch, plan), partial(self.read, epoch, plan))
        rows = self._rows(plan, step_images, first_step, world)
        for replayed in self._replay(loader, rows, read.tables):
            if after is not None:  # not before: a loader that forks has no other thread to fork
                self._read_ahead(*after, read.nbytes)
                after = None
            self._check_identity(replayed.rows, replayed.digests)
            keep = ~np.asarray(replayed.failed)
            if not keep.all():
                self.failed.update(int(row) for row in replayed.rows[~keep])
            if keep.any():
                yield self._batch(replayed, keep, read)

    def failure_notes(self) -> tuple[str, ...]:
        """One line on the images whose decode failed while training, if any did."""
        names = [self.data.beton.keys[row] for row in sorted(self.failed)]
        if not names:
            return ()
        return (f"{len(names)} images failed to decode while training: {', '.join(names[:5])}",)

    def read(self, epoch: int, plan: EpochPlan) -> PassTables:
        """All that an epoch takes from the store, now."""
        tables = self.data.tables(epoch, plan)
        if tables.index is None or tables.code is None or tables.tail is None:
            return PassTables(tables, None, tables.nbytes)
        plane = label_plane(tables.index, tables.code, tables.tail, self.device)
        return PassTables(tables.without_labels(), plane, tables.nbytes)

    def _read_ahead(self, epoch: int, plan: EpochPlan, bytes_now: int) -> None:
        """Begin with the tables of the next epoch, or at least with fetching what they are made of
        where two epochs' are too much for the memory."""
        if bytes_now > MOST_AHEAD:
            self.data.prefetch(plan)
        else:
            self._ahead.start(_key(epoch, plan), partial(self.read, epoch, plan))

    def _replay(
        self, loader: ReplayLoader, rows: Rows, tables: EpochTables
    ) -> Iterator[ReplayBatch]:
        batches = loader.epoch(rows, tables.box, tables.flip, tables.draw)
        if not self.reads_pages:
            return batches
        beton = self.data.beton
        page = file_pages(beton.records["ptr"][rows])
        return with_pages_read(batches, beton.path, page, loader.batch_images)

    def _rows(self, plan: EpochPlan, step_images: int, first_step: int, world: World) -> Rows:
        whole = len(plan.order) // step_images * step_images
        order = plan.order[first_step * step_images : whole]
        return self.data.rows[share_of_rank(order, step_images, world.rank, world.size)]

    def _check_identity(self, rows: Rows, digests: npt.NDArray[np.uint8]) -> None:
        """The images that were decoded are the images whose labels are about to be used."""
        wrong = (self.data.digests[rows] != digests).any(axis=1)
        if wrong.any():
            row = int(rows[np.flatnonzero(wrong)[0]])
            raise TrainingError(
                f"image {self.data.beton.keys[row]} of the beton is not the one its label was "
                "made for (content digests differ): pack the images again with `trainer pack`"
            )

    def _batch(self, replayed: ReplayBatch, keep: npt.NDArray[np.bool_], read: PassTables) -> Batch:
        images, rows = replayed.images, np.asarray(replayed.rows)
        if not keep.all():
            images, rows = images[torch.from_numpy(keep)], rows[keep]
        views, features = images.shape[1], read.tables.features
        target = torch.from_numpy(np.repeat(self.data.target[rows], views)).to(self.device)
        parts = None if features is None else features.batch(rows, self.device)
        labels = None if read.labels is None else self.decode(read.labels, rows)
        if parts is not None and self.labels is not None and self.labels.label_type == FULL:
            labels = full_labels(parts[LOGITS])
        return Batch(
            self._normalise(images.flatten(0, 1)),
            target,
            labels,
            features=None if parts is None else parts.get(VALUE),
            targets=parts,
        )

    def decode(self, plane: LabelPlane, rows: Rows) -> TopKTarget:
        """Labels of all views of beton rows [b], crops of one image together."""
        assert self.labels is not None and self.data.code_step is not None
        where = torch.from_numpy(rows)
        index, code, tail_code = plane.batch(where, self.device)
        probs, tail = decode_topk(code, tail_code, self.data.code_step, self._tail_table)
        adapted = self.data.adapted
        counts = None if adapted is None else within(probs[:, 0], adapted.low, adapted.top)
        index, probs, tail = as_label_type(
            self.labels.label_type, self.labels.top_k, index, probs, tail
        )
        if self._means is None:
            return TopKTarget(index, probs, tail, counts=counts)
        even, listed, extra = self._means.spread(where, plane.views, index, tail)
        return TopKTarget(index, probs, even, listed, extra, counts)


def _key(epoch: int, plan: EpochPlan) -> Hashable:
    """What makes the tables of an epoch."""
    return epoch, plan.first_view, plan.num_views
