"""View samplers: order-free, in range, and distributed as torchvision's."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import FormatVersion, UsageError
from storage.views import CentreCrop, PaddedCrop, RandomResizedCrop, sampler_from_json

DIGEST = hashlib.sha256(b"an image").digest()
SAMPLERS = [RandomResizedCrop(), RandomResizedCrop(scale=(0.3, 0.5), ratio=(0.5, 3.0)),
            RandomResizedCrop(scale=(0.9, 1.0), ratio=(0.75, 4 / 3)), PaddedCrop()]  # fmt: skip
sides = st.integers(1, 3000)


@given(sides, sides, st.integers(0, 100), st.integers(0, 40), st.sampled_from(SAMPLERS))
def test_a_view_does_not_depend_on_what_is_drawn_with_it(height, width, first, count, sampler):
    whole = sampler.draw(3, DIGEST, height, width, 0, 150)
    part = sampler.draw(3, DIGEST, height, width, first, count)
    assert np.array_equal(part.box, whole.box[first : first + count])
    assert np.array_equal(part.flip, whole.flip[first : first + count])


@given(sides, sides, st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32),
       st.sampled_from(SAMPLERS))  # fmt: skip
def test_boxes_lie_inside_the_padded_image(height, width, seed, digest, sampler):
    views = sampler.draw(seed, digest, height, width, 0, 32)
    top, left, box_height, box_width = views.box.astype(int).T
    assert (box_height >= 1).all() and (box_width >= 1).all()
    assert (top + box_height <= height + 2 * sampler.padding).all()
    assert (left + box_width <= width + 2 * sampler.padding).all()
    assert set(views.flip.tolist()) <= {0, 1}


@given(st.integers(2**13, 65_535), st.integers(1, 4096))
def test_largest_images_stay_in_range(long, short):
    for height, width in ((long, short), (short, long)):
        box = RandomResizedCrop().draw(0, DIGEST, height, width, 0, 20).box.astype(int)
        assert (box[:, :2] + box[:, 2:] <= (height, width)).all() and (box[:, 2:] >= 1).all()


def test_seed_and_digest_each_change_the_views():
    draws = [
        RandomResizedCrop().draw(seed, digest, 300, 400, 0, 8).box.tobytes()
        for seed in (0, 1) for digest in (DIGEST, DIGEST[::-1])
    ]  # fmt: skip
    assert len(set(draws)) == 4


def test_views_are_those_of_the_first_release():
    """Known answers: a change here would orphan every published store."""
    views = RandomResizedCrop().draw(0, DIGEST, 375, 500, 0, 4)
    assert views.box.tolist() == KNOWN_BOXES
    assert views.flip.tolist() == KNOWN_FLIPS
    padded = PaddedCrop().draw(0, DIGEST, 32, 32, 0, 4)
    assert padded.box.tolist() == KNOWN_PADDED
    assert padded.flip.tolist() == KNOWN_PADDED_FLIPS


def test_words_are_those_of_plainphilox_words():
    """The stream of docs/format.md, computed with Python integers."""
    from storage.counter import philox_words

    key = hashlib.sha256(b"teachonce/test\0" + (9).to_bytes(8, "little") + DIGEST).digest()[:16]
    keys = [int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")]
    expected = [word for block in range(4, 7) for word in philox4x64(block, keys)]
    assert philox_words("test", 9, DIGEST, 12, 12).tolist() == expected


def philox4x64(counter: int, key: list[int]) -> list[int]:
    """Ten rounds of Philox4x64 (Salmon et al. 2011, Random123)."""
    mask = (1 << 64) - 1
    c, k = [counter, 0, 0, 0], list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def torchvision_boxes(height, width, scale, ratio, count, seed):
    torch = pytest.importorskip("torch")
    from torchvision.transforms import RandomResizedCrop as Reference

    image = torch.empty(0, height, width)
    torch.manual_seed(seed)
    return np.array([Reference.get_params(image, list(scale), list(ratio)) for _ in range(count)])


def ours(height, width, scale, ratio, count):
    sampler = RandomResizedCrop(scale=scale, ratio=ratio)
    return sampler.draw(1, DIGEST, height, width, 0, count).box.astype(int)


def kolmogorov(a, b):
    """Largest distance of two empirical distribution functions, and its 1e-6 critical value."""
    grid = np.union1d(a, b)
    cdf_a = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    cdf_b = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    critical = math.sqrt(-math.log(1e-6 / 2) / 2) * math.sqrt(1 / len(a) + 1 / len(b))
    return np.abs(cdf_a - cdf_b).max(), critical


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (0.75, 4 / 3)),
        (500, 375, (0.08, 0.936), (0.75, 4 / 3)),
        (60, 400, (0.08, 1.0), (0.75, 4 / 3)),  # mostly rejections and centre crops
        (400, 60, (0.5, 1.0), (0.75, 4 / 3)),
        (7, 5, (0.08, 1.0), (0.5, 2.0)),  # rounding matters
        (1, 1, (0.08, 1.0), (0.75, 4 / 3)),
    ],
)
def test_boxes_are_distributed_as_torchvision_s(height, width, scale, ratio):
    count = 4000
    reference = torchvision_boxes(height, width, scale, ratio, count, 0)
    box = ours(height, width, scale, ratio, 15 * count)

    def summaries(b):
        top, left, h, w = b.T
        return {"top": top, "left": left, "height": h, "width": w, "area": h * w,
                "ratio": w / h, "right": left + w, "bottom": top + h}  # fmt: skip

    for name, values in summaries(box).items():
        distance, critical = kolmogorov(values, summaries(reference)[name])
        assert distance <= critical, f"{name}: {distance:.4f} > {critical:.4f}"


def float_boxes(height, width, scale, ratio, count):
    """torchvision's rejection loop in vectorised floating point; for images that always fit."""
    rng = np.random.default_rng(0)
    sizes = np.zeros((count, 2), int)
    left_over = np.arange(count)
    while len(left_over):
        area = height * width * rng.uniform(*scale, len(left_over))
        aspect = np.exp(rng.uniform(*np.log(ratio), len(left_over)))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        sizes[left_over[fits]] = np.stack([h, w], 1)[fits]
        left_over = left_over[~fits]
    top = rng.integers(0, height - sizes[:, 0] + 1)
    return np.column_stack([top, rng.integers(0, width - sizes[:, 1] + 1), sizes])


def test_boxes_of_a_photo_are_distributed_as_floating_point_s_to_half_a_percent():
    box = ours(375, 500, (0.08, 1.0), (0.75, 4 / 3), 200_000)
    reference = float_boxes(375, 500, (0.08, 1.0), (0.75, 4 / 3), 200_000)
    for axis in range(4):
        distance, critical = kolmogorov(box[:, axis], reference[:, axis])
        assert critical < 0.009 and distance <= critical, (axis, distance)


def test_the_comparison_with_torchvision_can_fail():
    a = ours(375, 500, (0.08, 1.0), (0.75, 4 / 3), 4000)
    b = ours(375, 500, (0.10, 1.0), (0.75, 4 / 3), 4000)
    distance, _ = kolmogorov(a[:, 2] * a[:, 3], b[:, 2] * b[:, 3])
    assert distance > 0.015  # two hundredths of scale are visible


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 50), (50, 1)])
def test_the_fallback_is_torchvision_s_centre_crop(height, width):
    box = set(map(tuple, ours(height, width, (0.9, 1.0), (0.75, 4 / 3), 50).tolist()))
    reference = torchvision_boxes(height, width, (0.9, 1.0), (0.75, 4 / 3), 50, 0)
    assert box == set(map(tuple, reference.tolist())) and len(box) == 1


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_flips_come_with_their_probability(probability):
    sampler = RandomResizedCrop(flip_probability=probability)
    flip = sampler.draw(0, DIGEST, 50, 60, 0, 20_000).flip
    spread = 5 * math.sqrt(probability * (1 - probability) / 20_000)
    assert abs(flip.mean() - probability) <= spread


def test_neighbouring_views_and_images_are_independent():
    boxes = [
        RandomResizedCrop().draw(0, hashlib.sha256(bytes([i, j])).digest(), 375, 500, 0, 2).box
        for i in range(45) for j in range(45)
    ]  # fmt: skip
    area = np.array(boxes).astype(float)[..., 2:].prod(axis=-1)
    assert abs(np.corrcoef(area[:, 0], area[:, 1])[0, 1]) < 5 / math.sqrt(len(area))
    assert abs(np.corrcoef(area[1:, 0], area[:-1, 0])[0, 1]) < 5 / math.sqrt(len(area))


def test_162_padded_crops_are_every_shift_and_flip_once():
    sampler = PaddedCrop(padding=4)
    views = sampler.draw(7, DIGEST, 32, 32, 0, 162)
    seen = {(*map(int, box), int(flip)) for box, flip in zip(views.box, views.flip, strict=True)}
    shifts = range(9)
    assert sampler.distinct_views == 162
    assert seen == {(i, j, 32, 32, flip) for i in shifts for j in shifts for flip in (0, 1)}


def test_padded_crops_come_in_an_order_of_each_image_s_own():
    first = [
        PaddedCrop().draw(0, hashlib.sha256(bytes([i, j])).digest(), 32, 32, 0, 1)
        for i in range(60) for j in range(60)
    ]  # fmt: skip
    number = [int(v.box[0, 0]) * 18 + int(v.box[0, 1]) * 2 + int(v.flip[0]) for v in first]
    counts = np.bincount(number, minlength=162)
    expected = len(first) / 162
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 161 + 6 * math.sqrt(2 * 161)  # chi2 has mean 161 and variance 2 * 161


def test_more_padded_crops_than_there_are_is_misuse():
    with pytest.raises(UsageError, match="162 distinct views"):
        PaddedCrop().draw(0, DIGEST, 32, 32, 100, 63)


@given(sides, sides)
def test_the_centre_is_torchvision_s_evaluation_crop_in_one_box(height, width):
    """Resize the shorter side to 256, cut the central 224: the source pixels that this covers."""
    box = CentreCrop().draw(0, DIGEST, height, width, 0, 1).box[0].astype(int)
    scale = min(height, width) / 256
    assert box[2] == box[3] and abs(box[2] - 224 * scale) <= 0.5
    for side, first, extent in ((height, *box[[0, 2]]), (width, *box[[1, 3]])):
        assert first >= 0 and first + extent <= side
        assert abs((first + extent / 2) - side / 2) <= 0.5  # nothing is nearer the centre


def test_the_centre_has_one_view_or_two_with_its_mirror_image():
    plain, both = CentreCrop(crop_ratio=1.0), CentreCrop(crop_ratio=1.0, flip=True)
    assert (plain.distinct_views, both.distinct_views) == (1, 2)
    views = both.draw(9, DIGEST, 30, 50, 0, 2)
    assert views.box.tolist() == [[0, 10, 30, 30]] * 2 and views.flip.tolist() == [0, 1]
    assert both.draw(9, DIGEST, 30, 50, 1, 1).flip.tolist() == [1]
    with pytest.raises(UsageError, match="1 distinct views: use at most --crops 1"):
        plain.draw(9, DIGEST, 30, 50, 0, 2)
    assert CentreCrop(crop_ratio=0.001).draw(0, DIGEST, 3, 3, 0, 1).box.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("sampler", [*SAMPLERS, CentreCrop(crop_ratio=0.9, flip=True)])
def test_samplers_survive_json(sampler):
    assert sampler_from_json(sampler.to_json()) == sampler


def test_unknown_samplers_are_refused():
    with pytest.raises(FormatVersion, match="newer teachonce"):
        sampler_from_json({"kind": "random-erasing", "version": 1})
    with pytest.raises(FormatVersion, match="version 2"):
        sampler_from_json({**PaddedCrop().to_json(), "version": 2})


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomResizedCrop(scale=(0.0, 1.0)),
        lambda: RandomResizedCrop(scale=(0.5, 0.4)),
        lambda: RandomResizedCrop(scale=(0.5, 1.4)),
        lambda: RandomResizedCrop(ratio=(0.0, 1.0)),
        lambda: RandomResizedCrop(flip_probability=1.5),
        lambda: PaddedCrop(padding=-1),
        lambda: CentreCrop(crop_ratio=0.0),
        lambda: CentreCrop(crop_ratio=1.1),
        lambda: RandomResizedCrop().draw(-1, DIGEST, 3, 3, 0, 1),
        lambda: RandomResizedCrop().draw(0, b"short", 3, 3, 0, 1),
        lambda: RandomResizedCrop().draw(0, DIGEST, 0, 3, 0, 1),
        lambda: RandomResizedCrop().draw(0, DIGEST, 70_000, 3, 0, 1),
        lambda: RandomResizedCrop().draw(0, DIGEST, 60_000, 60_000, 0, 1),
        lambda: RandomResizedCrop().draw(0, DIGEST, 3, 3, -1, 1),
    ],
)
def test_values_out_of_range_are_misuse(make):
    with pytest.raises(UsageError, match="expected"):
        make()


KNOWN_BOXES = [[16, 3, 352, 457], [17, 66, 325, 409], [101, 3, 242, 299], [110, 205, 187, 180]]
KNOWN_FLIPS = [1, 1, 1, 0]
KNOWN_PADDED = [[2, 1, 32, 32], [0, 0, 32, 32], [7, 4, 32, 32], [2, 6, 32, 32]]
KNOWN_PADDED_FLIPS = [1, 1, 1, 1]
