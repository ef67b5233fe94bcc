"""One value read in a thread before it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ReadAhead(Generic[Value]):
    """Holds at most one value, which is being read or waits to be taken.

    The thread ends with the process; nobody waits for a read that isn't wanted any more.
    """

    def __init__(self) -> None:
        self._under_way: tuple[Hashable, Future[Value]] | None = None

    def start(self, key: Hashable, read: Callable[[], Value]) -> None:
        """Begin to read the value of a key; one that was begun before is forgotten."""
        future: Future[Value] = Future()

        def work() -> None:
            try:
                future.set_result(read())
            except BaseException as error:  # raised where the value is taken
                future.set_exception(error)

        self._under_way = key, future
        threading.Thread(target=work, name="teachonce-ahead", daemon=True).start()

    def take(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """The value of a key: what was begun for it, else read now.

        Raises:
            What the read raised.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None or under_way[0] != key:
            return read()
        return under_way[1].result()
