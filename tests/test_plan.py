"""The epoch plan: set algebra, independence of seeds, no image or plane twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import UsageError
from trainer.plan import images_per_step, num_planes, plan_epoch, plan_run, steps_per_epoch

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


def test_fkds_counting_ends_in_single_view_epochs_as_published():
    """300 epochs with 4 views: 74 passes with 4 views of 5,004 steps, then 4 with one view."""
    passes = plan_run(1_281_167, 1024, 4, 300, "views")
    assert [p.views for p in passes] == [4] * 74 + [1] * 4
    assert [p.lr_epoch for p in passes] == [*range(0, 296, 4), 296, 297, 298, 299]
    assert passes[0].steps == 1_281_167 // 256
    assert passes[-1].steps == 1_281_167 // 1024


@given(
    num_images=st.integers(1, 500), views=st.integers(1, 6), images=st.integers(1, 40),
    epochs=st.integers(1, 30), counting=st.sampled_from(["passes", "views"]),
)  # fmt: skip
def test_passes_follow_each_other_and_count_every_epoch_once(
    num_images, views, images, epochs, counting
):
    passes = plan_run(num_images, images * views, views, epochs, counting)
    ends = [p.first_step + p.steps for p in passes]
    assert [p.first_step for p in passes] == [0, *ends[:-1]]
    assert [p.number for p in passes] == list(range(len(passes)))
    if counting == "passes":
        assert len(passes) == epochs
        assert {(p.views, p.lr_epoch) for p in passes} == {(views, None)}
    else:
        counted = [e for p in passes for e in range(p.lr_epoch, p.lr_epoch + p.views)]
        assert counted == list(range(epochs))
