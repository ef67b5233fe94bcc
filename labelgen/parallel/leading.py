"""What the first of several processes does between making a store and sealing it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from labelgen.engine import RunReport
from labelgen.parallel.share import LOOK_SECONDS, label_share
from labelgen.parallel.world import World
from labelgen.run import announce
from labelgen.teacher import Teacher
from storage.images import ImageFolder
from storage.progress import Progress
from storage.receipts import read_receipt, receipt_numbers
from storage.store import LabelStore

if TYPE_CHECKING:
    from labelgen.target_plans import TargetPlan

Helpers = Callable[[threading.Event], AbstractContextManager[object]]


def leader(world: World, helpers: Helpers = lambda stop: nullcontext()) -> Callable[..., RunReport]:
    """What labelgen.run.generate is given as `label` by the first of several processes.

    Args:
        helpers: starts the other processes where no launcher has; left when all blocks are there.
    """

    def label(
        store: LabelStore,
        teacher: Teacher,
        folder: ImageFolder,
        blocks: Sequence[int],
        plans: Sequence[TargetPlan],
        *,
        workers: int,
        compiled: bool = False,
        stop: threading.Event | None = None,
    ) -> RunReport:
        stop, masked = stop or threading.Event(), dict[int, str]()
        with team_progress(store, blocks) as progress, helpers(stop) if blocks else nullcontext():
            label_share(
                store, teacher, folder, blocks, plans, world, workers=workers, compiled=compiled,
                stop=stop, on_batch=lambda report: masked.update(report.masked),
            )  # fmt: skip
        report = team_report(store, blocks, progress.seconds)
        report.masked |= masked
        note_run(store, folder, report, str(teacher.device), world.size)
        return report

    return label


@contextmanager
def team_progress(store: LabelStore, blocks: Sequence[int]) -> Iterator[Progress]:
    """A progress bar of a store's missing blocks that goes by receipts, whoever writes them."""
    announce(store, blocks)
    views, spec = store.spec.num_views, store.spec
    crops = {block: len(store.block_rows(block)) * views for block in blocks}
    total = spec.num_images * views
    stale, ended = receipt_numbers(store.path) & set(blocks), threading.Event()
    first = total - sum(crops.values())

    def advance() -> None:
        there = receipt_numbers(store.path) - stale
        progress.advance(first + sum(crops[b] for b in there & crops.keys()) - progress.done)

    def follow() -> None:
        while not ended.wait(LOOK_SECONDS):
            advance()

    with Progress(total, "crops", "labelling", done=first, quiet=not blocks) as progress:
        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            ended.set()
            thread.join()
            advance()


def team_report(store: LabelStore, blocks: Sequence[int], seconds: float) -> RunReport:
    """What all processes together did; crops of masked images left out."""
    rows = sum(len(store.block_rows(block)) for block in blocks)
    receipts = (read_receipt(store.path, block) for block in blocks)
    masked = sum(len(receipt.masked) for receipt in receipts if receipt is not None)
    return RunReport((rows - masked) * store.spec.num_views, seconds)


def note_run(
    store: LabelStore, folder: ImageFolder, report: RunReport, device: str, processes: int
) -> None:
    """Note a run of several processes in the store's local.json."""
    seconds = round(report.seconds, 3)
    run = {"crops": report.crops, "seconds": seconds, "device": device, "processes": processes}
    store.write_local(folder.root, run)
