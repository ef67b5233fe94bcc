"""Average precision: cases worked by hand, and a plain computation of the definition."""

from pathlib import Path

import numpy as np
import pytest
import torch

from transfer.detect.boxes import Photo
from transfer.detect.evaluate import POINTS, Found, average_precision

SQUARE = [0.0, 0.0, 100.0, 100.0]
FAR = [200.0, 200.0, 300.0, 300.0]
NOWHERE = [400.0, 0.0, 450.0, 50.0]
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def photo(boxes, labels=None, ignored=None, key="a"):
    n = len(boxes)
    return Photo(
        key,
        Path(key),
        (640, 480),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels if labels is not None else [1] * n, np.int64),
        np.array(ignored if ignored is not None else [False] * n, np.bool_),
    )


def found(boxes, scores, labels=None):
    return Found(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels if labels is not None else [1] * len(boxes), dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
    )


def figures(photos, results, classes=("x",)):
    return average_precision(photos, classes, results, voc=True).figures


def test_one_box_found_exactly_is_everything():
    got = figures([photo([SQUARE])], [found([SQUARE], [0.3])])
    assert got["AP"] == got["AP50"] == got["AP75"] == got[POINTS] == pytest.approx(1)
    assert "AP small" not in got and got["AP large"] == pytest.approx(1)


def test_nothing_found_is_nothing():
    got = figures([photo([SQUARE])], [found([], [])])
    assert got["AP"] == got["AP50"] == got[POINTS] == 0


def test_half_of_the_boxes_found_first():
    """Precision 1 up to recall 1/2, 0 beyond: 51 of COCO's 101 recalls, 6 of VOC's 11."""
    truth = [photo([SQUARE, FAR])]
    got = figures(truth, [found([SQUARE, NOWHERE], [0.9, 0.8])])
    assert got["AP"] == got["AP50"] == pytest.approx(51 / 101)
    assert got[POINTS] == pytest.approx(6 / 11)


def test_a_false_box_that_is_surer_halves_the_precision():
    got = figures([photo([SQUARE, FAR])], [found([NOWHERE, SQUARE], [0.9, 0.8])])
    assert got["AP"] == pytest.approx(51 / 101 / 2)
    assert got[POINTS] == pytest.approx(6 / 11 / 2)


def test_an_overlap_of_62_percent_counts_at_three_of_ten_thresholds():
    got = figures([photo([SQUARE])], [found([[0.0, 0.0, 100.0, 62.0]], [0.9])])
    assert got["AP50"] == pytest.approx(1) and got["AP75"] == 0
    assert got["AP"] == pytest.approx(3 / 10)


def test_the_same_box_twice_is_found_once():
    """Hit, miss, hit: precision 1 up to recall 1/2, then 2/3."""
    got = figures([photo([SQUARE, FAR])], [found([SQUARE, SQUARE, FAR], [0.9, 0.8, 0.7])])
    assert got["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert got[POINTS] == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_ignored_boxes_are_neither_hit_nor_miss():
    truth = [photo([SQUARE, FAR], ignored=[False, True])]
    alone = figures(truth, [found([SQUARE], [0.5])])
    both = figures(truth, [found([FAR, FAR, SQUARE], [0.9, 0.8, 0.5])])
    assert alone["AP"] == both["AP"] == pytest.approx(1)


def test_classes_are_judged_apart_and_those_without_boxes_left_out():
    truth = [photo([SQUARE, FAR], labels=[1, 2]), photo([], key="b")]
    results = [found([SQUARE, FAR], [0.9, 0.8], labels=[1, 1]), found([], [])]
    got = average_precision(truth, ("x", "y", "z"), results)
    assert got.classes["x"] == {"AP": pytest.approx(1), "AP50": pytest.approx(1)}
    assert got.classes["y"] == {"AP": 0, "AP50": 0}
    assert set(got.classes) == {"x", "y"} and POINTS not in got.figures
    assert got.figures["AP"] == pytest.approx(1 / 2)


def test_a_hundred_boxes_of_a_photo_count():
    """101 false ones that are surer push the right one out."""
    got = [
        figures([photo([SQUARE])], [found([*[NOWHERE] * n, SQUARE], [*[0.9] * n, 0.5])])["AP"]
        for n in (99, 100)
    ]
    assert got == [pytest.approx(1 / 100), 0]


def test_sizes_are_those_of_the_photo_in_pixels():
    small, medium = [0, 0, 31, 32], [100, 100, 195, 196]
    got = figures([photo([small, medium])], [found([small], [0.9])])
    assert got["AP small"] == pytest.approx(1) and got["AP medium"] == 0
    assert "AP large" not in got


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def plain_precision(truth, results, threshold):
    """Of one class, in float64: greedy by score, precision made falling, read at 101 recalls."""
    ranked = sorted(
        ((float(s), i, box) for i, one in enumerate(results)
         for s, box in zip(one.scores.tolist(), one.boxes.tolist(), strict=True)),
        key=lambda row: -row[0],
    )  # fmt: skip
    taken, hits = set(), []
    for _, i, box in ranked:
        free = [(overlap(box, b), j) for j, b in enumerate(truth[i].boxes.tolist())
                if (i, j) not in taken]  # fmt: skip
        best, j = max(free, default=(0.0, -1))
        hits.append(best >= threshold)
        if hits[-1]:
            taken.add((i, j))
    total = sum(len(one.boxes) for one in truth)
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    read = [max(precision[recall >= point], default=0.0) for point in np.linspace(0, 1, 101)]
    return float(np.mean(read))


@pytest.mark.parametrize("seed", range(12))
def test_the_library_computes_the_definition(seed):
    rng = np.random.default_rng(seed)
    truth, results = [], []
    for i in range(4):
        corners = rng.uniform(0, 300, (int(rng.integers(1, 5)), 2))
        boxes = np.hstack([corners, corners + rng.uniform(20, 150, corners.shape)])
        near = boxes + rng.normal(0, 6, boxes.shape)
        wrong = np.tile(rng.uniform(300, 350, (2, 2)), 2) + np.array([0, 0, 40, 60])
        truth.append(photo(boxes, key=str(i)))
        near = np.float32(np.vstack([near, wrong])).tolist()
        results.append(found(near, rng.uniform(0, 1, len(near)).tolist()))
    by_threshold = [plain_precision(truth, results, t) for t in THRESHOLDS]
    got = figures(truth, results)
    assert got["AP"] == pytest.approx(np.mean(by_threshold), abs=1e-9)
    assert got["AP50"] == pytest.approx(by_threshold[0], abs=1e-9)
    assert got["AP75"] == pytest.approx(by_threshold[5], abs=1e-9)
