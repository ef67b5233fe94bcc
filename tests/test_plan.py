"""The epoch plan: set algebra, independence of seeds, no image or plane twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import UsageError
from trainer.plan import images_per_step, num_planes, plan_epoch, steps_per_epoch

SIZES = {
    "num_images": st.integers(1, 200),
    "stored_views": st.integers(1, 40),
    "epoch": st.integers(0, 50),
    "seed": st.integers(0, 2**31),
}


@given(**SIZES)
def test_an_epoch_visits_every_image_once(num_images, stored_views, epoch, seed):
    plan = plan_epoch(
        seed, epoch, num_images=num_images, stored_views=stored_views, views_per_image=1
    )
    assert sorted(plan.order.tolist()) == list(range(num_images))


@given(stored_views=st.integers(1, 40), views=st.integers(1, 8), seed=st.integers(0, 99))
def test_planes_are_used_up_before_one_is_used_again(stored_views, views, seed):
    if views > stored_views:
        return
    planes = stored_views // views
    first_views = [
        plan_epoch(
            seed, epoch, num_images=3, stored_views=stored_views, views_per_image=views
        ).first_view
        for epoch in range(2 * planes)
    ]
    every_plane = [plane * views for plane in range(planes)]
    assert sorted(first_views[:planes]) == every_plane
    assert sorted(first_views[planes:]) == every_plane


def test_seeds_and_epochs_do_not_share_a_stream():
    def order(seed, epoch):
        return plan_epoch(
            seed, epoch, num_images=50, stored_views=4, views_per_image=4
        ).order.tolist()

    assert order(0, 1) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    assert order(3, 2) == order(3, 2)


def test_asking_for_more_views_than_are_stored_is_refused():
    with pytest.raises(UsageError, match="holds 3 views"):
        num_planes(3, 4)


def test_batch_size_counts_crops():
    assert images_per_step(128, 4, 1000) == 32
    assert images_per_step(128, 4, 5) == 5  # a small data set is one step, not none
    assert steps_per_epoch(100, 32) == 3
    with pytest.raises(UsageError, match="not a multiple"):
        images_per_step(10, 4, 1000)


def test_order_is_int64():
    plan = plan_epoch(0, 0, num_images=4, stored_views=4, views_per_image=2)
    assert plan.order.dtype == np.int64
