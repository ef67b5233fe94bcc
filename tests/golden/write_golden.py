"""Writes tests/golden/format<version> and what it must decode to; run once a format.

    python tests/golden/write_golden.py tests/golden

A store that is committed is never written again: it is what labs hold. The expected values are
made without `storage`'s reader and decoder: plain numpy on the made-up teacher's answers.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from store_helpers import fill_store, image_digest, image_size, make_log_probs, make_spec

from storage.format import FORMAT_VERSION
from storage.manifest import seal
from storage.store import LabelStore

MASKED = 3
NUM_IMAGES, NUM_VIEWS, TOP_K, NUM_CLASSES, STEP = 6, 5, 3, 7, 0.25


def expected_values() -> dict[str, object]:
    """Images, first boxes and dense labels, from the definitions."""
    dense = []
    for row in range(NUM_IMAGES):
        if row == MASKED:
            continue
        logs = make_log_probs(row, NUM_VIEWS, NUM_CLASSES)
        for view in logs:
            order = sorted(range(NUM_CLASSES), key=lambda c: -view[c])[:TOP_K]
            tail = 1 - sum(np.exp(view[c]) for c in order)
            angle = round(254 * np.arcsin(np.sqrt(tail)) / (np.pi / 2)) * (np.pi / 2) / 254
            tail = np.sin(angle) ** 2
            values = [np.exp(-STEP * round(-view[c] / STEP)) for c in order]
            label = np.full(NUM_CLASSES, tail / (NUM_CLASSES - TOP_K))
            label[order] = np.array(values) / sum(values) * (1 - tail)
            dense.append(label.round(6).tolist())
    return {
        "digest": [image_digest(row).hex() for row in range(NUM_IMAGES)],
        "size": [list(image_size(row)) for row in range(NUM_IMAGES)],
        "masked": [MASKED],
        "dense": dense,
    }


def main(folder: Path) -> None:
    """Write the store of the current format and its expected values."""
    path = folder / f"format{FORMAT_VERSION}"
    spec = make_spec(num_images=NUM_IMAGES, num_views=NUM_VIEWS)
    store = fill_store(path, spec, masked=[MASKED])
    manifest = seal(store)
    shutil.rmtree(path / "receipts")  # local bookkeeping: not part of a store
    plane = LabelStore.open(path).read_plane(0, NUM_VIEWS)
    expected = {
        "root": manifest.root,
        "box": plane.box.tolist(),  # the sampler's known answers are in test_views.py
        "flip": plane.flip.tolist(),
        **expected_values(),
    }
    text = json.dumps(expected)
    (folder / f"format{FORMAT_VERSION}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
