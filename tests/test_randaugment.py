"""RandAugment in integers against torchvision's uint8 RandAugment, operation by operation."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandAugment as Reference
from torchvision.transforms.autoaugment import _apply_op

from storage import randaugment
from storage.augment import Augment
from storage.errors import UsageError
from storage.randaugment import KINDS, MAX_LEVEL, SIGNED, RandAugment, rotation_table

DIGEST = hashlib.sha256(b"an image").digest()
THEIR_NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
EXACT = {"identity", "translate-x", "translate-y", "posterise", "solarise", "equalise"}
BORDERS = ("shear-x", "shear-y", "rotate")  # may read a point on the border of two pixels


def picture(seed: int, side: int) -> np.ndarray:
    """Noise over a limited range of levels, so that every operation has something to do."""
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(0, 256, 2))
    return rng.integers(low, high + 1, (side, side, 3)).astype(np.uint8)


def torchvision_s(pixels: np.ndarray, name: str, level: int) -> np.ndarray:
    magnitudes, _ = Reference()._augmentation_space(31, pixels.shape[:2])[name]
    size = float(magnitudes[abs(level)]) if magnitudes.ndim else 0.0
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    found = _apply_op(tensor, name, math.copysign(size, level), InterpolationMode.NEAREST, None)
    return found.permute(1, 2, 0).numpy()


COLOURS = [number for number, kind in enumerate(KINDS) if kind not in BORDERS]


@pytest.mark.parametrize("number", COLOURS, ids=lambda number: KINDS[number])
def test_every_operation_is_torchvision_s_exactly_or_to_one_level(number):
    for seed, side in enumerate((24, 33, 64)):
        pixels = picture(seed, side)
        for level in range(MAX_LEVEL + 1):
            for way in (1, -1) if number in SIGNED else (1,):
                operation = RandAugment(count=1, magnitude=level)
                ours = operation.apply(pixels, np.array([number, way * level], np.int16))
                theirs = torchvision_s(pixels, THEIR_NAMES[number], way * level)
                wrong = np.abs(ours.astype(int) - theirs.astype(int)).max()
                assert wrong <= (0 if KINDS[number] in EXACT else 1), (side, way * level)


@pytest.mark.parametrize("kind", BORDERS)
def test_shears_and_turns_are_torchvision_s_but_on_the_border_of_two_pixels(kind, monkeypatch):
    """There its floats decide; a thousandth of a pixel to one side they agree with ours."""
    number, warp, nudge = KINDS.index(kind), randaugment.warp, [0, 0]

    def nudged(pixels, across, down):
        return warp(pixels, (*across[:2], across[2] + nudge[0]), (*down[:2], down[2] + nudge[1]))

    monkeypatch.setattr(randaugment, "warp", nudged)
    shares = []
    for seed, side in enumerate((24, 33, 64)):
        pixels = picture(seed, side)
        for level in range(-MAX_LEVEL, MAX_LEVEL + 1):
            operation, draw = RandAugment(count=1, magnitude=abs(level)), [number, level]
            theirs = torchvision_s(pixels, THEIR_NAMES[number], level)
            agreeing = np.zeros((side, side), bool)
            for nudge[:] in itertools.product((0, -40, 40), repeat=2):
                same = (operation.apply(pixels, np.array(draw, np.int16)) == theirs).all(axis=-1)
                if nudge == [0, 0]:
                    shares.append(1 - same.mean())
                agreeing |= same
            assert agreeing.all(), (side, level)
    assert np.mean(shares) < 0.005


def test_rotations_are_cosines_and_sines_rounded():
    angles = np.radians(np.arange(31))
    wanted = np.rint(65_536 * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert np.array_equal(rotation_table(), wanted)


def test_operations_and_signs_come_equally_often():
    draws = Augment((RandAugment(count=3, magnitude=7),)).draw(0, DIGEST, 0, 14_000)
    kind, level = draws[:, 0::2], draws[:, 1::2]
    for place in range(3):
        counts = np.bincount(kind[:, place], minlength=14)
        assert ((counts - 1000) ** 2 / 1000).sum() < 13 + 6 * math.sqrt(2 * 13)
    signed = np.isin(kind, list(SIGNED))
    assert set(level[signed].tolist()) == {-7, 7}
    assert abs((level[signed] > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(signed.sum())
    assert set(level[np.isin(kind, (10, 11))].tolist()) == {7}
    assert set(level[np.isin(kind, (0, 12, 13))].tolist()) == {0}


def test_more_operations_begin_as_fewer():
    few, more = (Augment((RandAugment(count=count),)).draw(0, DIGEST, 0, 50) for count in (2, 5))
    assert np.array_equal(more[:, :4], few)


@pytest.mark.parametrize("changes", [{"count": 0}, {"count": 9}, {"magnitude": 31},
                                     {"magnitude": -1}])  # fmt: skip
def test_settings_out_of_range_are_misuse(changes):
    with pytest.raises(UsageError, match="expected"):
        RandAugment(**changes)


def test_levels_of_another_magnitude_are_faults():
    operation = RandAugment(count=1, magnitude=9)
    good = np.array([[1, -9], [0, 0], [10, 9], [13, 0]], np.int16)
    bad = np.array([[1, 8], [0, 9], [10, -9], [13, 9], [-1, 0], [14, 0]], np.int16)
    assert not operation.faults(good).any() and operation.faults(bad).all()
