"""Batch size: found by trying, cut when memory runs out; devices that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling import plain_labels, tiny_teacher
from torch import Tensor

from labelgen.batch_size import Backoff, grow_batch_size, measured_rate
from labelgen.forward import Forward
from labelgen.labelling import Labeller
from labelgen.run import generate
from labelgen.settings import choose_batch_size
from labelgen.target_options import TargetOptions
from storage.errors import TeacherError
from storage.manifest import read_manifest
from storage.store import LabelStore

SETTINGS: dict[str, Any] = {"crops": 4, "batch_size": 8, "block_images": 4, "workers": 1}


def out_of_memory_above(fits: int) -> Callable[[int], float]:
    """Crops/s that grow for ever, on a device that holds `fits` crops."""

    def rate(size: int) -> float:
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return float(size)

    return rate


@given(fits=st.integers(1, 5000), most=st.integers(1, 3000))
@settings(max_examples=80)
def test_batches_grow_to_the_last_doubling_that_fits(fits: int, most: int) -> None:
    found = grow_batch_size(out_of_memory_above(fits), most)
    assert 1 <= found <= min(fits, most)
    if found >= 32:  # nothing twice as large fits
        assert found * 2 > min(fits, most)
    elif most >= 32:  # a power of two below the first try
        assert found * 2 > fits


def test_batches_stop_growing_where_it_brings_less_than_three_percent() -> None:
    rates = {32: 100.0, 64: 180.0, 128: 190.0, 256: 194.0, 512: 500.0}
    tried = []

    def rate(size: int) -> float:
        tried.append(size)
        return rates[size]

    assert grow_batch_size(rate) == 128
    assert tried == [32, 64, 128, 256]


def test_a_device_without_room_for_one_crop_is_one_line() -> None:
    with pytest.raises(TeacherError, match="out of memory with a single crop"):
        grow_batch_size(out_of_memory_above(0))


def test_other_errors_while_batches_grow_are_not_taken_for_memory() -> None:
    def rate(size: int) -> float:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        grow_batch_size(rate)


def test_rate_counts_every_crop_that_is_forwarded() -> None:
    shapes = []
    rate = measured_rate(lambda pixels: shapes.append(pixels.shape), 4, torch.device("cpu"))
    assert rate(3) > 0
    assert set(shapes) == {(3, 4, 4, 3)}
    assert 2 <= len(shapes) <= 51


def test_on_a_cpu_the_batch_size_is_64_without_trying(tmp_path: Path) -> None:
    assert choose_batch_size(tiny_teacher(tmp_path)) == 64


@given(size=st.integers(1, 40), fits=st.integers(1, 40))
@settings(max_examples=60)
def test_backing_off_gives_every_row_once_and_in_order(size: int, fits: int) -> None:
    backoff, largest = Backoff(), []

    def double(part: Tensor) -> dict[str, Tensor]:
        if len(part) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest.append(len(part))
        return {"logits": part * 2}

    batch = torch.arange(size)[:, None]
    assert torch.equal(backoff(double, batch)["logits"], batch * 2)
    assert max(largest) <= fits
    parts = backoff.parts
    assert (parts == 1) == (size <= fits)
    assert torch.equal(backoff(double, batch)["logits"], batch * 2)
    assert backoff.parts == parts  # what didn't fit once isn't tried again


def limited_network(forward: Callable[..., Tensor], fits: int) -> Callable[..., Tensor]:
    """`Forward.logits` on a device that holds `fits` crops."""

    def logits(self: Forward, batch: Tensor) -> Tensor:
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch)

    return logits


def test_out_of_memory_splits_batches_and_the_receipts_say_so(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    monkeypatch.setattr(Forward, "logits", limited_network(Forward.logits, 3))
    generate(teacher, image_folder, tmp_path / "s", teacher_check=False, **SETTINGS)
    monkeypatch.undo()
    store = LabelStore.open(tmp_path / "s")
    assert store.spec.teachers["resnet8"].batch_size == 8
    devices = read_manifest(store.path).provenance["devices"]
    assert len(devices) == 1 and devices[0].endswith("batches in 4 parts (out of memory)")
    _, labels = plain_labels(store, teacher, image_folder)
    plane = store.read_plane(0, 4, "resnet8")
    assert (plane.code != labels.code).mean() < 1e-3  # last bits may move


def test_a_crop_that_never_fits_ends_the_run_in_one_line(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forward, "logits", limited_network(Forward.logits, 0))
    with pytest.raises(TeacherError, match=r"single crop \(CUDA out of memory"):
        generate(
            tiny_teacher(tmp_path), image_folder, tmp_path / "s", teacher_check=False, **SETTINGS
        )


def test_a_failing_device_is_one_line_and_the_store_resumes(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    whole = generate(teacher, image_folder, tmp_path / "whole", **SETTINGS)
    forward, batches = Forward.logits, []

    def fails(self: Forward, batch: Tensor) -> Tensor:
        batches.append(len(batch))
        if len(batches) == 4:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with ...")
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Forward, "logits", fails)
        with pytest.raises(TeacherError) as caught:
            generate(teacher, image_folder, tmp_path / "s", teacher_check=False, **SETTINGS)
    message = str(caught.value)
    assert "failed on cpu (CUDA error: unspecified launch failure)" in message
    assert "run the same command again to resume" in message and "\n" not in message
    assert LabelStore.open(tmp_path / "s").missing_blocks() == [1, 2]
    assert generate(teacher, image_folder, tmp_path / "s", **SETTINGS).root == whole.root


def test_compiling_is_recorded_and_must_be_asked_for_again(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.errors import StoreMismatch

    compiled = []

    def compile_nothing(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    teacher = tiny_teacher(tmp_path)
    ours = generate(teacher, image_folder, tmp_path / "s", compiled=True, **SETTINGS)
    assert compiled == [{"dynamic": False}]
    store = LabelStore.open(tmp_path / "s")
    assert store.spec.teachers["resnet8"].compiled
    with pytest.raises(StoreMismatch, match=r"teachers\.resnet8\.compiled is null, not true"):
        generate(teacher, image_folder, tmp_path / "s", **SETTINGS)
    plain = generate(teacher, image_folder, tmp_path / "plain", **SETTINGS)
    assert plain.root != ours.root
    assert len(compiled) == 1
    planes = [LabelStore.open(tmp_path / x).read_plane(0, 4, "resnet8") for x in ("s", "plain")]
    assert np.array_equal(planes[0].code, planes[1].code)


@pytest.mark.parametrize("depth", [1, 2])
def test_batches_in_flight_change_no_byte(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """As on a GPU: a batch is finished while the ones after it have been launched."""
    teacher, order = tiny_teacher(tmp_path), []
    options = TargetOptions(features="", feature_views=3, feature_rank=4)
    plain = generate(teacher, image_folder, tmp_path / "a", targets=options, **SETTINGS)
    launch, finish = Labeller.launch, Labeller.finish

    def noted_launch(self: Labeller, batch: Any, pixels: Any) -> Any:
        order.append(("launch", batch.number))
        return launch(self, batch, pixels)

    def noted_finish(self: Labeller, launched: Any, *rest: Any) -> int:
        order.append(("finish", launched.batch.number))
        return finish(self, launched, *rest)

    monkeypatch.setattr(Labeller, "depth", property(lambda self: depth))
    monkeypatch.setattr(Labeller, "launch", noted_launch)
    monkeypatch.setattr(Labeller, "finish", noted_finish)
    ours = generate(teacher, image_folder, tmp_path / "b", targets=options, **SETTINGS)
    assert ours.root == plain.root
    number = max(n for _, n in order) + 1
    assert [n for what, n in order if what == "finish"] == list(range(number))
    assert order.index(("finish", 0)) == depth + 1  # after `depth` more launches
    assert sum(what == "launch" for what, _ in order) == number
