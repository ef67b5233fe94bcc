"""TinyViT's saved logits (Wu et al. 2022, microsoft/Cream): a folder an epoch, no pickle.

    logits_top<K>_epoch<e>/rank<r>-keys.txt      one key a line: an image's path or sorted number
    logits_top<K>_epoch<e>/rank<r>-values.bin    int32 seed | int16 class [K] | float16 p [K] each

The seed drives all of a view's augmentation. Of a view that was cropped and mirrored only, the box
follows from it exactly; a view that RandAugment, colour jitter, erasing, mixup or cutmix touched
is another picture, and a store can't describe it. Nothing in the archive says which it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.errors import BadRecord
from storage.archives.importing import SourceImage, ViewLabels
from storage.archives.numbers import as_classes, check_probabilities, most_probable
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.archives.spool import spool
from storage.errors import UsageError
from storage.images import ImageFolder
from storage.imported import ImportedViews
from storage.views import Sampler

_EPOCH = re.compile(r"logits_top(\d{1,5})_epoch(\d{1,5})")
_VALUES = re.compile(r"rank\d+-values\.bin")
Draw = tuple[int, int, int, int, bool]  # top, left, height, width, flip


class TinyVitRecords:
    """A TinyViT archive joined to an image folder by key; see `importing.Records`.

    View `e` of an image is its record of epoch `e`.
    """

    def __init__(
        self,
        source: ArchiveSource,
        folder: ImageFolder,
        report: ImportReport,
        *,
        augmentation: str | None = None,
        num_classes: int = 1000,
        num_views: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_probability: float = 0.5,
    ) -> None:
        """Read all keys, and the values of the epochs that are kept.

        Args:
            augmentation: "crop-flip" where that was all; nothing else can be imported.
        Raises:
            UsageError: another or no augmentation stated, or an archive that isn't whole.
        """
        if augmentation != "crop-flip":
            raise UsageError(
                "TinyViT keeps a seed a view, not what was drawn from it: after RandAugment, "
                "colour jitter, erasing, mixup or cutmix (its published archives) no box tells "
                "which picture was labelled, so these labels can't be joined to pixels. If views "
                "were only cropped and mirrored, say so with --augmentation crop-flip"
            )
        for name, reason in source.refused.items():
            report.problem(name, reason)
        epochs, K = _epochs(source)
        if not 1 <= K <= num_classes:
            raise UsageError(f"{source.path} keeps {K} classes of {num_classes} (--num-classes)")
        self._scale, self._ratio, self._flip = scale, ratio, flip_probability
        chosen = sorted(epochs)[:num_views]
        record = np.dtype([("there", "u1"), ("data", f"V{4 + 4 * K}")])
        self._spool = spool(len(folder), len(chosen), record)
        rows_by_key = _rows_by_key(folder)
        for view, epoch in enumerate(chosen):
            _read_epoch(source, epochs[epoch], rows_by_key, self._spool[:, view], report)
        self.rows: Sequence[int] = np.flatnonzero(self._spool["there"][:, 0]).tolist()
        self.num_views, self.num_classes, self.top_k = len(chosen), num_classes, K
        self.sampler: Sampler = ImportedViews(source="tinyvit")
        self.facts: dict[str, Any] = {
            "augmentation": "crop-flip (declared)",
            "scale": list(scale),
            "ratio": list(ratio),
            "epochs": chosen,
            "probabilities": "float16",
        }
        report.notes.append("views cropped and mirrored only (declared); boxes from the seeds")
        if len(self.rows) < len(folder):
            report.count("images without a record, left out", len(folder) - len(self.rows))

    def labels(self, image: SourceImage) -> ViewLabels:
        """One image's views; see `importing.Records`."""
        K = self.top_k
        found = self._spool[image.row]
        if not found["there"].all():
            lost = int(np.argmin(found["there"]))
            raise BadRecord(f"has no record in epoch {self.facts['epochs'][lost]}")
        values = [value.tobytes() for value in found["data"]]
        seeds = [int(np.frombuffer(v[:4], "<i4")[0]) for v in values]
        if min(seeds) < 0:
            raise BadRecord("a negative seed")
        rest = np.stack([np.frombuffer(v[4:], np.uint8) for v in values])
        index = as_classes(
            np.ascontiguousarray(rest[:, : 2 * K]).view("<i2"), self.num_classes, "classes"
        )
        prob = check_probabilities(np.ascontiguousarray(rest[:, 2 * K :]).view("<f2"), "values")
        if any(len(set(row)) < len(row) for row in index.tolist()):
            raise BadRecord("the same class twice")
        index, prob = most_probable(index, prob, K)
        views = [
            replay_crop_flip(seed, image.height, image.width, self._scale, self._ratio, self._flip)
            for seed in seeds
        ]
        return ViewLabels(
            box=np.array([view[:4] for view in views], np.uint16),
            flip=np.array([view[4] for view in views], np.uint8),
            index=index,
            prob=prob,
            tail=np.clip(1 - prob.sum(axis=-1), 0, 1),
        )


def replay_crop_flip(
    seed: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip_probability: float,
) -> Draw:
    """What TinyViT's forked timm transforms draw first from a seed: the crop, then the flip.

    Raw words of numpy's PCG64 (whose stream is fixed) as 53-bit fractions, as its
    Generator.random makes them. Boxes depend on the C library's exp and log in the last bit only
    where an edge lies within 1e-13 of half a pixel.
    """
    words = np.random.PCG64(seed)

    def uniform(low: float, high: float) -> float:
        return (int(words.random_raw()) >> 11) * 2.0**-53 * (high - low) + low

    def randint(low: int, high: int) -> int:
        return min(int(uniform(low, high + 1)), high)

    def crop() -> tuple[int, int, int, int]:
        for _ in range(10):
            target = uniform(*scale) * (width * height)
            aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if w <= width and h <= height:
                return randint(0, height - h), randint(0, width - w), h, w
        w, h = width, height
        if width / height < min(ratio):
            h = round(w / min(ratio))
        elif width / height > max(ratio):
            w = round(h * max(ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    box = crop()
    if min(box[2:]) < 1:
        raise BadRecord("a seed that draws an empty crop")
    return (*box, uniform(0, 1) < flip_probability)


def _epochs(source: ArchiveSource) -> tuple[dict[int, list[str]], int]:
    """Names of the value files by epoch, and K."""
    epochs: dict[int, list[str]] = {}
    kept: set[int] = set()
    for name in source.names:
        path = PurePosixPath(name)
        # the archive may be one epoch's folder itself
        folder = path.parent.name or source.path.name
        if (found := _EPOCH.fullmatch(folder)) and _VALUES.fullmatch(path.name):
            kept.add(int(found[1]))
            epochs.setdefault(int(found[2]), []).append(name)
    if not epochs or len(kept) > 1:
        raise UsageError(
            f"{source.path} has no folders logits_top<K>_epoch<e> of one K (found K = "
            f"{sorted(kept)}): give the folder that holds them"
        )
    return epochs, kept.pop()


def _read_epoch(
    source: ArchiveSource,
    names: list[str],
    rows_by_key: dict[str, int],
    out: npt.NDArray[Any],
    report: ImportReport,
) -> None:
    """Put one epoch's records into `out` [N]. A damaged package is reported and left out."""
    size = out.dtype["data"].itemsize
    foreign = 0
    for name in names:
        try:
            keys = source.read(name.replace("-values.bin", "-keys.txt")).decode().split("\n")
            values = source.read(name)
        except (BadRecord, UnicodeDecodeError) as error:
            report.problem(name, str(error))
            continue
        keys = [key.strip() for key in keys if key.strip()]
        if len(values) != size * len(keys):
            report.problem(
                name, f"has {len(values)} bytes for {len(keys)} keys; expected {size} each"
            )
            continue
        for i, key in enumerate(keys):
            row = rows_by_key.get(key)
            if row is None:
                foreign += 1
            elif not out["there"][row]:  # as their writer: the first of two counts
                out["data"][row] = values[i * size : (i + 1) * size]
                out["there"][row] = 1
    if foreign:
        report.count("records without an image, left out", foreign)


def _rows_by_key(folder: ImageFolder) -> dict[str, int]:
    """What TinyViT may call an image: its sorted number, its path, or its class and name."""
    rows = {str(row): row for row in range(len(folder))}
    for row, key in enumerate(folder.keys):
        rows.setdefault("/".join(PurePosixPath(key).parts[-2:]), row)
    return rows | {key: row for row, key in enumerate(folder.keys)}


def record_bytes(
    seed: int, index: npt.NDArray[np.integer[Any]], prob: npt.NDArray[np.floating[Any]]
) -> bytes:
    """One record as TinyViT writes it."""
    return (
        np.int32(seed).tobytes()
        + np.asarray(index, "<i2").tobytes()
        + np.asarray(prob, "<f2").tobytes()
    )
