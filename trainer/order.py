"""Quasi-random order: the pages of a file in random order, images drawn from those that are open.

FFCV's meaning of the word, and for its reason: a file that memory can't hold is read once a pass,
whole pages at a time. Departs from it where several processes share the work: each has pages of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pages:
    """Where images lie, and who reads them.

    Attributes:
        page: int64 [n], page of the file of each image that takes part.
        open_pages: pages that a process may have open at a time.
        step_images: images of a step, of all processes together.
        processes: how many share every step (trainer.plan.share_of_rank).
    """

    page: Places
    open_pages: int
    step_images: int
    processes: int = 1


def paged_order(rng: np.random.Generator, pages: Pages) -> Places:
    """A permutation of the images, int64 [n].

    Shuffled pages follow one another and are cut into as many equal runs as there are processes,
    so that no two of them read the same page, those at the cuts aside. Images beyond the last
    whole step come last.
    """
    distinct, page = np.unique(pages.page, return_inverse=True)
    turn = rng.permutation(len(distinct))[page]
    in_turn = np.lexsort((rng.random(len(turn)), turn))
    whole = len(turn) // pages.step_images * pages.step_images
    runs = in_turn[:whole].reshape(pages.processes, -1)
    mixed = np.stack([run[_mixed(rng, turn[run], pages.open_pages)] for run in runs])
    share = pages.step_images // pages.processes
    by_step = mixed.reshape(pages.processes, -1, share).transpose(1, 0, 2)
    return np.concatenate([by_step.reshape(-1), in_turn[whole:]]).astype(np.int64)


def _mixed(rng: np.random.Generator, turn: Places, open_pages: int) -> Places:
    """Order of one process's images, at most `open_pages` pages being between their first and
    their last image at any time.

    Every image moves by up to half that many pages either way; at the ends, where there is no
    page, it is turned back, so that a pass begins and ends as well mixed as it goes on.

    Args:
        turn: int64 [m], when the page of each image has its turn.
    """
    distinct, place = np.unique(turn, return_inverse=True)
    count = len(distinct)
    if open_pages >= count:
        return rng.permutation(len(turn))
    key = np.abs(place + 0.5 + open_pages * (rng.random(len(turn)) - 0.5))
    key = np.where(key > count, 2 * count - key, key)
    return np.argsort(key, kind="stable")
