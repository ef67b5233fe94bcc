"""Labels on the device, and those of the next pass read while this one trains."""

import threading

import numpy as np
import pytest
import torch

from storage.errors import CorruptStore
from trainer import label_plane as planes
from trainer.label_plane import label_plane
from trainer.read_ahead import ReadAhead

CPU = torch.device("cpu")


def test_what_was_begun_is_taken_and_anything_else_is_read_now():
    ahead, threads = ReadAhead(), []

    def read(value):
        threads.append(threading.current_thread())
        return value

    ahead.start("a", lambda: read(1))
    assert ahead.take("a", lambda: read(2)) == 1
    assert threads[0] is not threading.current_thread()
    assert ahead.take("a", lambda: read(3)) == 3
    ahead.start("b", lambda: read(4))
    assert ahead.take("c", lambda: read(5)) == 5
    assert threads[-1] is threading.current_thread()


def test_an_error_of_the_thread_is_raised_where_the_value_is_taken():
    def fail():
        raise CorruptStore("a shard is damaged")

    ahead = ReadAhead()
    ahead.start(0, fail)
    with pytest.raises(CorruptStore, match="a shard is damaged"):
        ahead.take(0, lambda: None)


@pytest.mark.parametrize("most", [0, 4 << 30])
def test_a_plane_gives_rows_as_the_arrays_do(monkeypatch, most):
    monkeypatch.setattr(planes, "MOST_ON_DEVICE", most)
    rng = np.random.default_rng(0)
    index = rng.integers(0, 1 << 16, (9, 2, 4), dtype=np.uint16)
    code = rng.integers(0, 256, (9, 2, 4), dtype=np.uint8)
    tail = rng.integers(0, 256, (9, 2), dtype=np.uint8)
    rows = np.array([7, 0, 7, 3])
    got = label_plane(index, code, tail, CPU).batch(torch.from_numpy(rows), CPU)
    assert [part.dtype for part in got] == [torch.int64, torch.uint8, torch.uint8]
    wanted = (index[rows].reshape(8, 4), code[rows].reshape(8, 4), tail[rows].reshape(8))
    for ours, theirs in zip(got, wanted, strict=True):
        assert np.array_equal(ours.numpy(), theirs)
