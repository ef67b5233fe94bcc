"""A run's record: its page, its numbers, its trackers, and what stops it."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_folder
from test_page import EVIL, read
from torch import nn
from training import make_store, request, stopped_after

from storage import LabelStore
from storage.errors import StoreMismatch, TrainingError, UsageError
from storage.manifest import read_manifest
from trainer import fit
from trainer.batch import Batch, TopKTarget
from trainer.checkpoint import load_checkpoint
from trainer.cli import cli
from trainer.config import flatten
from trainer.learner import Learner
from trainer.loop import check_weights
from trainer.method_config import MixConfig
from trainer.methods import FKD, Supervised
from trainer.metrics import MetricsLog, read_metrics
from trainer.plan import plan_epoch
from trainer.report_page import MOST_POINTS, render, write_report
from trainer.trackers import check_trackers, open_trackers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 images in 3 classes and the store that a tiny teacher made of them."""
    root = tmp_path_factory.mktemp("report")
    make_store(write_folder(root / "images", classes=3, per_class=8), root / "store.zarr")
    return root


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A finished run with an average and evaluations."""
    out = tmp_path_factory.mktemp("runs") / "one"
    fit(request(out, labels=world / "store.zarr", val=world / "images",
                settings={"loop.ema_decay": 0.5}))  # fmt: skip
    return out


def lines(out, kind):
    return [line for line in read_metrics(out / "metrics.jsonl") if line["kind"] == kind]


def spoil(path, **changes):
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# The page


def test_the_page_says_what_was_trained_on_what_and_how_well(world, run):
    page = (run / "report.html").read_text()
    words = read(page).words
    store = LabelStore.open(world / "store.zarr")
    assert read_manifest(store.path).root in words
    assert "fidelity on" in words
    for name, value in flatten(json.loads((run / "config.json").read_text())).items():
        assert name in words
        if isinstance(value, (str, float)):
            assert str(value) in words
    for kind in ("eval", "eval_ema"):
        for line in lines(run, kind):
            assert f"{100 * line['top1']:.2f} %" in words
            assert f"{line['loss']:.4f}" in words
    assert torch.__version__ in words
    assert "finished, 2 epochs, 12 steps" in words
    for caption in ("Training loss", "Learning rate", "Agreement with", "Throughput", "Top-1"):
        assert caption in words


def test_the_page_runs_nothing_and_asks_for_nothing(run):
    found = read((run / "report.html").read_text())
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in found.tags}
    assert not any(key in ("src", "href") for _, attributes in found.tags for key in attributes)


def test_the_page_is_made_again_from_the_folder_alone(run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / run.name)
    before = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    assert write_report(copy).read_bytes() == before


def test_names_that_look_like_markup_stay_text(run):
    config = json.loads((run / "config.json").read_text()) | {"method": EVIL}
    facts = json.loads((run / "run.json").read_text()) | {"notes": [EVIL]}
    facts["labels"]["teacher"]["spec"] = EVIL
    metrics = [*read_metrics(run / "metrics.jsonl"), {"kind": EVIL, "step": 3}]
    found = read(render(EVIL, config, metrics, facts))
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.words.count("<script>alert(1)</script>") >= 4


def test_a_run_in_progress_and_one_of_an_older_release_have_a_page(run):
    config = json.loads((run / "config.json").read_text())
    words = read(render("old", config, read_metrics(run / "metrics.jsonl"), {})).words
    assert "not finished; 12 steps are logged of 2 epochs" in words
    assert "Nothing is logged yet" in read(render("new", config, [], {"labels": None})).words
    assert "folders' own classes" in read(render("new", config, [], {"labels": None})).words


def test_values_that_are_missing_or_not_finite_leave_the_page_whole(run):
    config = json.loads((run / "config.json").read_text())
    metrics = [
        {"kind": "train", "step": 0, "loss": None},
        {"kind": "train", "step": 1, "loss": math.inf, "lr": 0.1},
        {"kind": "train", "step": 2, "loss": 0.5, "agreement": True},
        {"kind": "eval", "step": 3, "epoch": 1, "top1": None},
        {"step": 4},
    ]
    assert "inf" not in read(render("odd", config, metrics, {})).words


def test_a_long_run_has_a_small_page_whose_curve_keeps_the_mean(run):
    config = json.loads((run / "config.json").read_text())
    metrics = [{"kind": "train", "step": s, "loss": float(s % 10)} for s in range(24_000)]
    document = render("long", config, metrics, {})
    assert document.count("<circle") == MOST_POINTS
    assert document.count("loss: 4.5 at") == MOST_POINTS  # each of whole tens


@pytest.mark.parametrize(
    ("spoilt", "error", "text"),
    [(lambda out: (out / "config.json").unlink(), UsageError, "not the folder of a run"),
     (lambda out: (out / "config.json").write_text("{"), TrainingError, "can't be read"),
     (lambda out: (out / "config.json").write_text("[]"), TrainingError, "can't be read"),
     (lambda out: spoil(out / "run.json", labels={"store": 1}), TrainingError, "run.json"),
     (lambda out: spoil(out / "run.json", environment=3), TrainingError, "run.json")],
)  # fmt: skip
def test_a_folder_that_is_no_run_is_one_clear_line(run, tmp_path, spoilt, error, text):
    for name in ("config.json", "run.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    spoilt(tmp_path)
    with pytest.raises(error, match=text) as raised:
        write_report(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_finished_run_that_is_asked_for_again_keeps_its_facts(world, run):
    before = (run / "run.json").read_bytes()
    fit(request(run, labels=world / "store.zarr", val=world / "images",
                settings={"loop.ema_decay": 0.5}))  # fmt: skip
    assert (run / "run.json").read_bytes() == before


def test_overwrite_takes_the_old_page_away_before_training(world, tmp_path, monkeypatch):
    fit(request(tmp_path, labels=world / "store.zarr", epochs=1))
    assert (tmp_path / "report.html").exists()
    with stopped_after(2, monkeypatch):
        fit(request(tmp_path, labels=world / "store.zarr", epochs=1, seed=1, overwrite=True))
    assert not (tmp_path / "report.html").exists()
    words = read(write_report(tmp_path).read_text()).words
    assert "not finished" in words


# The numbers


def test_a_logged_line_has_rate_and_agreement_of_its_own_step(run):
    found = lines(run, "train")
    assert [line["step"] for line in found] == [0, 11]
    peak, warmup, total = json.loads((run / "config.json").read_text())["optim"]["lr"], 0, 12
    for line in found:
        expected = peak * 0.5 * (1 + math.cos(math.pi * (line["step"] - warmup) / total))
        assert line["lr"] == pytest.approx(expected)
        assert line["agreement"] * 16 == int(line["agreement"] * 16)  # of 16 crops
        assert line["epoch"] == line["step"] // 6


class Echo(nn.Module):
    """A student whose logits are its images' first values."""

    def forward(self, images):
        return images.flatten(1)[:, :5]


def labelled(images, first):
    index = torch.stack([first, (first + 1) % 5], dim=1)
    probs = torch.tensor([[0.6, 0.3]]).expand(len(first), 2)
    return Batch(images, first, TopKTarget(index, probs, torch.full((len(first),), 0.1)))


def test_agreement_is_the_share_of_equal_first_classes():
    images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    best = images.flatten(1)[:, :5].numpy().argmax(axis=1)
    first = torch.from_numpy(np.where(np.arange(8) < 3, best, (best + 2) % 5))
    learner = Learner(Echo(), FKD())
    assert learner.agreement() is None  # nothing was seen
    learner(labelled(images, first))
    assert learner.agreement() == 3 / 8


def test_agreement_is_not_stated_without_labels_or_of_mixed_crops():
    images, first = torch.randn(4, 3, 2, 2), torch.arange(4)
    mixing, plain = Learner(Echo(), FKD(mix=MixConfig(kind="mixup"))), Learner(Echo(), Supervised())
    mixing(labelled(images, first))
    plain(Batch(images, first, None))
    assert mixing.agreement() is None and plain.agreement() is None


def test_resuming_drops_steps_that_are_taken_again_and_keeps_scores(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", 0)
    for step in (0, 5, 6, 7):
        log.write("train", step, loss=1.0)
        log.write("eval", step, top1=0.5)
    MetricsLog(tmp_path / "m.jsonl", 6)
    kept = [(x["kind"], x["step"]) for x in read_metrics(tmp_path / "m.jsonl")]
    # step 6 is the next to take; scores "at 6" are from before it
    assert kept == [("train", 0), ("eval", 0), ("train", 5), ("eval", 5), ("eval", 6)]


def test_the_record_is_strict_json_and_survives_foreign_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    MetricsLog(path, 0).write("eval", 1, loss=math.nan, top1=0.5)
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None
    path.write_bytes(path.read_bytes() + b'3\n{"kind": "train", "step": 2}\n')
    assert len(read_metrics(path)) == 1
    path.write_bytes(b'{"kind": "train", "step": 2}\n{"kind": "tr\xff')
    assert len(read_metrics(path)) == 1


# What stops a run


def test_a_loss_that_is_not_finite_names_step_epoch_and_images(world, tmp_path, monkeypatch):
    """The images are those of the plan, worked out here by hand."""
    from trainer import passes
    from trainer.methods import fkd

    taken, plain = [0], fkd.soft_cross_entropy_rows

    def broken(*arguments):
        taken[0] += 1
        return plain(*arguments) * (math.nan if taken[0] == 9 else 1)  # step 8, third of epoch 1

    monkeypatch.setattr(fkd, "soft_cross_entropy_rows", broken)
    saved = []
    keep = passes.save
    monkeypatch.setattr(passes, "save", lambda *a: saved.append(a[3].step) or keep(*a))
    with pytest.raises(TrainingError, match="not finite at step 8") as error:
        fit(request(tmp_path, labels=world / "store.zarr"))
    plan = plan_epoch(0, 1, num_images=24, stored_views=8, views_per_image=4)
    keys = LabelStore.open(world / "store.zarr").read_images().key
    named = ", ".join(str(keys[row]) for row in plan.order[8:12])
    assert f"step 8 (epoch 1, images {named})" in str(error.value)
    assert saved == [6]  # the end of the first pass; what followed is not kept
    assert not (tmp_path / "student.safetensors").exists()


def test_weights_that_a_finite_loss_has_broken_are_not_saved():
    student = nn.Linear(2, 2)
    check_weights(student, "step 3")
    with torch.no_grad():
        student.bias[1] = math.inf
    with pytest.raises(TrainingError, match="bias of the student is not finite after step 3"):
        check_weights(student, "step 3")


@pytest.mark.parametrize("part", [0, 1, 100, 0.5, 0.99])
def test_a_cut_checkpoint_is_one_clear_line(run, tmp_path, part):
    path, whole = tmp_path / "checkpoint.pt", (run / "checkpoint.pt").read_bytes()
    path.write_bytes(whole[: part if isinstance(part, int) else int(part * len(whole))])
    with pytest.raises(TrainingError, match="start over with --overwrite") as error:
        load_checkpoint(path, None)  # damaged before any setting is looked at
    assert "\n" not in str(error.value)


def test_overwrite_leads_out_of_a_damaged_checkpoint(world, tmp_path):
    first = fit(request(tmp_path, labels=world / "store.zarr", epochs=1))
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    again = fit(request(tmp_path, labels=world / "store.zarr", epochs=1, overwrite=True))
    assert again.steps == first.steps and again.crops > 0


def test_a_checkpoint_from_before_a_setting_existed_names_it(world, tmp_path):
    fit(request(tmp_path, labels=world / "store.zarr", epochs=1))
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    config = json.loads(saved["config"])
    del config["mix"], config["epoch_counting"]
    torch.save(saved | {"config": json.dumps(config)}, path)
    with pytest.raises(StoreMismatch, match="--overwrite") as error:
        fit(request(tmp_path, labels=world / "store.zarr", epochs=1))
    assert "epoch_counting: 'passes', not None" in str(error.value)
    assert "\n" not in str(error.value)


# Trackers


class FakeWandb(types.ModuleType):
    """What the tracker uses of wandb, kept in lists."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.begun.append(settings)
        return self

    def define_metric(self, *arguments, **options):
        assert (arguments, options) == (("*",), {"step_metric": "step"})

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


def test_wandb_gets_every_number_and_one_run_however_often_it_resumes(world, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    common = {"labels": world / "store.zarr", "val": world / "images", "log": ("wandb",)}
    with stopped_after(8, monkeypatch):
        fit(request(tmp_path / "run", **common))
    assert fake.finished == 1  # a stopped run is closed too
    fit(request(tmp_path / "run", **common))
    first, second = fake.begun
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"]["optim.lr"] > 0 and first["name"] == "run"
    written = [
        {"step": line["step"],
         **{f"{line['kind']}/{k}": v for k, v in line.items() if k not in ("kind", "step")}}
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
    ]  # fmt: skip
    assert fake.logged == written
    fit(request(tmp_path / "run", **common, seed=1, overwrite=True))
    assert fake.begun[2]["id"] != first["id"]


def test_tensorboard_files_hold_the_numbers_of_the_record(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(first, steps):
        log = MetricsLog(
            tmp_path / "m.jsonl",
            first,
            open_trackers(("tensorboard",), tmp_path, {"a": {"b": 1}}, first),
        )
        for step in steps:
            log.write("train", step, loss=step / 8, epoch=0)
        log.close()

    write(0, [0, 20, 40])
    write(21, [40, 60])  # resumed from a checkpoint before step 40
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    points = [(one.step, one.value) for one in found.Scalars("train/loss")]
    record = [(x["step"], x["loss"]) for x in read_metrics(tmp_path / "m.jsonl")]
    assert points == record == [(0, 0.0), (20, 2.5), (40, 5.0), (60, 7.5)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_named_with_its_command_before_anything_is_made(
    world, tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)  # imports as if it were not installed
    with pytest.raises(UsageError, match=rf"--log {name} .*pip install -e '\.\[log\]'"):
        fit(request(tmp_path / "run", labels=world / "store.zarr", log=(name,)))
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="expected one of tensorboard, wandb"):
        check_trackers(["mlflow"])


def test_no_tracker_is_imported_unasked(world, tmp_path, monkeypatch):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    fit(request(tmp_path, labels=world / "store.zarr", epochs=1))


# The command


def test_the_report_command_prints_the_page_it_made(run):
    done = CliRunner().invoke(cli, ["report", str(run), "--json"])
    assert json.loads(done.output) == {"report": str(run / "report.html")}


def test_the_report_command_refuses_a_folder_without_a_run(tmp_path):
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert isinstance(done.exception, UsageError)
    assert list(tmp_path.iterdir()) == []
