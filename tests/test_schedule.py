"""The learning rate of every step, against the published schedules written out."""

import itertools
import math

import pytest

from storage.errors import UsageError
from trainer.schedule import lr_at
from trainer.step_config import ScheduleConfig


def rates(peak: float = 0.4, epoch_steps: int = 10, epochs: int = 10, **settings) -> list[float]:
    config = ScheduleConfig(**settings)
    steps = range(epoch_steps * epochs + 1)
    return [lr_at(s, config, peak=peak, epoch_steps=epoch_steps, epochs=epochs) for s in steps]


def test_cosine_warms_up_then_falls_to_zero():
    found = rates(warmup_epochs=1.0)
    assert found[0] == pytest.approx(0.04)
    assert found[9] == found[10] == pytest.approx(0.4)
    assert found[55] == pytest.approx(0.2)
    assert found[100] == pytest.approx(0.0)
    assert all(a > b for a, b in itertools.pairwise(found[10:]))


def test_warm_up_starts_at_its_own_rate_and_cosine_ends_at_its_own():
    found = rates(warmup_epochs=2.0, warmup_lr=0.1, final_lr=0.01)
    assert found[0] == pytest.approx(0.1 + 0.3 / 20)
    assert found[19] == pytest.approx(0.4)
    assert found[100] == pytest.approx(0.01)


def test_step_is_a_tenth_after_every_thirty_epochs_as_kdep_has_it():
    found = rates(peak=0.3, epoch_steps=2, epochs=90, kind="step", step_epochs=30.0, gamma=0.1)
    assert found[59] == pytest.approx(0.3)
    assert found[60] == pytest.approx(0.03)
    assert found[120] == pytest.approx(0.003)
    assert len(set(found[:180])) == 3


def test_milestones_count_epochs_from_the_start_of_the_run():
    found = rates(kind="step", milestones=(3.0, 7.0), gamma=0.5)
    assert [found[29], found[30], found[69], found[70]] == pytest.approx([0.4, 0.2, 0.2, 0.1])


def test_linear_is_a_straight_line_and_constant_is_flat():
    linear = rates(kind="linear")
    assert linear == pytest.approx([0.4 * (1 - s / 100) for s in range(101)])
    assert set(rates(kind="constant")) == {0.4}


def test_cosine_equals_the_formula_of_the_paper():
    for step, found in enumerate(rates()):
        assert found == pytest.approx(0.2 * (1 + math.cos(math.pi * step / 100)))


@pytest.mark.parametrize(
    "settings",
    [{"kind": "cosin"}, {"warmup_epochs": -1.0}, {"gamma": 0.0}, {"milestones": (7.0, 3.0)},
     {"step_epochs": 0.0}, {"final_lr": -0.1}],
)  # fmt: skip
def test_impossible_schedules_are_refused_with_the_value(settings):
    with pytest.raises(UsageError, match="expected"):
        ScheduleConfig(**settings)
