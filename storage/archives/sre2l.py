"""SRe2L's relabelling (Yin et al. 2023, VILA-Lab/SRe2L): `epoch_<e>/batch_<b>.tar`, one a batch.

Each is a torch-save list [coords (B, 4), flips (B,), mix_index, mix_lam, mix_bbox, logits (B, C)]:
shares of the sides as FKD's, logits before softmax. Which image a row is follows from torch's
RandomSampler with one generator (seed 42) over the sorted ImageFolder; it is drawn again here.

Batches that were mixed (mixup, cutmix) hold answers to two pictures at once, which a store can't
describe, so an archive with any such batch in the epochs asked for is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.boxes import boxes_from_shares
from storage.archives.errors import BadRecord
from storage.archives.importing import SourceImage, ViewLabels
from storage.archives.numbers import as_array, softmax_topk
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.archives.spool import spool
from storage.archives.torch_file import read_torch_file
from storage.errors import UsageError
from storage.images import ImageFolder
from storage.imported import ImportedViews
from storage.views import Sampler

DEFAULT_SEED = 42
_EPOCH, _BATCH = re.compile(r"epoch_(\d{1,6})"), re.compile(r"batch_(\d{1,6})\.tar")
Batch = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[Any]]


def parse_batch(data: bytes) -> Batch:
    """(coords, flips, logits) of one file.

    Raises:
        BadRecord: not such a file, or a mixed batch.
    """
    value = read_torch_file(data)
    if not isinstance(value, list | tuple) or len(value) != 6:
        raise BadRecord("expected [coords, flips, mix_index, mix_lam, mix_bbox, logits]")
    if any(part is not None for part in value[2:5]):
        raise BadRecord("a mixed batch (mixup or cutmix), which has no equal in a store")
    coords, flips, logits = (
        as_array(value[at], name) for at, name in ((0, "coords"), (1, "flips"), (5, "logits"))
    )
    B = len(coords)
    if coords.shape != (B, 4) or flips.shape != (B,) or logits.ndim != 2 or len(logits) != B:
        raise BadRecord(
            f"coords {coords.shape}, flips {flips.shape} and logits {logits.shape}; expected "
            "[B, 4], [B] and [B, C]"
        )
    return coords, flips != 0, logits


def torch_randperm(twister: np.random.MT19937, count: int) -> npt.NDArray[np.int64]:
    """torch.randperm on a CPU generator (up to 2^32 / 20 numbers), from the same words.

    torch 2.x: Fisher-Yates from the front, swapping i with i + word mod (n - i); for each i but
    the last, one 32-bit word of mt19937.
    """
    if count >= (1 << 32) // 20:
        raise UsageError(f"{count} images; torch shuffles as many in another way")
    order = np.arange(count)
    words = twister.random_raw(max(count - 1, 0))
    offsets = (words % (count - np.arange(max(count - 1, 0)))).astype(np.int64).tolist()
    for i, offset in enumerate(offsets):
        order[i], order[i + offset] = order[i + offset], order[i]
    return order


def sampler_orders(seed: int, count: int, epochs: int) -> list[npt.NDArray[np.int64]]:
    """Images in the order in which a RandomSampler with its own generator gives them, by epoch.

    The sampler draws one more permutation at the end of every epoch, of which it uses nothing.
    """
    twister = np.random.MT19937()
    twister._legacy_seeding(seed)  # init_genrand, as torch seeds
    orders = []
    for _ in range(epochs):
        orders.append(torch_randperm(twister, count))
        torch_randperm(twister, count)
    return orders


class Sre2lRecords:
    """An SRe2L archive joined to an image folder by the sampler's order.

    See `importing.Records`. View `e` of an image is its row of epoch `e`. Of all formats this is
    the weakest join: it holds only if the top classes are the folder's, which is checked.
    """

    def __init__(
        self,
        source: ArchiveSource,
        folder: ImageFolder,
        report: ImportReport,
        *,
        num_views: int | None = None,
        top_k: int = 10,
        order_seed: int = DEFAULT_SEED,
    ) -> None:
        """Find the batches and draw the orders.

        Raises:
            UsageError: no such archive, batches missing, mixed batches, or another number of rows
                than images.
        """
        for name, reason in source.refused.items():
            report.problem(name, reason)
        self._source = source
        self._names = _batches(source)
        self.num_views = min(num_views or len(self._names), len(self._names))
        first = self._look(folder)
        self._batch_size, self.num_classes = first[2].shape
        self.top_k = min(top_k, self.num_classes)
        self._spool = self._turn_round(len(folder), order_seed, report)
        self.rows: Sequence[int] = range(len(folder))
        self.sampler: Sampler = ImportedViews(source="sre2l")
        self.facts: dict[str, Any] = {
            "order": f"torch RandomSampler, generator seed {order_seed}",
            "labels": "softmax at temperature 1 of stored logits, the most probable kept",
        }
        report.notes.append(
            f"rows joined to images by torch's RandomSampler of seed {order_seed} (declared)"
        )

    def _look(self, folder: ImageFolder) -> Batch:
        """The first batch; refuses archives that aren't whole or hold mixed batches."""
        first: Batch | None = None
        for epoch in range(self.num_views):
            names = self._names.get(epoch)
            if names is None or sorted(names) != list(range(len(names))):
                raise UsageError(f"{self._source.path}: epoch_{epoch} lacks batches")
            try:
                begin = self._parse(epoch, 0)
                end = self._parse(epoch, len(names) - 1)
            except BadRecord as error:
                raise UsageError(f"{self._source.path}: epoch_{epoch}: {error}") from error
            first = first or begin
            rows = len(first[0]) * (len(names) - 1) + len(end[0])
            if rows != len(folder) or len(begin[0]) != len(first[0]):
                raise UsageError(
                    f"{self._source.path}: epoch_{epoch} has {rows} rows, the folder "
                    f"{len(folder)} images: give exactly the images that were labelled"
                )
        assert first is not None
        return first

    def _parse(self, epoch: int, batch: int) -> Batch:
        return parse_batch(self._source.read(self._names[epoch][batch]))

    def _turn_round(self, images: int, seed: int, report: ImportReport) -> npt.NDArray[Any]:
        """Every batch read once; a damaged one is reported and its rows are lost."""
        K = self.top_k
        record = np.dtype(
            [("there", "u1"), ("flip", "u1"), ("coords", "f4", (4,)), ("index", "u2", (K,)),
             ("prob", "f4", (K,)), ("tail", "f4")]
        )  # fmt: skip
        turned = spool(images, self.num_views, record)
        for epoch, order in enumerate(sampler_orders(seed, images, self.num_views)):
            for batch, name in sorted(self._names[epoch].items()):
                rows = order[batch * self._batch_size : (batch + 1) * self._batch_size]
                try:
                    coords, flips, logits = self._parse(epoch, batch)
                    if logits.shape != (len(rows), self.num_classes):
                        raise BadRecord(f"logits of shape {logits.shape}, not as the first batch")
                    index, prob, tail = softmax_topk(logits, K, "logits")
                except BadRecord as error:
                    report.problem(name, str(error))
                    continue
                found = np.zeros(len(rows), record)
                found["there"], found["flip"], found["coords"] = 1, flips, coords
                found["index"], found["prob"], found["tail"] = index, prob, tail
                turned[rows, epoch] = found
        return turned

    def labels(self, image: SourceImage) -> ViewLabels:
        """One image's rows of all epochs; see `importing.Records`."""
        found = self._spool[image.row]
        if not found["there"].all():
            raise BadRecord(f"lies in a damaged batch of epoch {int(np.argmin(found['there']))}")
        return ViewLabels(
            box=boxes_from_shares(found["coords"], image.height, image.width),
            flip=np.array(found["flip"]),
            index=found["index"].astype(np.int64),
            prob=found["prob"].astype(np.float64),
            tail=found["tail"].astype(np.float64),
        )


def _batches(source: ArchiveSource) -> dict[int, dict[int, str]]:
    """Files by epoch and batch."""
    found: dict[int, dict[int, str]] = {}
    for name in source.names:
        path = PurePosixPath(name)
        epoch, batch = _EPOCH.fullmatch(path.parent.name), _BATCH.fullmatch(path.name)
        if epoch and batch:
            found.setdefault(int(epoch[1]), {})[int(batch[1])] = name
    if 0 not in found:
        raise UsageError(f"{source.path} has no epoch_0/batch_<b>.tar: give SRe2L's label folder")
    return found
