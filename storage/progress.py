"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS = 10.0  # between plain lines


def format_seconds(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class Progress:
    """Counts units of work; use as a context manager.

    Args:
        total: units in the whole job, those done earlier included.
        done: units done before this process began (they don't count into the rate).
        unit: plural noun, such as "crops".
        label: what is being done.
        quiet: count, and show nothing.
    """

    def __init__(
        self, total: int, unit: str, label: str, done: int = 0, quiet: bool = False
    ) -> None:
        self.total, self.unit, self.label, self.done = total, unit, label, done
        self._quiet = quiet
        self._first = done
        self._start = self._last_line = time.monotonic()
        self._note = ""
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>5.1f}%  {task.fields[text]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.label, total=self.total, completed=self.done, text=""
            )
        return self

    def advance(self, count: int, note: str | None = None) -> None:
        """Count finished units; `note` replaces the free text at the end of the line."""
        self.done += count
        if note is not None:
            self._note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=self._text())
        elif not self._quiet and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Units a second since this process began."""
        return (self.done - self._first) / max(1e-9, time.monotonic() - self._start)

    @property
    def seconds(self) -> float:
        """Wall-clock time since this process began."""
        return time.monotonic() - self._start

    def _text(self) -> str:
        left = (self.total - self.done) / self.rate if self.rate > 0 else 0.0
        note = f"  {self._note}" if self._note else ""
        return f"{self.rate:,.1f} {self.unit}/s  ETA {format_seconds(left)}{note}"

    def _line(self) -> str:
        share = 100.0 * self.done / max(1, self.total)
        return (
            f"{self.label}: {self.done:,}/{self.total:,} {self.unit} {share:.1f}%  {self._text()}"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._quiet:
            return
        print(
            f"{self.label}: {self.done:,}/{self.total:,} {self.unit} in "
            f"{format_seconds(self.seconds)}, {self.rate:,.1f} {self.unit}/s",
            file=sys.stderr,
            flush=True,
        )
