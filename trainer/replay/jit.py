"""How this folder's loops are compiled: by numba, without the GIL, kept on disk.

numba takes kept code for current as long as the function's own file is. A compiled function holds
all that it calls, though, from other files too: after a change of the resampler alone, an older one
would go on cutting. Here code is kept for all of these files together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

import storage

# whose functions and constants are compiled in
_STORAGE = ("colour", "colour_draws", "erasing", "randaugment")


def digest_of(files: Sequence[Path]) -> str:
    """Of the contents of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def keep_together(files: Sequence[Path]) -> bool:
    """Have numba keep the code of these files' functions for as long as none of them changes.

    Returns:
        Whether this numba can be told (0.68 can).
    """
    locators = getattr(getattr(caching, "CacheImpl", None), "_locator_classes", None)
    if locators is None:
        return False
    numbas_own, stamp, ours = list(locators), digest_of(files), {file.resolve() for file in files}

    class StampedLocator:
        @classmethod
        def from_function(cls, function: Any, file: str) -> Any:
            """Called by numba: where a function's code is kept, and for which sources."""
            if Path(file).resolve() not in ours:
                return None
            for each in numbas_own:
                locator = each.from_function(function, file)
                if locator is not None:
                    locator.get_source_stamp = lambda: stamp
                    return locator
            return None

    locators.insert(0, StampedLocator)
    return True


def _sources() -> list[Path]:
    folder = Path(storage.__file__).parent
    return [*sorted(Path(__file__).parent.glob("*.py")), *(folder / f"{n}.py" for n in _STORAGE)]


CACHE = keep_together(_sources())
kernel = numba.njit(cache=CACHE, nogil=True)
inlined_kernel = numba.njit(cache=CACHE, nogil=True, inline="always")
