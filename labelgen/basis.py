"""A projection basis from streaming moments: mean and Gram matrix in float64, O(D^2) memory.

The basis of features is that of KDEP (arXiv:2203.05180, section 3.2): the eigenvectors of the
covariance, which are the right singular vectors of the centred features. That of tokens is not
centred (ScaleKD compares directions, arXiv:2411.06786, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelgen.crop_pool import CropPool
from labelgen.crop_worker import CropConfig, StoredViews
from labelgen.engine import ring_batches
from labelgen.forward import Forward, matmul_precision
from labelgen.plan import Unit, plan_batches, plan_units
from storage.augment import Augment
from storage.errors import TeacherError, TeachonceError, UsageError
from storage.images import ImageFolder, ImageStatus
from storage.views import Sampler

if TYPE_CHECKING:
    import threading

    from labelgen.extract.base import Extractor
    from labelgen.teacher import Teacher

# 20,000 crops are ten for each of a ResNet's 2,048 dimensions and cost a run less than one view of
# each image; KDEP took 128,000.
DEFAULT_IMAGES = 20_000
CROPS_A_DIMENSION = 2  # where there are fewer images, several views of each are taken
_DRAW = 0x0BA5  # keeps the sample apart from other draws of the same seed
# Makes the rows [n, D] that a basis is fitted on, of an extractor's outputs.
Rows = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows of a matrix, in float64 on any device.

    Attributes:
        count: rows. total: [D], their sum; gram: [D, D], sum of their outer products.
    """

    count: int
    total: Tensor
    gram: Tensor

    @staticmethod
    def of(rows: Tensor) -> Moments:
        """Moments of [n, D]; memory 8 n D + 8 D^2 bytes."""
        exact = rows.to(torch.float64)
        return Moments(len(rows), exact.sum(dim=0), exact.T @ exact)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows.

        Raises:
            UsageError: rows of another width.
        """
        if self.gram.shape != other.gram.shape:
            raise UsageError(
                f"moments of {len(self.total)} and of {len(other.total)} dimensions: only those of "
                "one teacher's outputs can be merged"
            )
        total = self.total + other.total.to(self.total.device)
        gram = self.gram + other.gram.to(self.gram.device)
        return Moments(self.count + other.count, total, gram)


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions of falling energy.

    Attributes:
        mean: float32 [D], zeros where the rows weren't centred.
        vectors: float32 [D, r], columns; the largest entry of each is positive.
        spectrum: float64 [D], root mean square of the rows (less the mean) along every direction.
    """

    mean: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    spectrum: npt.NDArray[np.float64]


def fit_basis(moments: Moments, rank: int, *, centred: bool = True) -> Basis:
    """The r directions that keep most of the rows' energy.

    Raises:
        UsageError: rank beyond the rows' width, or no rows.
    """
    width = len(moments.total)
    if not 1 <= rank <= width:
        raise UsageError(f"a basis of {rank} of {width} dimensions; expected 1 to {width}")
    if moments.count < 1:
        raise UsageError("a basis of no rows: there must be at least one sound image")
    gram = (moments.gram / moments.count).cpu().numpy()
    mean = (moments.total / moments.count).cpu().numpy()
    if not centred:
        mean = np.zeros_like(mean)
    values, vectors = np.linalg.eigh(gram - np.outer(mean, mean))
    vectors = vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(width)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    return Basis(
        mean=mean.astype(np.float32),
        vectors=np.ascontiguousarray(vectors[:, :rank], np.float32),
        spectrum=np.sqrt(values[::-1].clip(min=0)),
    )


@dataclass(frozen=True, kw_only=True)
class CropSample:
    """The crops that bases are fitted on: the first view of some images, drawn by the seed.

    Attributes:
        num_views: views that a store has of each image; more than the first are taken where there
            are fewer images than the basis needs crops.
        images: how many at most. interpolation: of the crops; None: the teacher's own.
        augment: what is done to every crop, as a run does it.
        first_view, stored: as the engine's jobs have them.
    """

    folder: ImageFolder
    sampler: Sampler
    seed: int
    num_views: int
    images: int = DEFAULT_IMAGES
    batch_size: int
    workers: int
    interpolation: str | None = None
    augment: Augment | None = None
    first_view: int = 0
    stored: Callable[[Unit], StoredViews] | None = None

    def rows(self) -> list[int]:
        """The images, rising."""
        count = len(self.folder)
        drawn = np.random.default_rng([self.seed, count, _DRAW]).permutation(count)
        return sorted(drawn[: self.images].tolist())

    def views(self, crops: int) -> int:
        """Views of each image that make at least so many crops; 1 if there are images enough."""
        images = max(1, min(self.images, len(self.folder)))
        return min(self.num_views, max(1, -(-crops // images)))

    def crops(
        self, teacher: Teacher, views: int, stop: threading.Event | None = None
    ) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]]:
        """The first views of every image that can be read, and the row of each crop.

        Yields:
            uint8 [n, S, S, 3], n at most batch_size, and rows [n].
        Raises:
            StoppedError: `stop` was set. DeadWorkerError: a worker ended by itself.
        """
        rows = np.array(self.rows(), np.intp)
        blocks = [(0, range(len(rows)))]
        keys = [self.folder.keys[row] for row in rows]
        config = CropConfig(
            root=str(self.folder.root.absolute()),
            sampler=self.sampler.to_json(),
            seed=self.seed,
            size=teacher.spec.input_size,
            interpolation=self.interpolation or teacher.spec.interpolation,
            slots=ring_batches(self.batch_size) * self.batch_size,
            first_view=self.first_view,
            augment=self.augment.to_json() if self.augment else None,
        )
        sound = np.ones(len(rows), bool)
        units = plan_units(blocks, [range(views)], self.batch_size)
        with CropPool(
            units, keys, config, batch_size=self.batch_size, workers=self.workers,
            stored=self._stored_of(rows),
        ) as pool:  # fmt: skip
            for batch in plan_batches(blocks, [range(views)], self.batch_size):
                end = batch.number * self.batch_size + batch.count
                pixels, cuts = pool.ready(batch.number, end, stop)
                for cut in cuts:
                    sound[cut.unit.row] &= cut.status == ImageStatus.OK
                shown = np.arange(batch.first, batch.first + batch.count) // views
                good = sound[shown]
                yield pixels[: batch.count][good], rows[shown[good]]
                pool.release()

    def _stored_of(self, rows: npt.NDArray[np.intp]) -> Callable[[Unit], StoredViews] | None:
        """`stored`, for units numbered by their place in the sample."""
        stored = self.stored
        if stored is None:
            return None
        return lambda unit: stored(replace(unit, row=int(rows[unit.row])))


@dataclass(frozen=True, eq=False)
class Fitted:
    """Moments of some outputs over a sample, and of how many sound images and views of each."""

    moments: dict[str, Moments]
    images: int
    views: int


def gather_moments(
    teacher: Teacher,
    extractor: Extractor,
    sample: CropSample,
    rows: Mapping[str, Rows],
    *,
    crops_needed: int,
    stop: threading.Event | None = None,
) -> Fitted:
    """One pass over a sample.

    Args:
        rows: by name, what makes [n, D] of an extractor's outputs.
        crops_needed: for the widest of them; see `CropSample.views`.
    Raises:
        TeachonceError: no image of the sample can be read.
        TeacherError: outputs that aren't finite.
    """
    forward = Forward(teacher, 1)
    views = sample.views(crops_needed)
    moments: dict[str, Moments] = {}
    seen: set[int] = set()
    for pixels, shown in sample.crops(teacher, views, stop):
        if not len(pixels):
            continue
        with matmul_precision(teacher.precision), forward.autocast():
            outputs = extractor(forward.normalise(pixels))
        for name, make in rows.items():
            found = Moments.of(make(outputs))
            moments[name] = moments[name].merge(found) if name in moments else found
        seen.update(shown.tolist())
    if not seen:
        raise TeachonceError(
            f"no basis: none of {len(sample.rows())} images of {sample.folder.root} can be read"
        )
    for name, found in moments.items():
        if not torch.isfinite(found.gram).all():
            raise TeacherError(
                f"teacher {teacher.spec.canonical} gives NaN or infinite {name} outputs: check its "
                f"weights, and --precision ({teacher.precision}; fp16 overflows first)"
            )
    return Fitted(moments, len(seen), views)
