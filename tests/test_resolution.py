"""Progressive resizing: FFCV's schedule of sides, and students that can't follow it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from storage.errors import UsageError
from trainer.config import StudentConfig
from trainer.pass_config import ResolutionConfig
from trainer.resolution import check_sides


def published(epoch, begin, end, least, most):
    """FFCV's ImageNet script: interpolated, rounded to 32."""
    side = np.interp([epoch], [begin, end], [least, most])[0]
    return int(np.round(side / 32)) * 32


def test_the_sides_are_those_of_ffcvs_published_schedule():
    schedule = ResolutionConfig(start=160, end=192, begin_epoch=65, end_epoch=76)
    for epoch in range(88):
        assert schedule.side(epoch) == published(epoch, 65, 76, 160, 192)
    assert ResolutionConfig().side(3) is None


@given(
    epoch=st.integers(0, 40), begin=st.integers(0, 20), length=st.integers(1, 20),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)  # fmt: skip
def test_any_schedule_is_the_rounded_straight_line(epoch, begin, length, sides):
    least, most = (32 * side for side in sides)
    schedule = ResolutionConfig(start=least, end=most, begin_epoch=begin, end_epoch=begin + length)
    assert schedule.side(epoch) == published(epoch, begin, begin + length, least, most)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"start": 100}, "multiple of resolution.step 32"), ({"end": 64}, "need resolution.start"),
     ({"start": 2048}, "8 to 1024"), ({"start": 64, "step": 0}, "at least 1"),
     ({"start": 64, "end": 96, "begin_epoch": 5, "end_epoch": 4}, "begin_epoch 5 or later"),
     ({"start": 64, "begin_epoch": -1}, "0 or more")],
)  # fmt: skip
def test_schedules_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        ResolutionConfig(**settings)


class OneSize(nn.Linear):
    """Takes crops of 16 pixels alone."""

    def forward(self, images):
        if images.shape[-1] != 16:
            raise AssertionError("Input height (8) doesn't match model (16).")
        return super().forward(images.flatten(1))


def test_a_student_of_one_size_is_refused_by_name_and_left_in_its_mode():
    student = OneSize(3 * 16 * 16, 4).train()
    config = StudentConfig(arch="timm:vit", num_classes=4, input_size=16, mean=(0.5,) * 3,
                           std=(0.5,) * 3, interpolation="bilinear", classes=None)  # fmt: skip
    check_sides(student, [16], config)
    with pytest.raises(UsageError, match=r"timm:vit can't take crops of 8 pixels .*doesn't match"):
        check_sides(student, [8, 16], config)
    assert student.training
