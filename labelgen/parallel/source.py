"""Which blocks a process labels: its own, then what the others would only come to later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from labelgen.parallel.world import World

# Blocks of another process that it has in work or is about to begin: one is being forwarded, of
# the next one crops may be cut already.
BEGUN = 2


class BlockSource:
    """Blocks in the order in which one process takes them, each chosen when it is asked for.

    Block b belongs to the process of rank b modulo the number of processes. Once its own are done,
    a process takes blocks that nobody is at; which one depends on its rank, so that two seldom
    take the same. Any number of threads may walk through it at the same time and find the same.

    Args:
        missing: blocks that have to be labelled. finished: those with a receipt, asked for before
            every choice.
        anything: take what others seem to be at too.
    """

    def __init__(
        self,
        world: World,
        missing: Sequence[int],
        finished: Callable[[], set[int]],
        *,
        anything: bool = False,
    ) -> None:
        self._world, self._missing = world, sorted(missing)
        self._finished, self._anything = finished, anything
        self._lock = threading.Lock()
        self._ended = False
        self.taken: list[int] = []

    def __iter__(self) -> Iterator[int]:
        place = 0
        while self._have(place):
            yield self.taken[place]
            place += 1

    def _have(self, place: int) -> bool:
        """Whether there is a block of this place, taking it if it is the next one."""
        with self._lock:
            if place == len(self.taken) and not self._ended:
                block = self._next()
                if block is None:
                    self._ended = True  # for all threads, whatever happens later
                else:
                    self.taken.append(block)
            return place < len(self.taken)

    def _next(self) -> int | None:
        gone = self._finished() | set(self.taken)
        left = [block for block in self._missing if block not in gone]
        own = [block for block in left if self._owner(block) == self._world.rank]
        if own:
            return own[0]
        free = left if self._anything else self._not_begun(left)
        return free[self._world.rank * len(free) // self._world.size] if free else None

    def _not_begun(self, left: Sequence[int]) -> list[int]:
        seen = [0] * self._world.size
        free = []
        for block in left:
            seen[self._owner(block)] += 1
            if seen[self._owner(block)] > BEGUN:
                free.append(block)
        return free

    def _owner(self, block: int) -> int:
        return block % self._world.size
