"""What a run will need, from a short probe: bytes of every array, files, device hours, disk.

The probe labels some views of a sample of images with the run's own engine, codec and batch size,
into a temporary store, and weighs its files. From there to the whole run:

* arrays with a value for every view: bytes of their chunks, times views and images. The probe's
  chunks hold as many crops as the run's, where it has that many: small ones compress worse.
* arrays with a value for every image: bytes, times images; the images' lists of classes, and the
  mean tails on them, also times how much longer the lists get. The number of classes that an
  image's labels name is taken to grow as a power of its views (Heaps' law, the exponent from half
  the probe's views to all of them), to the teacher's classes at most.
* targets: as values of views, of those views that have them; what their views share is weighed.
  Bases are fitted on a few crops here, which no byte depends on.
* indices of the files, metadata, manifest and receipts: by arithmetic.

Crops a second are measured after the first batches. The probe decodes an image once for its few
views, the run once for up to 128: where decoding is the bottleneck the run is faster.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelgen.probe import PROBE_CROPS, Probe, list_bytes, probe, sampled
from storage.errors import StoreError
from storage.format import StoreSpec, differences
from storage.images import ImageFolder
from storage.layout import ArrayLayout, array_layouts, constant_objects, node_metadata
from storage.receipts import read_receipts
from storage.shards import chunks_per_shard, index_bytes
from storage.store import LabelStore

if TYPE_CHECKING:
    from labelgen.basis import CropSample
    from labelgen.target_plans import TargetPlan
    from labelgen.teacher import Teacher

LISTS = ("classes", "spread")
ROUGH_IMAGES, ROUGH_VIEWS = 32, 4  # that a plan's bases are fitted on


@dataclass(frozen=True)
class ArrayPlan:
    """One array of the store to be; bytes with the files' indices.

    per: "crop", "image", "view" of those that have the target, or "store": what a target's share.
    """

    path: str
    per: str
    bytes_per_unit: float
    bytes: int
    files: int


@dataclass(frozen=True)
class Plan:
    """What a run needs, beside what there is.

    Attributes:
        bookkeeping: bytes of metadata, manifest and receipts.
        present: bytes that an unfinished store at `out` has already. free: of its file system.
    """

    out: Path
    spec: StoreSpec
    arrays: tuple[ArrayPlan, ...]
    bookkeeping: int
    probe: Probe
    present: int
    free: int

    @property
    def bytes(self) -> int:
        """All of the finished store."""
        return sum(array.bytes for array in self.arrays) + self.bookkeeping

    @property
    def files(self) -> int:
        """Those of the arrays, all metadata, a receipt a block, manifest.json and local.json."""
        nodes = len(node_metadata(self.spec)) + 1  # and the root
        return sum(array.files for array in self.arrays) + nodes + self.spec.num_blocks + 2

    @property
    def crops(self) -> int:
        """Forward passes of one crop each."""
        return self.spec.num_images * self.spec.num_views

    @property
    def device_hours(self) -> float:
        """At the probe's rate, from the beginning."""
        return self.crops / self.probe.crops_per_second / 3600

    @property
    def fits(self) -> bool:
        """Whether what is still to be written finds room."""
        return self.bytes - self.present <= self.free

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "store": str(self.out),
            "images": self.spec.num_images,
            "views": self.spec.num_views,
            "crops": self.crops,
            "arrays": [
                {"path": a.path, "per": a.per, "bytes_per_unit": round(a.bytes_per_unit, 3),
                 "bytes": a.bytes, "files": a.files}
                for a in self.arrays
            ],
            "bookkeeping_bytes": self.bookkeeping,
            "bytes": self.bytes,
            "bytes_per_crop": round(self.bytes / self.crops, 3),
            "files": self.files,
            "device_hours": round(self.device_hours, 4),
            "probe": {
                "images": self.probe.images, "views": self.probe.views,
                "masked": self.probe.masked, "seconds": round(self.probe.seconds, 3),
                "crops_per_second": round(self.probe.crops_per_second, 3),
                "list_growth": {n: round(g, 3) for n, g in self.probe.growth.items()},
            },
            "disk": {"free": self.free, "present": self.present, "fits": self.fits},
        }  # fmt: skip


def plan_run(
    teacher: Teacher,
    folder: ImageFolder,
    spec: StoreSpec,
    out: Path,
    *,
    workers: int,
    probe_crops: int = PROBE_CROPS,
    targets: Sequence[TargetPlan] = (),
) -> Plan:
    """Probe the run of `spec` and say what it needs at `out`.

    Args:
        targets: of `spec`, planned with a `rough` sample.
    Raises:
        TeachonceError: none of the probe's images can be decoded; or see
            labelgen.engine.label_missing_blocks.
    """
    found = probe(teacher, folder, spec, workers=workers, probe_crops=probe_crops, targets=targets)
    anchor = next(path for path in (out, *out.absolute().parents) if path.exists())
    return Plan(
        out=out,
        spec=spec,
        arrays=(
            *(_plan_array(spec, layout, found) for layout in array_layouts(spec).values()),
            *(
                ArrayPlan(
                    f"{path} (shared)",
                    "store",
                    size,
                    size,
                    len(constant_objects(spec.targets[path])),
                )
                for path, size in found.shared.items()
            ),
        ),
        # canaries stand in the receipts, and in the root once the store is sealed
        bookkeeping=found.metadata + _bookkeeping(spec, found.sample) + 2 * found.canaries,
        probe=found,
        present=_present(out, spec),
        free=shutil.disk_usage(anchor).free,
    )


def rough(sample: CropSample) -> CropSample:
    """A few of the crops that bases are fitted on: their sizes don't depend on more of them."""
    return replace(sample, num_views=min(ROUGH_VIEWS, sample.num_views), images=ROUGH_IMAGES)


def _plan_array(spec: StoreSpec, layout: ArrayLayout, found: Probe) -> ArrayPlan:
    by_crop = layout.shard is not None
    files = len(layout.block_objects(0)) * spec.num_blocks
    views = layout.shape[1] if by_crop else 1
    units = spec.num_images * views
    probed = found.images * min(views, found.views)
    folder, _, part = layout.path.rpartition("/")
    teacher = folder.removeprefix("labels/")
    longer = found.growth[teacher] if part in LISTS and teacher in found.growth else 1.0
    each = found.payload[layout.path] / probed * longer
    index = index_bytes(chunks_per_shard(layout)) * files if by_crop else 0
    per = "view" if folder in spec.targets else "crop" if by_crop else "image"
    return ArrayPlan(layout.path, per, each, round(each * units) + index, files)


def _bookkeeping(spec: StoreSpec, sample: float) -> int:
    """Bytes of the manifest and the receipts: both list all files, receipts also the samples."""
    return round(2 * list_bytes(spec) * spec.num_blocks + sample * sampled(spec))


def _present(out: Path, spec: StoreSpec) -> int:
    """Bytes of finished blocks at `out`.

    Raises:
        StoreError: `out` has something else, or a store that was made with other settings.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return 0
    store = LabelStore.open(out)
    if found := differences(spec.settings(), store.spec.settings()):
        raise StoreError(
            f"{out} was made with other settings than asked for: {'; '.join(found)}. Plan for "
            "another --out, or with the store's settings"
        )
    receipts = read_receipts(out, store.blocks)
    return sum(size for receipt in receipts.values() for size in receipt.sizes().values())


def plan_text(plan: Plan, device: str) -> str:
    """The plan for people."""
    width = max(len(array.path) for array in plan.arrays)
    found = plan.probe
    lines = [
        f"{plan.out}: {plan.spec.num_images:,} images, {plan.spec.num_views} views each, "
        f"{plan.crops:,} crops",
        *(
            f"  {array.path:<{width}}  {_bytes(array.bytes):>10}  "
            f"{array.bytes_per_unit:8.2f} bytes a{'n' * (array.per == 'image')} {array.per}"
            for array in plan.arrays
        ),
        f"  {'manifest and metadata':<{width}}  {_bytes(plan.bookkeeping):>10}",
        f"  bytes     {plan.bytes:,} ({_bytes(plan.bytes)}, {plan.bytes / plan.crops:.2f} a crop) "
        f"in {plan.files:,} files",
        f"  time      {plan.device_hours:,.2f} device hours at {found.crops_per_second:,.1f} "
        f"crops/s on {device}",
        f"  probe     {found.images} images, {found.views} views each, {found.masked} masked; "
        f"{found.seconds:.1f} s counted",
    ]
    still = plan.bytes - plan.present
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    there = f" ({_bytes(plan.present)} are there already)" if plan.present else ""
    lines.append(f"  disk      {verdict}: {_bytes(still)} to write{there}, "
                 f"{_bytes(plan.free)} free")  # fmt: skip
    return "\n".join(lines)


def _bytes(count: float) -> str:
    """Decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count:,.0f} TB"
