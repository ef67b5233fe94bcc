"""Run small tasks at once, here and on daemon threads: nothing keeps a process from ending."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
FETCHERS = 8  # requests under way at once


def decoders() -> int:
    """Threads for work that keeps a core busy."""
    return min(8, len(os.sched_getaffinity(0)))


def for_each(items: Iterable[T], work: Callable[[T], object], threads: int = FETCHERS) -> None:
    """Call `work` for every item; the first error stops the rest and is raised."""
    left = list(items)
    left.reverse()
    errors: list[BaseException] = []
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                if errors or not left:
                    return
                item = left.pop()
            try:
                work(item)
            except BaseException as error:  # handed to the caller below
                with lock:
                    errors.append(error)
                return

    count = min(threads, len(left)) - 1  # this thread works too
    workers = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        run()
        for worker in workers:
            worker.join()
    except BaseException:  # interrupted: the workers stop after what they are at
        with lock:
            left.clear()
        raise
    if errors:
        raise errors[0]
