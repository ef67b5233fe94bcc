"""FerKD (Shen 2023, ICCV; arXiv:2312.17473) as a step from a store to a store.

By s, the largest probability of a crop's stored label: crops with s < low or s > top count for
nothing, those with low <= s < middle get their image's own class with 1 - epsilon and epsilon
spread over all others, and all others keep their label as it stands. The new labels are labels like
any others; the teacher's record says how they were adapted, and a reader leaves out what lies
outside low and top, which only crops whose labels were not touched do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.chunks import Array
from storage.classes import number_classes
from storage.codecs import TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec
from storage.errors import StoreMismatch, UsageError
from storage.format import StoreSpec
from storage.images import ImageStatus
from storage.label_arrays import from_arrays, label_parts, to_arrays
from storage.manifest import Manifest
from storage.parents import Parent
from storage.rewrite import Progress, refuse_existing, write_store
from storage.rows_source import RowsSource
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord
from storage.thresholds import FERKD, Thresholds

Bools = npt.NDArray[np.bool_]


def ferkd(
    path: LabelStore | Path | str,
    out: Path | str,
    thresholds: Thresholds,
    teacher: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a sealed store whose labels of one teacher are adapted; all else is copied.

    Args:
        teacher: whose labels; the only one's where None.
    Raises:
        UsageError: thresholds that change nothing, that would leave out the softened labels
            themselves, or no such teacher. StoreMismatch: classes of the images that the teacher
            doesn't have, or labels that were adapted before.
        IncompleteStore: the store isn't sealed. StoreError: `out` exists.
        CorruptStore: the store is damaged.
    """
    refuse_existing(Path(out))
    parent = Parent.open(path)
    record = _teacher(parent.spec, teacher)
    codec = adapted_codec(record.codec, thresholds)
    own = _own_classes(parent, record, thresholds)
    changed = dataclasses.replace(
        record, codec=codec, adapted={"method": FERKD, **asdict(thresholds)}
    )
    # sealing measures anew what can be measured without the teacher
    teachers = {
        name: dataclasses.replace(one, measured={})
        for name, one in (parent.spec.teachers | {record.name: changed}).items()
    }
    rows = np.arange(parent.spec.num_images)
    source = _AdaptedSource(
        parents=[parent], spec=dataclasses.replace(parent.spec, teachers=teachers),
        first_view=parent.first_view, owner=np.zeros_like(rows), row=rows, name=record.name,
        own=own, thresholds=thresholds,
    )  # fmt: skip
    details = {"adapted": {record.name: {**asdict(thresholds), "counts": source.count()}}}
    return write_store(out, source, FERKD, details, progress)


def adapted_codec(codec: TopKCodec, thresholds: Thresholds) -> TopKCodec:
    """The codec of adapted labels: without mean tails where some become an even distribution.

    Raises:
        UsageError: thresholds that change nothing, or softened labels that they would leave out.
    """
    if not thresholds.softens and not thresholds.leaves_out:
        raise UsageError(
            "these thresholds change nothing: give --middle above --low, --low above 0 or --top "
            "below 1"
        )
    if not thresholds.softens:
        return codec
    sure, error = 1 - thresholds.epsilon, codec.max_error
    if (
        not thresholds.low + error
        <= sure
        <= max(thresholds.top - error, float(thresholds.top == 1))
    ):
        raise UsageError(
            f"softened labels have {sure:g} on their class, kept to within {error:.3f}: not "
            f"safely between low {thresholds.low:g} and top {thresholds.top:g}: they would be "
            "left out; choose another --epsilon or --top"
        )
    if isinstance(codec, DictionaryCodec):
        return dataclasses.replace(codec, spread_classes=0)
    return codec


def soften_labels(
    codec: TopKCodec, labels: TopKLabels, own: npt.NDArray[np.int64], thresholds: Thresholds
) -> TopKLabels:
    """Labels [n, M, ...] of readable images, those of the hard region softened.

    Args:
        codec: of labels and of what is returned, but for mean tails.
        own: [n] class of each image among the teacher's.
    """
    hard = _hard(codec.decode(labels)[0][..., 0], thresholds)
    k, others = codec.top_k, codec.num_classes - 1
    classes = np.broadcast_to(own[:, None], hard.shape)[hard].astype(np.uint16)
    share = thresholds.epsilon / others
    with np.errstate(divide="ignore"):
        logs = np.log(np.full((len(classes), k), share))
    logs[:, 0] = math.log1p(-thresholds.epsilon)
    tail = np.full(len(classes), share * (codec.num_classes - k))
    soft = codec.encode_topk(logs, _with_fillers(classes, labels.index[hard]), tail)
    found = TopKLabels(labels.index.copy(), labels.code.copy(), labels.tail.copy())
    found.index[hard], found.code[hard], found.tail[hard] = soft.index, soft.code, soft.tail
    return found


def _hard(sure: Array, thresholds: Thresholds) -> Bools:
    return np.asarray((sure >= thresholds.low) & (sure < thresholds.middle))


def _with_fillers(
    own: npt.NDArray[np.uint16], index: npt.NDArray[np.uint16]
) -> npt.NDArray[np.uint16]:
    """Classes [h, k]: an image's own first, then others of its label, all of which weigh alike."""
    k = index.shape[1]
    # its own class leaves its place, or the last of the label leaves
    place = np.where(index == own[:, None], k, np.arange(k))
    kept = np.argsort(place, axis=1, kind="stable")[:, : k - 1]
    fillers = np.sort(np.take_along_axis(index, kept, axis=1), axis=1)
    return np.concatenate([own[:, None], fillers], axis=1)


@dataclass(frozen=True, kw_only=True)
class _AdaptedSource(RowsSource):
    """A parent's rows, one teacher's labels adapted."""

    name: str
    own: npt.NDArray[np.int64]
    thresholds: Thresholds

    def read(self, block: int) -> dict[str, Array]:
        """The new block's part of every array, by array path."""
        found = super().read(block)
        if self.thresholds.softens:
            found.update(self._adapted(block))
        return found

    def whole_file(self, path: str, block: int, segment: int) -> tuple[int, str] | None:
        """As `RowsSource.whole_file`; labels are written anew where any is softened."""
        if self.thresholds.softens and path.startswith(f"labels/{self.name}/"):
            return None
        return super().whole_file(path, block, segment)

    def count(self) -> dict[str, int]:
        """Labels that were softened, are left out, and stay, of all readable images."""
        total = {"softened": 0, "left_out": 0, "kept": 0}
        for block in range(self.spec.num_blocks):
            codec, labels, readable = self._labels(block)
            sure = codec.decode(labels)[0][..., 0][readable]
            hard = _hard(sure, self.thresholds)
            out = (sure < self.thresholds.low) | (sure > self.thresholds.top)
            total["softened"] += int(hard.sum())
            total["left_out"] += int(out.sum())
            total["kept"] += int((~hard & ~out).sum())
        return total

    def _labels(self, block: int) -> tuple[TopKCodec, TopKLabels, Bools]:
        """The parent's labels of a block's images [n, M, ...], and which are readable."""
        parent, rows = self.parents[0], np.asarray(self.spec.block_rows(block))
        codec = parent.spec.teachers[self.name].codec
        parts = {
            part: parent.gather(f"labels/{self.name}/{part}", rows, 0, self.spec.num_views)
            for part in label_parts(codec)
        }
        readable = parent.images().status[rows] == ImageStatus.OK
        return codec, from_arrays(codec, parts), np.asarray(readable)

    def _adapted(self, block: int) -> dict[str, Array]:
        codec, labels, readable = self._labels(block)
        inside = TopKLabels(labels.index[readable], labels.code[readable], labels.tail[readable])
        rows = np.asarray(self.spec.block_rows(block))[readable]
        soft = soften_labels(codec, inside, self.own[rows], self.thresholds)
        for ours, theirs in ((labels.index, soft.index), (labels.code, soft.code),
                             (labels.tail, soft.tail)):  # fmt: skip
            ours[readable] = theirs
        arrays = to_arrays(self.spec.teachers[self.name].codec, labels, readable)
        return {f"labels/{self.name}/{part}": values for part, values in arrays.items()}


def _teacher(spec: StoreSpec, name: str | None) -> TeacherRecord:
    names = sorted(spec.teachers)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in spec.teachers:
        asked = f"no labels of {name}" if name else "labels of several teachers"
        raise UsageError(f"the store has {asked}: choose with --labels {'|'.join(names)}")
    record = spec.teachers[name]
    if record.adapted:
        raise StoreMismatch(
            f"labels of {name} were adapted before ({record.adapted}): begin from the store that "
            "they were adapted from"
        )
    return record


def _own_classes(
    parent: Parent, record: TeacherRecord, thresholds: Thresholds
) -> npt.NDArray[np.int64]:
    """Each image's class among the teacher's, int64 [N]; -1 where none is asked for.

    Raises:
        UsageError: images without a class. StoreMismatch: classes that can't be matched.
    """
    images = parent.images()
    if not thresholds.softens:
        return np.full(parent.spec.num_images, -1)
    known: Sequence[str] = parent.spec.dataset["classes"]
    target = np.asarray(images.target, np.int64)
    readable = images.status == ImageStatus.OK
    way_out = f"give --middle {thresholds.low:g}, which softens no label"
    if not known or (target[readable] < 0).any():
        raise UsageError(f"some images of the store have no class of their own: {way_out}")
    numbers = number_classes(
        known, record.classes, record.num_classes, images="the images", owner=record.name,
        way_out=way_out,
    )  # fmt: skip
    return np.where(target < 0, -1, numbers[target])
