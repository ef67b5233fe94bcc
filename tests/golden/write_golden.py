"""Writes tests/golden/format<version>[_<codecs>] and what they must decode to; run once a format.

    python tests/golden/write_golden.py tests/golden

A store that is committed is never written again: it is what labs hold. The expected values are
made without `storage`'s reader and decoder: plain numpy on the made-up teacher's answers.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from box_numbers import plain_number
from store_helpers import (
    fill_store,
    image_digest,
    image_size,
    make_log_probs,
    make_spec,
    make_teacher,
)

from storage.box_codec import BOX_NUMBERS
from storage.dictionary import DictionaryCodec
from storage.format import FORMAT_VERSION, StoreSpec
from storage.sealing import seal
from storage.store import LabelStore

MASKED = 3
NUM_IMAGES, NUM_VIEWS, TOP_K, NUM_CLASSES, STEP = 6, 5, 3, 7, 0.25


DICTIONARY = DictionaryCodec(
    num_classes=NUM_CLASSES, top_k=TOP_K, spread_classes=3, spread_weight=0.6
)


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
    return {**image_values(), "dense": dense}


def dictionary_values() -> dict[str, object]:
    """The same for codec top-k-dictionary: dense labels with an even tail and with the mean one."""
    dense, mean = [], []
    for row in range(NUM_IMAGES):
        if row == MASKED:
            continue
        logs = make_log_probs(row, NUM_VIEWS, NUM_CLASSES)
        kept = [sorted(range(NUM_CLASSES), key=lambda c: -view[c])[:TOP_K] for view in logs]
        mass = np.zeros(NUM_CLASSES)
        for view, order in zip(logs, kept, strict=True):
            mass += [0 if c in order else np.exp(view[c]) for c in range(NUM_CLASSES)]
        largest = sorted(range(NUM_CLASSES), key=lambda c: -mass[c])[:3]
        share = np.zeros(NUM_CLASSES)
        for c in largest:
            share[c] = np.exp(-0.5 * round(np.log(mass[largest[0]] / mass[c]) / 0.5))
        for view, order in zip(logs, kept, strict=True):
            tail = dictionary_tail(sum(np.exp(view[c]) for c in range(NUM_CLASSES)
                                       if c not in order))  # fmt: skip
            values = [np.exp(-0.3 * round((view[order[0]] - view[c]) / 0.3)) for c in order]
            label = np.full(NUM_CLASSES, tail / (NUM_CLASSES - TOP_K))
            label[order] = np.array(values) / sum(values) * (1 - tail)
            dense.append(label.round(6).tolist())
            others = [c for c in range(NUM_CLASSES) if c not in order]
            total = sum(share[c] for c in others)
            weight = 0.6 if total else 0
            for c in others:
                part = share[c] / total if total else 0
                label[c] = tail * (weight * part + (1 - weight) / len(others))
            mean.append(label.round(6).tolist())
    return {**image_values(), "dense": dense, "mean_tail": mean}


def dictionary_tail(mass: float) -> float:
    """What a tail mass decodes to: by angle from 0.01 up, by logarithm below."""
    if mass < 0.01:
        return float(0.01 * np.exp(0.5 * max(round(np.log(mass / 0.01) / 0.5), -28)))
    corner = np.arcsin(0.1)
    step = (np.pi / 2 - corner) / 60
    return float(np.sin(corner + round((np.arcsin(np.sqrt(mass)) - corner) / step) * step) ** 2)


def image_values() -> dict[str, object]:
    """What doesn't depend on labels."""
    return {
        "digest": [image_digest(row).hex() for row in range(NUM_IMAGES)],
        "size": [list(image_size(row)) for row in range(NUM_IMAGES)],
        "masked": [MASKED],
    }


def crop_numbers(spec: StoreSpec) -> list[list[int]]:
    """Boxes and flips as numbers; 0 where masked."""
    numbers = []
    for row in range(NUM_IMAGES):
        height, width = image_size(row)
        drawn = spec.sampler.draw(spec.seed, image_digest(row), height, width, 0, NUM_VIEWS)
        views = zip(drawn.box.tolist(), drawn.flip.tolist(), strict=True)
        one = [plain_number(height, width, box, flip) for box, flip in views]
        numbers.append([0] * NUM_VIEWS if row == MASKED else one)
    return numbers


def main(folder: Path) -> None:
    """Write the stores of the current format, where there are none, and their expected values."""
    name = f"format{FORMAT_VERSION}"
    spec = make_spec(num_images=NUM_IMAGES, num_views=NUM_VIEWS)
    write(folder / name, spec, expected_values())
    teacher = make_teacher(codec=DICTIONARY)
    spec = make_spec(num_images=NUM_IMAGES, num_views=NUM_VIEWS, teachers=[teacher])
    write(folder / f"{name}_dictionary", spec, dictionary_values())
    spec = dataclasses.replace(spec, view_codec=BOX_NUMBERS)
    write(folder / f"{name}_boxes", spec, {**dictionary_values(), "crop": crop_numbers(spec)})


def write(path: Path, spec: StoreSpec, values: dict[str, object]) -> None:
    """One store and its JSON; one that exists is left alone."""
    if path.exists():
        return
    store = fill_store(path, spec, masked=[MASKED])
    manifest = seal(store)
    shutil.rmtree(path / "receipts")  # local bookkeeping: not part of a store
    plane = LabelStore.open(path).read_plane(0, NUM_VIEWS)
    expected = {
        "root": manifest.root,
        "box": plane.box.tolist(),  # the sampler's known answers are in test_views.py
        "flip": plane.flip.tolist(),
        **values,
    }
    path.with_suffix(".json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
