"""A run in miniature: some views of a sample of images, labelled, weighed and forgotten."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storage.certificate import sample_positions
from storage.codecs import NO_INDEX
from storage.dictionary import DictionaryCodec
from storage.errors import TeachonceError
from storage.format import StoreSpec, json_bytes, keys_hash
from storage.images import ImageFolder, ImageStatus
from storage.layout import ArrayLayout, array_layouts, constant_objects
from storage.receipts import FOLDER as RECEIPTS
from storage.receipts import read_receipts
from storage.shards import chunks_per_shard, index_bytes
from storage.store import ROOT_METADATA, LabelStore

if TYPE_CHECKING:
    from labelgen.target_plans import TargetPlan
    from labelgen.teacher import Teacher

PROBE_CROPS = 512
PROBE_VIEWS = 32
PROBE_BATCHES = 12  # at least, so that some are left when the first ones are not counted
WARM_SHARE = 0.25  # of the batches that are not counted


@dataclass(frozen=True)
class Probe:
    """What the probe found.

    Attributes:
        images, views, masked: labelled for it. seconds: of the counted batches.
        crops_per_second: in them.
        payload: bytes of each array's chunks, without their files' indices.
        shared: bytes of what all views of a target share, by the target's path.
        growth: how much longer the images' lists get with all views of the run, by teacher.
        metadata: bytes of all zarr.json. sample: of what receipts say about each crop that
            they compare with the teacher's dense output. canaries: bytes of all canaries.
    """

    images: int
    views: int
    masked: int
    seconds: float
    crops_per_second: float
    payload: Mapping[str, int]
    shared: Mapping[str, int]
    growth: Mapping[str, float]
    metadata: int
    sample: float
    canaries: int


def probe(
    teacher: Teacher,
    folder: ImageFolder,
    spec: StoreSpec,
    *,
    workers: int,
    probe_crops: int = PROBE_CROPS,
    targets: Sequence[TargetPlan] = (),
) -> Probe:
    """Label a sample as the run would, weigh it, and forget it.

    Args:
        targets: plans of the targets that the run's settings have.
    """
    from labelgen.engine import label_missing_blocks
    from labelgen.run_targets import write_shared

    batch_size = spec.teachers[teacher.spec.name].batch_size
    wanted = max(probe_crops, PROBE_BATCHES * batch_size)
    views = min(spec.num_views, PROBE_VIEWS)
    count = min(len(folder), math.ceil(wanted / views))
    views = min(spec.num_views, max(views, math.ceil(wanted / count)))
    sample = sample_folder(folder, count)
    with tempfile.TemporaryDirectory(prefix="teachonce-plan-") as temporary:
        store = LabelStore.create(Path(temporary) / "probe.zarr", _probe_spec(spec, sample, views))
        times = [(time.monotonic(), 0)]
        plans = [replace(p, record=store.spec.targets[p.record.path]) for p in targets]
        write_shared(store, plans)
        label_missing_blocks(
            store, teacher, sample, workers=workers, targets=plans,
            on_batch=lambda crops, report: times.append((time.monotonic(), crops)),
        )  # fmt: skip
        masked = int((store.read_status() != ImageStatus.OK).sum())
        if masked == count:
            raise TeachonceError(
                f"none of {count} images sampled from {folder.root} can be decoded: give another "
                "image folder"
            )
        seconds, rate = _rate(times)
        return Probe(
            images=count, views=views, masked=masked, seconds=seconds, crops_per_second=rate,
            payload={path: _payload(store, layout)
                     for path, layout in array_layouts(store.spec).items()},
            shared={path: sum((store.path / name).stat().st_size
                              for name in constant_objects(record))
                    for path, record in store.spec.targets.items()},
            growth={name: _growth(store, name, spec.num_views) for name in spec.teachers},
            metadata=sum(f.stat().st_size for f in store.path.rglob(ROOT_METADATA)),
            sample=_sample_bytes(store),
            canaries=_canary_bytes(store),
        )  # fmt: skip


def sample_folder(folder: ImageFolder, count: int) -> ImageFolder:
    """`count` of a folder's images, evenly spaced."""
    rows = np.arange(count) * len(folder) // count
    return ImageFolder(
        root=folder.root, keys=tuple(folder.keys[row] for row in rows),
        targets=tuple(folder.targets[row] for row in rows), classes=folder.classes,
        reencoded=folder.reencoded,
    )  # fmt: skip


def _probe_spec(spec: StoreSpec, sample: ImageFolder, views: int) -> StoreSpec:
    """The run's settings for one block of some images and views, in chunks of as many crops."""
    count = len(sample)
    planes = max(spec.plane_views, spec.block_images * spec.plane_views // count)
    plane_views = min(views, planes)
    dataset = spec.dataset | {"num_images": count, "keys_hash": keys_hash(sample.keys)}
    return replace(
        spec, num_images=count, num_views=views, block_images=count, plane_views=plane_views,
        segment_views=math.ceil(views / plane_views) * plane_views, dataset=dataset,
        targets={path: replace(record, views=min(record.views, views))
                 for path, record in spec.targets.items()},
    )  # fmt: skip


def _rate(times: list[tuple[float, int]]) -> tuple[float, float]:
    """Seconds and crops a second of the batches that count, from (end, crops) of each."""
    first = max(1, math.ceil(WARM_SHARE * (len(times) - 1))) if len(times) > 2 else 0
    seconds = max(times[-1][0] - times[first][0], 1e-9)
    return seconds, sum(crops for _, crops in times[first + 1 :]) / seconds


def _payload(store: LabelStore, layout: ArrayLayout) -> int:
    """Bytes of an array's chunks."""
    index = index_bytes(chunks_per_shard(layout)) if layout.shard is not None else 0
    names = layout.block_objects(0)
    return sum((store.path / name).stat().st_size - index for name in names)


def _growth(store: LabelStore, teacher: str, num_views: int) -> float:
    """How much longer the lists are with `num_views` views than with the probe's."""
    codec, views = store.spec.teachers[teacher].codec, store.spec.num_views
    if not isinstance(codec, DictionaryCodec) or num_views <= views or views < 2:
        return 1.0
    rows = np.flatnonzero(store.read_status() == ImageStatus.OK)
    listed = (store.read_array(f"labels/{teacher}/classes", slice(None))[rows] != NO_INDEX).sum()
    index = store.read_array(f"labels/{teacher}/index", slice(None), slice(0, views))[rows]
    half, full = (
        sum(len(np.unique(image[:count])) for image in index) for count in (views // 2, views)
    )
    exponent = math.log(full / half) / math.log(views / (views // 2))
    later = min(full * (num_views / views) ** exponent, len(rows) * codec.num_classes)
    longest = len(rows) * codec.num_classes
    return float(min(later + int(listed) - full, longest) / int(listed))


def _sample_bytes(store: LabelStore) -> float:
    written = sum(f.stat().st_size for f in (store.path / RECEIPTS).iterdir())
    besides = list_bytes(store.spec) + _canary_bytes(store)
    return max(0, written - besides) / sampled(store.spec)


def _canary_bytes(store: LabelStore) -> int:
    """Bytes of the canaries in the receipts; a store has no more of them, however large it is."""
    receipts = read_receipts(store.path, store.blocks).values()
    return sum(len(json_bytes({"canaries": receipt.canaries})) for receipt in receipts)


def list_bytes(spec: StoreSpec) -> int:
    """Bytes of the list of one block's files."""
    return len(json_bytes({
        name: [1_000_000, "0" * 64]
        for layout in array_layouts(spec).values()
        for name in layout.block_objects(spec.num_blocks - 1)
    }))  # fmt: skip


def sampled(spec: StoreSpec) -> int:
    """Crops that a store's receipts compare with the dense output."""
    rows = range(spec.num_images)
    return len(sample_positions(spec.num_images, spec.num_views, rows)[0])
