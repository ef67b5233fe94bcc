"""The loaders replay exactly what the pixel contract says, and fail loudly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from odd_images import write_folder

from storage.errors import StoreMismatch, TrainingError, UsageError
from storage.images import ImageStatus, scan_folder
from storage.pixels import cut_view, decode_rgb, pad_image
from trainer.replay import ffcv_loader
from trainer.replay import torch_loader as torch_loader_module
from trainer.replay.beton import Beton, pack, sidecar_path
from trainer.replay.decoder import ReplayDecoder
from trainer.replay.loader import FFCVReplayLoader, TorchReplayLoader
from trainer.replay.row import DECODED, RETURNED, ROW_FUNCTION

SETTINGS = {
    "crops": {"size": 32, "views": 3, "interpolation": "bilinear", "padding": 0},
    "padded": {"size": 19, "views": 2, "interpolation": "bicubic", "padding": 4},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    write_folder(root / "data")
    folder = scan_folder(root / "data")
    pack(folder, root / "odd.beton")
    return folder, Beton.open(root / "odd.beton")


@pytest.fixture(scope="module", params=SETTINGS)
def fast(request, packed):
    """An FFCV loader, compiled once for all tests here."""
    return FFCVReplayLoader(packed[1], batch_images=4, workers=2, **SETTINGS[request.param])


def torch_loader(fast, workers=0, **changes):
    settings = {
        "size": fast.size, "views": fast.views, "batch_images": fast.batch_images,
        "interpolation": fast.contract.interpolation, "padding": fast.contract.padding,
        **changes,
    }  # fmt: skip
    return TorchReplayLoader(fast.beton, workers=workers, **settings)


def random_plan(loader, seed=0):
    """(rows in random order, box, flip): any box inside the padded images."""
    rng = np.random.default_rng(seed)
    beton = loader.beton
    sides = beton.sizes.astype(np.int64)[:, None] + 2 * loader.contract.padding
    sides = np.repeat(sides, loader.views, axis=1)
    extent = np.maximum(1, (sides * rng.uniform(0.05, 1, sides.shape)).astype(np.int64))
    corner = (rng.uniform(0, 1, sides.shape) * (sides - extent + 1)).astype(np.int64)
    box = np.concatenate([corner, extent], axis=-1).astype(np.uint16)
    flip = rng.integers(0, 2, box.shape[:2]).astype(np.uint8)
    return rng.permutation(np.flatnonzero(beton.status == ImageStatus.OK)), box, flip


def collect(batches):
    """Everything of an epoch, copied: (images, rows, digests, failed)."""
    parts = [
        (batch.images.numpy().copy(), batch.rows, batch.digests.copy(), batch.failed.copy())
        for batch in batches
    ]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_ffcv_torch_and_the_contract_agree_on_every_kind_of_image(fast, packed):
    folder, beton = packed
    for epoch in range(2):  # the second refills the tables that the compiled code reads
        rows, box, flip = random_plan(fast, seed=epoch)
        images, taken, digests, failed = collect(fast.epoch(rows, box, flip))
        np.testing.assert_array_equal(taken, rows)
        np.testing.assert_array_equal(digests, beton.digests[rows])
        assert not failed.any()
        oracle = collect(torch_loader(fast, workers=2 * epoch).epoch(rows, box, flip))
        assert same(oracle, (images, taken, digests, failed))
        for position, row in enumerate(rows):
            source = decode_rgb(folder.path(row).read_bytes())
            padded = pad_image(source, fast.contract.padding)
            for view in range(fast.views):
                expected = cut_view(
                    padded, box[row, view], flip[row, view], fast.size,
                    fast.contract.interpolation,
                )  # fmt: skip
                assert np.array_equal(images[position, view], expected), beton.keys[row]


def test_the_rest_of_an_epoch_is_the_same_when_resumed(fast):
    rows, box, flip = random_plan(fast)
    whole = collect(fast.epoch(rows, box, flip))
    rest = collect(fast.epoch(rows[9:], box, flip))
    assert same(rest, tuple(part[9:] for part in whole))


def test_a_loader_cuts_other_sizes_in_later_epochs_as_one_made_for_them_does(fast):
    rows, box, flip = random_plan(fast)
    before = fast.size
    for size in (11, 40, before):
        fast.resize(size)
        oracle = collect(torch_loader(fast).epoch(rows, box, flip))
        assert oracle[0].shape[2:4] == (size, size)
        assert same(oracle, collect(fast.epoch(rows, box, flip)))
    with pytest.raises(UsageError, match="size is 5000"):
        fast.resize(5000)
    assert fast.size == before


def test_the_last_batch_is_short_and_an_empty_epoch_is_empty(fast):
    rows, box, flip = random_plan(fast)
    for loader in (fast, torch_loader(fast)):
        sizes = [len(batch.rows) for batch in loader.epoch(rows[:10], box, flip)]
        assert sizes == [4, 4, 2]
        assert list(loader.epoch(rows[:0], box, flip)) == []


def test_leaving_an_epoch_early_ends_its_thread(fast):
    rows, box, flip = random_plan(fast)
    before = threading.active_count()
    for taken in (1, 2, 5):
        batches = fast.epoch(np.tile(rows, 20), box, flip)
        for _ in range(taken):
            next(batches)
        batches.close()
        assert threading.active_count() == before
    batches = fast.epoch(rows, box, flip)
    next(batches)
    del batches  # as `break` in a for loop does
    assert threading.active_count() == before
    assert len(collect(fast.epoch(rows, box, flip))[1]) == len(rows)


def test_two_epochs_of_one_loader_at_a_time_are_refused(fast):
    rows, box, flip = random_plan(fast)
    running = fast.epoch(rows, box, flip)
    next(running)
    with pytest.raises(UsageError, match="still running"):
        next(fast.epoch(rows, box, flip))
    running.close()


@pytest.mark.parametrize("failure", [ValueError("broken on purpose"), SystemExit()])
def test_a_failing_thread_reaches_the_caller_within_a_second(fast, monkeypatch, failure):
    rows, box, flip = random_plan(fast)
    run_pipeline = ffcv_loader._GuardedEpoch.run_pipeline

    def fail_at_third(self, number, *rest):
        if number == 2:
            raise failure
        return run_pipeline(self, number, *rest)

    monkeypatch.setattr(ffcv_loader._GuardedEpoch, "run_pipeline", fail_at_third)
    batches = fast.epoch(rows, box, flip)
    next(batches)
    next(batches)
    start = time.monotonic()
    with pytest.raises(TrainingError, match=type(failure).__name__):
        next(batches)
    assert time.monotonic() - start < 1


@pytest.fixture
def damaged(packed, tmp_path):
    """A copy of the beton whose first JPEG's and first PNG's bytes are destroyed."""
    _, beton = packed
    path = tmp_path / "damaged.beton"
    shutil.copy(beton.path, path)
    shutil.copy(sidecar_path(beton.path), sidecar_path(path))
    row = next(row for row, key in enumerate(beton.keys) if key.endswith("/420.jpg"))
    record = beton.records[row]
    with path.open("r+b") as file:
        file.seek(int(record["ptr"]) + 200)
        file.write(bytes(range(256))[: min(256, int(record["size"]) - 200)])
    return Beton.open(path), row


def test_bytes_damaged_after_packing_are_reported_never_black(damaged):
    beton, row = damaged
    settings = SETTINGS["crops"]
    fast = FFCVReplayLoader(beton, batch_images=4, workers=1, **settings)
    rows, box, flip = random_plan(fast)
    images, taken, digests, failed = collect(fast.epoch(rows, box, flip))
    assert taken[failed].tolist() == [row]
    assert not images[failed].any()
    assert images[~failed].reshape(len(rows) - 1, -1).any(axis=1).all()
    np.testing.assert_array_equal(digests, beton.digests[rows])


def test_an_exception_in_compiled_code_fails_its_row_alone(packed, monkeypatch):
    """As when there is no memory for an image's pixels."""

    @numba.cfunc(ROW_FUNCTION)
    def fails(row, status, mode, warns, height, width, data, length, out, views, side, tables):
        if row == 2:
            raise MemoryError
        return RETURNED + DECODED

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: printed.append(raised.exc_type))
    monkeypatch.setattr(ReplayDecoder, "row_code", lambda self: fails.ctypes)
    fast = FFCVReplayLoader(packed[1], batch_images=4, workers=1, **SETTINGS["crops"])
    _, taken, _, failed = collect(fast.epoch(*random_plan(fast)))
    assert taken[failed].tolist() == [2]
    assert printed == [MemoryError]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_torch_worker_reaches_the_caller(damaged, workers):
    beton, _ = damaged
    loader = TorchReplayLoader(beton, batch_images=4, workers=workers, **SETTINGS["crops"])
    plan = random_plan(loader)
    beton.path.unlink()
    with pytest.raises(TrainingError, match=r"replay worker failed.*damaged\.beton"):
        next(loader.epoch(*plan))


KILLED = """
import multiprocessing, sys, time
import numpy as np
from test_loader import SETTINGS, collect, random_plan
from storage.errors import TrainingError
from trainer.replay.beton import Beton
from trainer.replay.loader import TorchReplayLoader

beton = Beton.open(sys.argv[1])
loader = TorchReplayLoader(beton, batch_images=4, workers=2, **SETTINGS["crops"])
rows, box, flip = random_plan(loader)
batches = loader.epoch(np.tile(rows, 50), box, flip)
next(batches)
multiprocessing.active_children()[0].kill()
start = time.monotonic()
try:
    collect(batches)
except TrainingError as error:
    print(f"{time.monotonic() - start:.2f} {error}", flush=True)
"""


def test_a_killed_torch_worker_reaches_the_caller_within_a_second(packed):
    # a process of its own: torch's handler of the signal raises wherever Python is at that moment
    found = subprocess.run(
        [sys.executable, "-c", KILLED, str(packed[1].path)],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seconds, _, message = found.stdout.partition(" ")
    assert re.match(r"a replay worker failed.*(killed|exited)", message), found.stderr
    assert float(seconds) < 1


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_torch_worker_killed_in_the_middle_of_a_batch_is_said_to_be(packed, monkeypatch, error):
    def reset(*_, **__):
        raise error
        yield

    loader = TorchReplayLoader(packed[1], batch_images=4, workers=1, **SETTINGS["crops"])
    rows, box, flip = random_plan(loader)
    monkeypatch.setattr(torch_loader_module, "DataLoader", reset)
    with pytest.raises(TrainingError, match="a replay worker failed: it was killed or exited"):
        collect(loader.epoch(rows, box, flip))


def test_masked_rows_are_refused_by_name(fast):
    rows, box, flip = random_plan(fast)
    masked = np.flatnonzero(fast.beton.status != ImageStatus.OK)
    for loader in (fast, torch_loader(fast)):
        with pytest.raises(StoreMismatch, match=r"bad_.*masked"):
            loader.epoch(np.append(rows, masked), box, flip)


def test_boxes_outside_an_image_are_refused_by_name(fast):
    rows, box, flip = random_plan(fast)
    for change in (0, 1, 2, 3):
        wrong = box.copy()
        wrong[rows[5], 1, change] = 5000
        with pytest.raises(StoreMismatch, match="labels are of other images") as caught:
            fast.epoch(rows, wrong, flip)
        assert fast.beton.keys[rows[5]] in str(caught.value)
    wrong[rows[5], 1] = (0, 0, 0, 5)
    with pytest.raises(StoreMismatch, match="empty"):
        fast.epoch(rows, wrong, flip)


def test_plans_of_another_shape_are_refused(fast):
    rows, box, flip = random_plan(fast)
    with pytest.raises(UsageError, match="don't fit"):
        fast.epoch(rows, box[:-1], flip[:-1])
    with pytest.raises(UsageError, match="don't fit"):
        fast.epoch(rows, box[:, :1], flip[:, :1])
    with pytest.raises(UsageError, match="rows"):
        fast.epoch(np.array([10_000]), box, flip)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("size", 0), ("size", 5000), ("views", 0), ("batch_images", 0), ("workers", -1),
     ("interpolation", "lanczos"), ("padding", -1)],
)  # fmt: skip
def test_settings_out_of_range_are_named(packed, setting, value):
    settings = {"size": 32, "views": 2, "batch_images": 4, "workers": 0, setting: value}
    with pytest.raises(UsageError, match=setting):
        TorchReplayLoader(packed[1], **settings)


def test_torchs_own_threads_are_left_alone(packed):
    before = torch.get_num_threads()
    workers = 1 if before > 1 else min(2, os.cpu_count() or 1)
    FFCVReplayLoader(packed[1], size=32, views=1, batch_images=2, workers=workers)
    assert torch.get_num_threads() == before
