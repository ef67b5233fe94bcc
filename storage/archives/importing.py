"""From somebody's records to a store: the part that all importers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from storage.archives.errors import BadRecord
from storage.archives.report import ImportReport
from storage.block import BlockData
from storage.classes import map_classes
from storage.codecs import TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec
from storage.errors import BadImage, StoreError, UsageError
from storage.format import (
    StoreSpec,
    default_block_images,
    default_plane_views,
    default_segment_views,
    keys_hash,
)
from storage.images import ImageFolder, ImageStatus, class_order_hash
from storage.pixels import PixelContract, open_image
from storage.sealing import seal
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord
from storage.views import Sampler

UNKNOWN = "unknown"
SAMPLED = 200  # records looked at before anything is written
MIN_AGREEMENT = 0.3  # top classes that are the folder's, below which the classes can't be right
MIN_COMPARED = 20


@dataclass(frozen=True)
class SourceImage:
    """An image of the folder; row in the folder, sides in pixels, digest of its bytes."""

    row: int
    key: str
    height: int
    width: int
    digest: bytes


@dataclass(frozen=True)
class ViewLabels:
    """One image's record: box u2 [M, 4], flip u1 [M], index [M, k], prob f8 [M, k], tail f8 [M]."""

    box: npt.NDArray[np.uint16]
    flip: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int64]
    prob: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]


class Records(Protocol):
    """What an importer offers: settings of the whole, and one image's labels at a time."""

    rows: Sequence[int]  # of the image folder: those that have a record
    num_views: int
    num_classes: int
    top_k: int
    sampler: Sampler
    facts: dict[str, Any]  # what is known of the archive, for the store's provenance

    def labels(self, image: SourceImage) -> ViewLabels:
        """One image's labels.

        Raises:
            BadRecord: the record can't be used.
        """


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the archive doesn't say and the user states. Written down as declared, not verified.

    classes: names of the teacher's outputs in order; None where not given.
    interpolation: of the teacher's crops; pixels: of the student's.
    """

    teacher: str = UNKNOWN
    licence: str = UNKNOWN
    input_size: int = 224
    interpolation: str = "bilinear"
    pixels: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    classes: tuple[str, ...] | None = None
    step: float = 0.25
    seed: int = 0


def import_records(
    records: Records,
    folder: ImageFolder,
    out: Path,
    declared: Declared,
    report: ImportReport,
    progress: Callable[[int, int], None] = lambda done, blocks: None,
) -> LabelStore:
    """Write a sealed store; run again to go on after a kill.

    Images whose label file is bad are masked in the store and named in the report.

    Raises:
        UsageError: no record belongs to an image, or the classes can't be the folder's.
        StoreMismatch: `out` holds a store with other settings.
    """
    if not records.rows:
        raise UsageError(
            f"no label file of {report.archive} belongs to an image of {folder.root}: give the "
            "images that were labelled with --data (class folders as in the archive)"
        )
    _check_agreement(records, folder, declared, report)
    spec = _spec(records, folder, declared, report)
    store = LabelStore.open_or_create(out, spec)
    missing = store.missing_blocks()
    if store.is_sealed and missing:
        raise StoreError(f"{out} is sealed but lacks files: move it away, then import again")
    record = next(iter(spec.teachers.values()))
    for done, block in enumerate(missing):
        data, what = _block(records, folder, spec, record.codec, store.block_rows(block))
        for where, problem in what:
            report.problem(where, problem)
        store.write_block(block, data, "import")
        progress(done + 1, len(missing))
    store.write_local(folder.root)
    report.root = seal(store).root
    report.images, report.views = spec.num_images, spec.num_views
    report.labelled = int(np.count_nonzero(store.read_status() == ImageStatus.OK))
    measured = LabelStore.open(out).spec.teachers[record.name].measured
    report.agreement = measured.get("top1_agreement")
    return store


def _spec(
    records: Records, folder: ImageFolder, declared: Declared, report: ImportReport
) -> StoreSpec:
    keys = [folder.keys[row] for row in records.rows]
    classes = _teacher_classes(records, folder, declared)
    teacher = TeacherRecord(
        name=report.format,
        spec=declared.teacher,
        library=UNKNOWN,
        version=UNKNOWN,
        arch=UNKNOWN,
        digest=UNKNOWN,
        licence=declared.licence,
        input_size=declared.input_size,
        mean=declared.mean,
        std=declared.std,
        interpolation=declared.interpolation,
        num_classes=records.num_classes,
        classes=classes,
        class_order_hash=class_order_hash(classes) if classes else None,
        precision=UNKNOWN,
        batch_size=0,
        codec=DictionaryCodec(
            num_classes=records.num_classes, top_k=records.top_k, step=declared.step,
            spread_classes=0,
        ),
    )  # fmt: skip
    num_images, num_views = len(keys), records.num_views
    planes = default_plane_views(num_views)
    return StoreSpec(
        num_images=num_images,
        num_views=num_views,
        block_images=default_block_images(num_images, num_views),
        plane_views=planes,
        segment_views=default_segment_views(num_views, planes),
        sampler=records.sampler,
        pixel=PixelContract(interpolation=declared.pixels),
        seed=declared.seed,
        dataset={
            "classes": folder.classes,
            "class_order_hash": class_order_hash(folder.classes),
            "keys_hash": keys_hash(keys),
            "num_images": num_images,
            "imported": {
                "format": report.format,
                "declared_not_verified": [
                    "teacher", "licence", "input_size", "interpolation", "mean", "std",
                    "pixel path", *(() if declared.classes is None else ("class names",)),
                ],
                **records.facts,
            },
        },
        teachers={teacher.name: teacher},
        key_bytes=max(256, *(len(key.encode("utf-8", "surrogateescape")) for key in keys)),
    )  # fmt: skip


def _teacher_classes(
    records: Records, folder: ImageFolder, declared: Declared
) -> tuple[str, ...] | None:
    """Names given, else the folder's where there are as many: all these formats sort them."""
    if declared.classes is not None:
        if len(declared.classes) != records.num_classes:
            raise UsageError(
                f"{len(declared.classes)} class names for {records.num_classes} classes: "
                "give one name a line, in the teacher's order, with --class-names"
            )
        return declared.classes
    return folder.classes if len(folder.classes) == records.num_classes else None


def _check_agreement(
    records: Records, folder: ImageFolder, declared: Declared, report: ImportReport
) -> None:
    """Refuse labels whose classes can't be the folder's (wrong order, wrong data set)."""
    classes = _teacher_classes(records, folder, declared)
    mapped = map_classes(folder.classes, classes)
    if mapped is None:
        report.notes.append(
            "class order not checked: the folder's classes aren't the teacher's by name "
            "(--class-names FILE tells them)"
        )
    compared = agreed = usable = 0
    reasons: list[str] = []
    for row in sampled(records.rows):
        try:
            top = records.labels(source_image(folder, row)).index[:, 0]
        except (BadRecord, BadImage, OSError) as error:
            reasons.append(f"{folder.keys[row]}: {error}")
            continue
        usable += 1
        if mapped is not None and folder.targets[row] >= 0:
            compared += top.size
            agreed += int((top == mapped[folder.targets[row]]).sum())
    if not usable:
        raise UsageError(
            f"none of {len(reasons)} sampled labels of {report.archive} can be used; the first: "
            f"{reasons[0]}"
        )
    if compared >= MIN_COMPARED and agreed / compared < MIN_AGREEMENT:
        raise UsageError(
            f"only {agreed / compared:.1%} of {compared} sampled labels have the image's class "
            f"first (expected at least {MIN_AGREEMENT:.0%}): these are other classes, another "
            "class order or other images; nothing was written"
        )


def sampled(rows: Sequence[int]) -> Sequence[int]:
    """Up to 200 rows, evenly spaced."""
    return rows[:: max(1, -(-len(rows) // SAMPLED))]


def source_image(folder: ImageFolder, row: int) -> SourceImage:
    """Read an image's bytes: its digest, and its size from its header (no EXIF rotation).

    Raises:
        BadImage, OSError: it can't be read.
    """
    found = folder.read(row)
    if found.shape is not None:
        height, width = found.shape
    else:
        width, height = open_image(found.data).size
    return SourceImage(row, folder.keys[row], height, width, found.digest)


def _block(
    records: Records, folder: ImageFolder, spec: StoreSpec, codec: TopKCodec, block: range
) -> tuple[BlockData, list[tuple[str, str]]]:
    n, M, k = len(block), spec.num_views, codec.top_k
    digest, size = np.zeros((n, 32), np.uint8), np.zeros((n, 2), np.uint16)
    status = np.full(n, ImageStatus.OK, np.uint8)
    box, flip = np.zeros((n, M, 4), np.uint16), np.zeros((n, M), np.uint8)
    index = np.tile(np.arange(k), (n, M, 1))
    prob, tail = np.full((n, M, k), 1 / k), np.zeros((n, M))
    problems: list[tuple[str, str]] = []
    rows = [records.rows[i] for i in block]
    for i, row in enumerate(rows):
        try:
            image = source_image(folder, row)
            digest[i] = np.frombuffer(image.digest, np.uint8)
            size[i] = image.height, image.width
            found = records.labels(image)
            box[i], flip[i], index[i] = found.box, found.flip, found.index
            prob[i], tail[i] = found.prob, found.tail
        except BadRecord as error:
            status[i] = ImageStatus.MISSING
            problems.append((folder.keys[row], f"label {error}"))
        except BadImage as error:
            status[i] = ImageStatus.UNREADABLE
            problems.append((folder.keys[row], f"image {error}"))
        except OSError as error:
            status[i] = ImageStatus.MISSING
            problems.append((folder.keys[row], f"image can't be read: {error.strerror}"))
    data = BlockData(
        digest=digest,
        key=[folder.keys[row] for row in rows],
        size=size,
        target=np.array([folder.targets[row] for row in rows], np.int32),
        status=status,
        box=box,
        flip=flip,
        labels={next(iter(spec.teachers)): encode(codec, index, prob, tail)},
    )
    return data, problems


def encode(
    codec: TopKCodec,
    index: npt.NDArray[np.int64],
    prob: npt.NDArray[np.float64],
    tail: npt.NDArray[np.float64],
) -> TopKLabels:
    """Probabilities as the store keeps them; zero becomes the smallest value there is."""
    with np.errstate(divide="ignore"):
        return codec.encode_topk(np.log(prob), index, tail)
