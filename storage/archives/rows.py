"""A store's images one after the other, decoded: what every exporter reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.codecs import SoftLabels, TopKCodec, TopKLabels, codes_from_gaps
from storage.errors import IncompleteStore, UsageError
from storage.images import ImageStatus
from storage.store import LabelStore
from storage.thresholds import Thresholds, stored_thresholds


@dataclass(frozen=True)
class StoreRow:
    """One image. labels: probabilities [M, k] and their rest, None where it is masked.

    Views that an adaptation leaves out (FerKD) are not among the M.
    size: (height, width); box u2 [M, 4]; flip u1 [M]; digest: 32 bytes.
    """

    number: int
    key: str
    digest: bytes
    size: tuple[int, int]
    target: int
    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]
    labels: SoftLabels | None
    codec: TopKCodec


def only_teacher(store: LabelStore, teacher: str | None) -> str:
    """The named teacher, or the only one.

    Raises:
        UsageError: no such teacher, or several and none named.
    """
    names = sorted(store.spec.teachers)
    if teacher is None and len(names) == 1:
        return names[0]
    if teacher not in names:
        raise UsageError(
            f"{store.path} has labels of {', '.join(names) or 'no teacher'}: "
            f"name one of them with --teacher (found {teacher!r})"
        )
    return teacher


def store_rows(
    store: LabelStore,
    teacher: str,
    progress: Callable[[int, int], None] = lambda done, blocks: None,
) -> Iterator[StoreRow]:
    """All images in order; memory is that of one block.

    Raises:
        IncompleteStore: blocks are missing.
        UsageError: padded views or stored augmentations, which no other format can describe.
    """
    if store.spec.augment is not None:
        kinds = ", ".join(operation.kind for operation in store.spec.augment.operations)
        raise UsageError(
            f"{store.path} has labels of augmented crops ({kinds}); no other project's format "
            "keeps such draws: label the images again without them to export"
        )
    if store.spec.pixel.padding:
        raise UsageError(
            f"{store.path} has views of padded images; no other project's format describes those"
        )
    missing = store.missing_blocks()
    if missing:
        raise IncompleteStore(
            f"{store.path}: {len(missing)} of {store.blocks} blocks are missing: run the same "
            "`labelgen run` (or import) again to finish the store"
        )
    images = store.read_images()
    codec = store.spec.teachers[teacher].codec
    adapted = stored_thresholds(store.spec.teachers[teacher].adapted)
    views = slice(0, store.spec.num_views)
    for block in range(store.blocks):
        rows = store.block_rows(block)
        where = slice(rows.start, rows.stop)
        box, flip, index, gap, tail = (
            store.read_array(path, where, views)
            for path in ("views/box", "views/flip", f"labels/{teacher}/index",
                         f"labels/{teacher}/gap", f"labels/{teacher}/tail")
        )  # fmt: skip
        labels = TopKLabels(index, codes_from_gaps(gap), tail)
        for i, row in enumerate(rows):
            one = TopKLabels(labels.index[i], labels.code[i], labels.tail[i])
            keep = _counted(codec, one, adapted)
            one = TopKLabels(one.index[keep], one.code[keep], one.tail[keep])
            ok = images.status[row] == ImageStatus.OK and bool(keep.any())
            yield StoreRow(
                number=row,
                key=images.key[row],
                digest=images.digest[row].tobytes(),
                size=(int(images.size[row, 0]), int(images.size[row, 1])),
                target=int(images.target[row]),
                box=box[i][keep],
                flip=flip[i][keep],
                labels=codec.soft(one) if ok else None,
                codec=codec,
            )
        progress(block + 1, store.blocks)


def _counted(
    codec: TopKCodec, labels: TopKLabels, adapted: Thresholds | None
) -> npt.NDArray[np.bool_]:
    """Which of an image's views count, bool [M]; all where nothing was adapted."""
    if adapted is None:
        return np.ones(len(labels.tail), bool)
    sure = codec.decode(labels)[0][:, 0]
    return np.asarray((sure >= adapted.low) & (sure <= adapted.top))
