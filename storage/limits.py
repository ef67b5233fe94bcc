"""How large a store may be: settings are refused before anything is allocated for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from storage.errors import UsageError
from storage.layout import ArrayLayout

MOST_CHUNK_BYTES = (1 << 31) - 17  # what a blosc buffer can hold
MOST_OBJECTS = 1 << 21  # files of a store: 14 million images have a quarter of a million


def check_limits(layouts: Mapping[str, ArrayLayout]) -> None:
    """Refuse chunks that can't be packed and stores of absurdly many files.

    Raises:
        UsageError: names the array and what to change.
    """
    for path, layout in layouts.items():
        size = layout.chunk_bytes
        if size > MOST_CHUNK_BYTES:
            raise UsageError(
                f"a chunk of {path} has {size:,} bytes ({list(layout.chunk)} {layout.dtype}); "
                f"expected at most {MOST_CHUNK_BYTES:,}: use fewer images a block"
            )
    objects = object_count(layouts)
    if objects > MOST_OBJECTS:
        raise UsageError(
            f"the settings ask for {objects:,} files; expected at most {MOST_OBJECTS:,}: use more "
            "images a block"
        )


def object_count(layouts: Mapping[str, ArrayLayout]) -> int:
    """Files that hold the values of these arrays."""
    total = 0
    for layout in layouts.values():
        file = layout.shard or layout.chunk
        total += math.prod(-(-a // b) for a, b in zip(layout.shape, file, strict=True))
    return total
