"""One process's part of the labelling: until every block of the store is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from labelgen.crop_pool import STOPPED, StoppedError
from labelgen.engine import RunReport, label_missing_blocks
from labelgen.parallel.source import BlockSource
from labelgen.parallel.world import World
from labelgen.teacher import Teacher
from storage.errors import StoreError
from storage.images import ImageFolder
from storage.receipts import receipt_numbers
from storage.store import LabelStore

if TYPE_CHECKING:
    from labelgen.target_plans import TargetPlan

LOOK_SECONDS = 0.5  # between looks at the receipts
# Nothing has come from those who are at a block for so long: its own blocks' time and this.
PATIENCE_BLOCKS, PATIENCE_SECONDS = 2.0, 3.0


class _AllThereError(Exception):
    """What this process is at has been written by another."""


def label_share(
    store: LabelStore,
    teacher: Teacher,
    folder: ImageFolder,
    missing: Sequence[int],
    plans: Sequence[TargetPlan],
    world: World,
    *,
    workers: int,
    compiled: bool = False,
    stop: threading.Event,
    on_batch: Callable[[RunReport], None] = lambda report: None,
) -> None:
    """Label this process's blocks, then others' that nobody is at, until none is missing.

    What others seem to be at is left to them for as long as two of this process's blocks took, and
    done again then: they may be dead. Whoever is first, the bytes are the same.

    Args:
        missing: blocks that have to be labelled.
        on_batch: called after every batch with the report of the blocks since the last wait.
    Raises:
        StoppedError: `stop` was set; finished blocks are in the store.
        TeachonceError, OSError: see labelgen.engine.label_missing_blocks.
    """
    # a receipt whose files are lost must not count as done
    stale = receipt_numbers(store.path) & set(missing)
    seconds, blocks, anything = 0.0, 0, False
    while missing:
        source = BlockSource(
            world, missing, lambda: receipt_numbers(store.path) - stale, anything=anything
        )
        watch = _Watch(store, set(missing) - stale, on_batch)
        started = time.monotonic()
        if next(iter(source), None) is not None:
            try:
                label_missing_blocks(
                    store, teacher, folder, workers=workers, blocks=source, targets=plans,
                    compiled=compiled, stop=stop, on_batch=watch,
                )  # fmt: skip
            except _AllThereError:
                pass
            except StoreError:  # sealed by the first process, with another device's last bits
                if not store.is_sealed or store.missing_blocks():
                    raise
            seconds += time.monotonic() - started
            blocks += len(source.taken)
        patience = PATIENCE_SECONDS + PATIENCE_BLOCKS * seconds / max(1, blocks)
        missing = store.missing_blocks()
        anything = bool(missing) and not _progress(store, missing, patience, stop)
        missing = store.missing_blocks()


class _Watch:
    """Looks after batches whether all is there already: then what is in work is for nothing."""

    def __init__(
        self, store: LabelStore, wanted: set[int], on_batch: Callable[[RunReport], None]
    ) -> None:
        self._store, self._wanted, self._on_batch = store, wanted, on_batch
        self._looked = time.monotonic()

    def __call__(self, crops: int, report: RunReport) -> None:
        self._on_batch(report)
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._wanted <= receipt_numbers(self._store.path) and not self._store.missing_blocks():
            raise _AllThereError


def _progress(
    store: LabelStore, missing: Sequence[int], patience: float, stop: threading.Event
) -> bool:
    """Wait for one of the missing blocks to be written by another process; whether one was."""
    deadline = time.monotonic() + patience
    before = len(receipt_numbers(store.path) & set(missing))
    while time.monotonic() < deadline:
        if stop.wait(LOOK_SECONDS):
            raise StoppedError(STOPPED)
        if len(receipt_numbers(store.path) & set(missing)) > before:
            return True
    return False
