"""`trainer fit` with a moving average, accumulation, mixing, given weights, other methods."""

import dataclasses
import functools
import html
import math
import threading

import pytest
import torch
from conftest import write_folder
from safetensors.torch import load_file
from training import CLASSES, make_store, request, stopped_after

from storage.errors import CorruptStore, StoreMismatch, TrainingError, UsageError
from trainer import evaluate as evaluation
from trainer import fit
from trainer.config import LabelConfig, StudentConfig, TrainConfig
from trainer.learner import Learner
from trainer.method_config import MixConfig
from trainer.metrics import read_metrics
from trainer.pass_config import ResolutionConfig

STUDENT, AVERAGE = "student.safetensors", "student_ema.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 images in 3 classes and the store that a tiny teacher made of them."""
    root = tmp_path_factory.mktemp("options")
    make_store(write_folder(root / "images", classes=3, per_class=8), root / "store.zarr")
    return root


def tensors(run, name):
    return load_file(run / name)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_moving_average_is_kept_and_evaluated_beside_the_student(world, tmp_path):
    result = fit(request(tmp_path, labels=world / "store.zarr", epochs=1, val=world / "images",
                         settings={"loop.ema_decay": 0.5}))  # fmt: skip
    assert result.ema_evaluation is not None
    average, student = tensors(tmp_path, AVERAGE), tensors(tmp_path, STUDENT)
    assert not torch.equal(average["fc.weight"], student["fc.weight"])
    kinds = [line["kind"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert kinds.count("eval_ema") == kinds.count("eval") == 1


def test_an_average_that_forgets_at_once_is_the_student(world, tmp_path):
    fit(request(tmp_path, labels=world / "store.zarr", epochs=1,
                settings={"loop.ema_decay": 1e-9}))  # fmt: skip
    average, student = tensors(tmp_path, AVERAGE), tensors(tmp_path, STUDENT)
    for name, tensor in student.items():
        torch.testing.assert_close(average[name], tensor, msg=name)


@pytest.mark.parametrize("stop_after", [3, 7])
def test_every_option_together_resumes_to_the_bit(world, tmp_path, monkeypatch, stop_after):
    common = {
        "labels": world / "store.zarr",
        "method": "meal",
        "settings": {"loop.ema_decay": 0.9, "loop.accumulate": 2, "loop.clip_norm": 1.0,
                     "mix.kind": "both", "schedule.kind": "linear"},
    }  # fmt: skip
    fit(request(tmp_path / "whole", **common))
    with stopped_after(stop_after, monkeypatch):
        fit(request(tmp_path / "parts", **common))
    fit(request(tmp_path / "parts", **common))
    for name in (STUDENT, AVERAGE):
        assert_equal(tensors(tmp_path / "whole", name), tensors(tmp_path / "parts", name))


PASSES = {"order.kind": "quasi-random", "order.memory_mib": 8, "resolution.start": 16,
          "resolution.step": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("stop_after", "changes"),
    [
        (2, {"epochs": 3, "settings": PASSES}),
        (7, {"epochs": 3, "settings": PASSES}),
        (5, {"method": "ferkd", "optimizer": "adamw", "epochs": 8,
             "settings": {"epoch_counting": "views", "mix.kind": "cutmix", "mix.partner": "image",
                          "mix.off_epochs": 2,
                          "ferkd.top": 0.9}}),
        (4, {"labels": None, "epochs": 2, "precision": "bf16"}),
    ],
)  # fmt: skip
def test_a_run_of_any_kind_resumes_to_the_bit(world, tmp_path, monkeypatch, stop_after, changes):
    monkeypatch.setattr("trainer.replay.pages.PAGE_BYTES", 4096)
    common = {"labels": world / "store.zarr", "data": str(world / "images")} | changes
    fit(request(tmp_path / "whole", **common))
    with stopped_after(stop_after, monkeypatch):
        fit(request(tmp_path / "parts", **common))
    fit(request(tmp_path / "parts", **common))
    assert_equal(tensors(tmp_path / "whole", STUDENT), tensors(tmp_path / "parts", STUDENT))


def test_a_compiled_student_follows_the_sizes_to_the_same_bits(world, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.replay.pages.PAGE_BYTES", 4096)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    seen, plain = [], Learner.forward

    def noted(self, batch):
        seen.append(batch.images.shape[-1])
        return plain(self, batch)

    monkeypatch.setattr(Learner, "forward", noted)
    common = {"labels": world / "store.zarr", "epochs": 3}
    fit(request(tmp_path / "plain", settings=PASSES, **common))
    assert seen == [16] * 6 + [20] * 6 + [24] * 6
    fit(request(tmp_path / "compiled", settings=PASSES | {"loop.compile": True}, **common))
    assert_equal(tensors(tmp_path / "plain", STUDENT), tensors(tmp_path / "compiled", STUDENT))


def two_epochs(method, **sections):
    return TrainConfig(
        method=method, labels=LabelConfig(), epochs=2, batch_size=4, views_per_image=1,
        data_identity="",
        student=StudentConfig(arch="r18", num_classes=3, input_size=224, mean=(0.5,) * 3,
                              std=(0.5,) * 3, interpolation="bilinear", classes=None),
        **sections,
    )  # fmt: skip


def test_sizes_that_tokens_cannot_follow_are_refused():
    with pytest.raises(UsageError, match=r"scalekd learns from tokens of a fixed grid"):
        two_epochs("scalekd", resolution=ResolutionConfig(start=160, end=224, end_epoch=1))


def test_a_run_that_would_end_before_anything_is_mixed_is_refused():
    with pytest.raises(UsageError, match=r"mix.off_epochs is 2 of 2 epochs, .* train for more"):
        two_epochs("fkd", mix=MixConfig(kind="cutmix", off_epochs=2))
    assert two_epochs("fkd", mix=MixConfig(kind="cutmix", off_epochs=1)).mix.off_epochs == 1
    assert two_epochs("fkd", mix=MixConfig(off_epochs=2)).mix.kind == "none"


def test_other_sizes_and_used_up_views_are_said_once_and_counted(world, tmp_path, capsys):
    common = {"labels": world / "store.zarr", "epochs": 3, "size": 16}
    result = fit(request(tmp_path, **common))
    size, reuse = result.notes[-2:]
    assert "16 pixels a side and the teacher's had 24" in size
    assert "8 views of an image" in reuse and "the 12 that it takes, 4 are ones" in reuse
    assert capsys.readouterr().err.count(reuse) == 1
    fit(request(tmp_path, **common))
    assert reuse not in capsys.readouterr().err
    assert html.escape(reuse) in (tmp_path / "report.html").read_text()


def test_the_next_pass_is_read_while_this_one_trains_and_its_damage_reaches_the_caller(
    world, tmp_path, monkeypatch
):
    from trainer import data

    plain, threads = data.join_store, []

    def joined(*arguments, **options):
        found = plain(*arguments, **options)

        def tables(epoch, plan):
            threads.append(threading.current_thread().name)
            if epoch == 2:
                raise CorruptStore("a shard of the third pass is damaged")
            return found.tables(epoch, plan)

        return dataclasses.replace(found, tables=tables)

    monkeypatch.setattr("trainer.request.join_store", joined)
    with pytest.raises(CorruptStore, match="third pass"):
        fit(request(tmp_path, labels=world / "store.zarr", epochs=3))
    assert threads == ["MainThread", "teachonce-ahead", "teachonce-ahead"]
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["run"]["epoch"] == 2  # what was trained before is kept


def test_ferkd_without_thresholds_trains_as_fkd_does(world, tmp_path):
    for method in ("fkd", "ferkd"):
        fit(request(tmp_path / method, labels=world / "store.zarr", method=method, epochs=1))
    assert_equal(tensors(tmp_path / "fkd", STUDENT), tensors(tmp_path / "ferkd", STUDENT))


def test_a_student_goes_on_from_another_runs_weights(world, tmp_path):
    first = fit(request(tmp_path / "first", labels=world / "store.zarr", epochs=1))
    init = str(first.out / STUDENT)
    fit(request(tmp_path / "second", labels=world / "store.zarr", epochs=1, init=init, lr=1e-12,
                weight_decay=0.0))  # fmt: skip
    second = tensors(tmp_path / "second", STUDENT)
    for name, tensor in tensors(first.out, STUDENT).items():
        if name.endswith("weight"):
            torch.testing.assert_close(second[name], tensor, msg=name)
    (tmp_path / "other.safetensors").write_bytes((world / "store.safetensors").read_bytes())
    with pytest.raises(StoreMismatch, match="init"):
        fit(request(tmp_path / "second", labels=world / "store.zarr", epochs=2,
                    init=str(tmp_path / "other.safetensors")))  # fmt: skip


def test_a_signal_during_evaluation_ends_the_run_after_it(world, tmp_path, monkeypatch):
    import os
    import signal

    from trainer import passes

    plain = evaluation.evaluate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments, **options)

    monkeypatch.setattr(passes, "evaluate", interrupted)
    with pytest.raises(TrainingError, match="stopped by a signal"):
        fit(request(tmp_path, labels=world / "store.zarr", epochs=3, val=world / "images"))
    epochs = [x["epoch"] for x in read_metrics(tmp_path / "metrics.jsonl") if x["kind"] == "eval"]
    assert epochs == [1]


def test_a_finished_run_reports_without_a_loader(world, tmp_path, monkeypatch):
    common = {"labels": world / "store.zarr", "epochs": 1, "val": world / "images"}
    first = fit(request(tmp_path, **common))
    monkeypatch.setattr("trainer.passes.create_loader", lambda *_a, **_k: pytest.fail("a loader"))
    again = fit(request(tmp_path, **common))
    assert again.evaluation == first.evaluation
    assert len(CLASSES) == again.student.num_classes


def test_fkds_counting_ends_with_single_views_and_a_rate_a_pass(world, tmp_path, monkeypatch):
    from trainer import passes

    rates, plain = [], passes.lr_at

    def noted(*arguments, **options):
        rates.append(plain(*arguments, **options))
        return rates[-1]

    monkeypatch.setattr(passes, "lr_at", noted)
    counting = {"epoch_counting": "views"}
    result = fit(request(tmp_path, labels=world / "store.zarr", epochs=8, views_per_image=4,
                         settings=counting, warmup_epochs=0.0, lr=1.0))  # fmt: skip
    # 24 images: 6 steps of 4 images x 4 views once, then 4 passes of one step of 16 single views
    assert result.steps == 6 + 4 * 1
    expected = [0.5 * (1 + math.cos(math.pi * e / 8)) for e in [0] * 6 + [4, 5, 6, 7]]
    assert rates == pytest.approx(expected)
