"""Quasi-random order: every image once, no more pages open than memory allows, pages by process."""

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import UsageError
from trainer.order import Pages, paged_order
from trainer.pass_config import OrderConfig
from trainer.plan import plan_epoch, share_of_rank
from trainer.replay import pages as reading
from trainer.replay.pages import file_pages, with_pages_read


def layout(counts, open_pages, share=1, processes=1):
    page = np.repeat(np.arange(len(counts)) * 3 + 5, counts)  # numbers of pages need not follow
    return Pages(page, open_pages, share * processes, processes)


def most_open(page):
    """Pages between their first and their last image, at the worst moment."""
    first = {p: page.index(p) for p in page}
    last = {p: len(page) - 1 - page[::-1].index(p) for p in page}
    return max(sum(first[p] <= t <= last[p] for p in first) for t in range(len(page)))


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=20), open_pages=st.integers(1, 12),
    share=st.integers(1, 4), processes=st.integers(1, 4), seed=st.integers(0, 999),
)  # fmt: skip
def test_every_image_comes_once_and_no_process_opens_more_pages_than_it_may(
    counts, open_pages, share, processes, seed
):
    pages = layout(counts, open_pages, share, processes)
    order = paged_order(np.random.default_rng(seed), pages)
    assert sorted(order.tolist()) == list(range(len(pages.page)))
    whole = len(order) // pages.step_images * pages.step_images
    read = Counter()
    for rank in range(processes):
        own = share_of_rank(order[:whole], pages.step_images, rank, processes)
        if len(own):
            assert most_open(pages.page[own].tolist()) <= open_pages
            read.update(set(pages.page[own].tolist()))
    assert sum(times - 1 for times in read.values()) <= processes - 1  # pages at the cuts alone


def test_at_least_half_the_pages_that_may_be_open_are_drawn_from_at_any_time():
    pages = layout([50] * 60, open_pages=10)
    page = pages.page[paged_order(np.random.default_rng(0), pages)]
    for start in range(len(page) - 200):
        assert len(set(page[start : start + 200].tolist())) >= 5


def test_the_order_is_a_function_of_seed_and_epoch_and_random_where_all_pages_fit():
    pages = layout([4] * 30, open_pages=5)

    def order(seed, epoch, pages):
        common = {"num_images": 120, "stored_views": 2, "views_per_image": 1}
        return plan_epoch(seed, epoch, pages=pages, **common).order.tolist()

    assert order(0, 3, pages) == order(0, 3, pages)
    assert len({tuple(order(seed, epoch, pages)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    whole = layout([4] * 30, open_pages=30)
    moved = [np.abs(np.argsort(order(seed, 0, whole)) - np.arange(120)).mean() for seed in range(9)]
    assert np.mean(moved) == pytest.approx(120 / 3, rel=0.1)  # of a uniform permutation


def test_a_page_is_eight_mebibytes_of_the_file():
    begins = np.array([4096, (8 << 20) - 1, 8 << 20, 80 << 20], np.uint64)
    assert file_pages(begins).tolist() == [0, 0, 1, 10]
    assert OrderConfig(kind="quasi-random", memory_mib=100).open_pages == 12
    with pytest.raises(UsageError, match="8 MiB or more"):
        OrderConfig(memory_mib=4)
    with pytest.raises(UsageError, match="random, quasi-random"):
        OrderConfig(kind="quasirandom")


def test_every_page_is_asked_for_once_and_before_its_first_image(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"0")
    asked = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _file, start, size, _how: asked.append((start, size))
    )
    page = np.repeat(np.random.default_rng(0).permutation(40), 3)
    seen = []
    for batch in with_pages_read(iter(page.reshape(-1, 6)), tmp_path / "file", page, 6):
        seen.append(batch)
        assert set(batch * reading.PAGE_BYTES) <= {start for start, _ in asked}
        assert len(asked) <= 2 * (len(seen) + reading.AHEAD)
    assert np.array_equal(np.concatenate(seen), page)
    assert sorted(asked) == [(p * reading.PAGE_BYTES, reading.PAGE_BYTES) for p in range(40)]
