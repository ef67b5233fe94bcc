"""How many crops a forward pass takes: found before a store is made, cut when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from storage.errors import TeacherError

FIRST, MOST = 32, 2048
WORTH = 1.03  # doubling a batch must bring this much, or it isn't done
_PROBE_SECONDS = 0.5
_PROBE_BATCHES = 50


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed for want of memory (a CPU's allocator has no type for it)."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class Backoff:
    """Runs a function over batches, in parts where a whole one doesn't fit into memory.

    The number of parts only grows: what happened once would happen again. Values of a crop may
    differ in their last bits when the batch that it is forwarded in has another size.

    Attributes:
        parts: parts that a batch is cut into now; 1 until memory ran out.
    """

    def __init__(self) -> None:
        self.parts = 1

    def __call__(
        self, function: Callable[[Tensor], dict[str, Tensor]], batch: Tensor
    ) -> dict[str, Tensor]:
        """The function's results for the batch [B, ...], joined along their first axis.

        Raises:
            TeacherError: not even one crop fits.
        """
        while True:
            try:
                found = [function(part) for part in batch.chunk(min(self.parts, len(batch)))]
                return _join(found)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # outside the handler: the error's traceback holds on to the tensors of the failed pass
            if self.parts >= len(batch):
                _refuse(f" ({reason[:120]})")
            self.parts *= 2
            if batch.is_cuda:
                torch.cuda.empty_cache()


def _join(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(found) == 1:
        return found[0]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def grow_batch_size(rate: Callable[[int], float], most: int = MOST) -> int:
    """The smallest of 32, 64, 128 ... after which doubling brings less than 3 %.

    Args:
        rate: crops/s at a batch size; raises an out-of-memory error where it doesn't fit.
        most: a batch isn't filled beyond this.
    Raises:
        TeacherError: not even one crop fits.
    """
    first = min(FIRST, most)
    best, fastest = 0, 0.0
    for size in iter_doubled(first, most):
        found = _rate_or_none(rate, size)
        if found is None or found < fastest * WORTH:
            break
        best, fastest = size, found
    fitting = (size for size in iter_doubled(1, first) if _rate_or_none(rate, size) is not None)
    return best or max(fitting, default=0) or _refuse()


def iter_doubled(first: int, most: int) -> Iterator[int]:
    """first, 2 * first, 4 * first ... up to `most`."""
    while first <= most:
        yield first
        first *= 2


def _rate_or_none(rate: Callable[[int], float], size: int) -> float | None:
    try:
        return rate(size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def _refuse(reason: str = "") -> NoReturn:
    raise TeacherError(
        f"out of memory with a single crop{reason}: end what else uses the device, choose another "
        "--device, or another --precision"
    )


def measured_rate(
    forward: Callable[[np.ndarray], object], side: int, device: torch.device
) -> Callable[[int], float]:
    """Crops/s of `forward` on uint8 [B, side, side, 3] noise, as a function of B."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def rate(size: int) -> float:
        shape = (size, side, side, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        try:
            forward(pixels)  # libraries choose their algorithms
            wait()
            start, batches = time.monotonic(), 0
            while batches < _PROBE_BATCHES and time.monotonic() - start < _PROBE_SECONDS:
                forward(pixels)
                wait()
                batches += 1
            return batches * size / (time.monotonic() - start)
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()

    return rate
