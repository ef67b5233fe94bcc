"""What every process but the first does: wait for the store, label its share, wait for the seal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelgen.crop_pool import STOPPED, StoppedError
from labelgen.parallel.share import LOOK_SECONDS, label_share
from labelgen.parallel.world import SPAWNED, World
from labelgen.run import begin_store
from labelgen.teacher import Teacher
from storage.errors import IncompleteStore
from storage.images import scan_folder
from storage.store import ROOT_METADATA, LabelStore


def join(
    teacher: Teacher,
    data: Path | str,
    out: Path | str,
    world: World,
    *,
    patience: float,
    workers: int,
    stop: threading.Event,
    **settings: Any,
) -> None:
    """Take part in a run that another process leads.

    Args:
        settings: as `labelgen.run.begin_store` has them; the store must have been made with them.
        patience: seconds to wait for the first process to make the store, and again to seal it.
    Raises:
        IncompleteStore: the first process let this one wait for too long.
        StoreMismatch: the store was made with other settings.
        TeachonceError, OSError: see labelgen.engine.label_missing_blocks.
    """
    folder, out = scan_folder(data), Path(out)
    wait_for_store(out, patience, stop)
    store, plans = begin_store(teacher, folder, out, workers=workers, stop=stop, **settings)
    label_share(
        store, teacher, folder, store.missing_blocks(), plans, world, workers=workers,
        compiled=settings["compiled"], stop=stop,
    )  # fmt: skip
    if world.launcher != SPAWNED:  # who started those waits for them, and seals then
        _wait(
            lambda: store.is_sealed, patience, stop,
            f"{out} has all its blocks, but the first process hasn't sealed it for {patience:g} s",
        )  # fmt: skip


def wait_for_store(out: Path, patience: float, stop: threading.Event) -> None:
    """Wait until a store can be gone on with: settings and what its targets share are there.

    Raises:
        IncompleteStore: it can't be after `patience` seconds. StoppedError: `stop` was set.
    """

    def begun() -> bool:
        return (out / ROOT_METADATA).is_file() and not LabelStore.open(out).missing_constants()

    _wait(begun, patience, stop, f"the first process hasn't made {out} for {patience:g} s")


def _wait(there: Callable[[], bool], patience: float, stop: threading.Event, what: str) -> None:
    deadline = time.monotonic() + patience
    while not there():
        if time.monotonic() > deadline:
            raise IncompleteStore(f"{what}: see what it says, then run the same command again")
        if stop.wait(LOOK_SECONDS):
            raise StoppedError(STOPPED)
