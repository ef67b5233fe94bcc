"""`transfer detect` as a whole: runs, results, resuming, what it says."""

import json
from dataclasses import replace

import detection
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from training import stopped_after

from storage.errors import TeachonceError, UsageError
from transfer.cli import cli
from transfer.commands import detect as command
from transfer.detect import settings as detect_settings
from transfer.detect.boxes import PhotoSet
from transfer.detect.evaluate import find
from transfer.detect.model import build_detector
from transfer.detect.presets import PRESETS
from transfer.detect.run import DetectRequest, run_detect
from transfer.detect.settings import DetectOptions, resolve
from transfer.options import TaskOptions
from transfer.results import read_results

QUICK = DetectOptions(
    detector="retinanet", width=32, short_sides=(48, 64), longest=96, warmup_epochs=1, overlays=1,
    optimizer="adamw",
)  # fmt: skip


@pytest.fixture
def student(tmp_path):
    return detection.write_student(tmp_path / "student.safetensors")


@pytest.fixture
def voc(tmp_path):
    return detection.write_voc(tmp_path / "voc")


def request(student, data, out, options=QUICK, **task):
    chosen = {
        "epochs": 2,
        "batch_size": 2,
        "seeds": 1,
        "device": "cpu",
        "lr": 1e-3,
        "workers": 1,
    } | task
    return DetectRequest(
        student=student, data=(str(data),), task=TaskOptions(out=out, **chosen), options=options
    )


def weights(out, start="student", seed=0):
    return torch.load(out / start / f"seed{seed}" / "checkpoint.pt", weights_only=True)["model"]


def test_starts_are_compared_and_the_result_reads_back(student, voc, tmp_path):
    out = tmp_path / "out"
    values = run_detect(request(student, voc, out, compare=("scratch",), seeds=2))
    assert read_results(out / "detect.json") == json.loads(json.dumps(values))
    assert set(values["starts"]) == {"student", "scratch"} and values["metric"] == "AP"
    for start in values["starts"].values():
        assert [run["seed"] for run in start["runs"]] == [0, 1]
        assert 0 <= start["summary"]["AP50"]["mean"] <= 1
    assert values["data"]["train"]["boxes"] == {"apple": 4, "leaf": 4}
    notes = " ".join(values["notes"])
    assert "RGB with each start's own mean" in notes and "no licence file" in notes
    assert "left out: fc.weight, fc.bias" in notes and "nothing was chosen" in notes
    with safe_open(out / "scratch" / "seed1" / "detector.safetensors", "pt") as kept:
        header = json.loads(kept.metadata()["teachonce-detector"])
        assert header["classes"] == ["apple", "leaf"] and header["detect"]["epochs"] == 2
        state = weights(out, "scratch", 1)
        assert set(kept.keys()) == set(state)
        assert all(torch.equal(kept.get_tensor(name), state[name]) for name in state)
    overlay = next((out / "student" / "seed0" / "overlays").iterdir())
    with Image.open(overlay) as picture:
        assert picture.size == (2 * 96 + 8, 64) and overlay.name == "p04.png"


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(student, voc, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_detect(request(student, voc, tmp_path / name, seed=seed))
    first, again = weights(tmp_path / "a"), weights(tmp_path / "b")
    other = weights(tmp_path / "c", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("detector", "batch", "steps"),
    [("retinanet", 2, 3), ("faster-rcnn", 4, 1)],  # the latter draws proposals
)
def test_a_stopped_run_ends_as_one_that_was_not(
    student, voc, tmp_path, monkeypatch, detector, batch, steps
):
    options = replace(QUICK, detector=detector, evaluate_every=1, short_sides=(48,))
    detection.write_lists(voc, val=["p04"])
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    ours = run_detect(request(student, voc, whole, options, batch_size=batch))
    with stopped_after(steps, monkeypatch):
        run_detect(request(student, voc, stopped, options, batch_size=batch))
    theirs = run_detect(request(student, voc, stopped, options, batch_size=batch))
    a, b = weights(whole), weights(stopped)
    assert all(torch.equal(a[name], b[name]) for name in a)
    ours, theirs = (v["starts"]["student"]["runs"][0] for v in (ours, theirs))
    assert ours["metrics"] == theirs["metrics"] and ours["extra"] == theirs["extra"]
    assert len(ours["extra"]["evaluations"]) == 2


def test_a_finished_run_is_not_repeated_and_one_of_other_settings_refused(student, voc, tmp_path):
    out = tmp_path / "out"
    first = run_detect(request(student, voc, out))
    written = (out / "student" / "seed0" / "checkpoint.pt").stat().st_mtime_ns
    again = run_detect(request(student, voc, out))
    assert again["starts"]["student"]["runs"] == first["starts"]["student"]["runs"]
    assert (out / "student" / "seed0" / "checkpoint.pt").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="is of another run"):
        run_detect(request(student, voc, out, epochs=3))
    stale = out / "student" / "seed0" / "overlays" / "of-a-run-before.png"
    stale.touch()
    run_detect(request(student, voc, out, epochs=1, overwrite=True))
    assert not stale.exists() and len(list(stale.parent.iterdir())) == 1


def test_a_finished_run_needs_no_detector_but_one_for_its_note(student, voc, tmp_path, monkeypatch):
    asked = request(student, voc, tmp_path / "out", compare=("scratch",), seeds=2, epochs=1)
    first = run_detect(asked)
    built = []

    def counted(*args):
        built.append(args)
        return build_detector(*args)

    monkeypatch.setattr("transfer.detect.run.build_detector", counted)
    assert run_detect(asked)["notes"] == first["notes"]
    assert len(built) == 1


@pytest.mark.long
def test_a_detector_learns_what_it_is_shown(student, voc, tmp_path):
    """Four photos by heart: boxes, labels, pixels and figures belong together."""
    options = replace(QUICK, detector="fcos", width=64, short_sides=(64,), warmup_epochs=5)
    wanted = request(student, voc, tmp_path / "out", options, epochs=60, batch_size=4, lr=3e-3)
    values = run_detect(replace(wanted, val=(f"{voc}:train",)))
    assert values["starts"]["student"]["summary"]["AP50"]["mean"] > 0.9


def test_boxes_found_come_back_in_the_photos_own_pixels(voc):
    """A stand-in that always finds the left half of what it is given."""

    class LeftHalf(torch.nn.Module):
        def forward(self, images):
            return [
                {
                    "boxes": torch.tensor([[0.0, 0.0, i.shape[2] / 2, i.shape[1]]]),
                    "labels": torch.tensor([1]),
                    "scores": torch.tensor([0.9]),
                }
                for i in images
            ]

    from transfer.detect.data import Sizes
    from transfer.detect.sources import open_photos

    photos: PhotoSet = open_photos([str(voc)], None, "val")
    model = LeftHalf().train()
    got = find(model, photos.photos, Sizes(train=(48,), test=48, longest=64),
               device=torch.device("cpu"), batch_size=2, workers=0)  # fmt: skip
    assert [one.boxes.tolist() for one in got] == [[[0, 0, 48, 64]]] * 2
    assert model.training


def test_left_out_boxes_are_listed_in_the_folder(student, voc, tmp_path):
    boxes = detection.some_boxes(0)
    bad = [*boxes, ("leaf", 30, 30, 31, 40)]
    detection.add_photo(voc, "p00", boxes, detection.voc_xml(bad))
    values = run_detect(request(student, voc, tmp_path / "out", epochs=1))
    assert "p00: leaf [31, 31, 31, 40]: zero area" in (tmp_path / "out/left-out.txt").read_text()
    assert values["data"]["train"]["left_out"] == {"zero area": 1}
    assert any("1 zero area; listed in left-out.txt" in note for note in values["notes"])


def test_a_photo_on_both_sides_is_said(student, voc, tmp_path):
    detection.write_lists(voc, train=["p00", "p01"], val=["p01", "p02"])
    values = run_detect(request(student, voc, tmp_path / "out", epochs=1))
    assert "1 photos are in both --data and --val: the figures flatter" in values["notes"]


def resolved(options=None, kind="voc", steps=100, **task):
    return resolve(TaskOptions(**task), options or DetectOptions(), kind, steps, cuda=False)


def test_kdeps_schedule_is_in_epochs_of_the_data_at_hand():
    """VOC 07+12: 16,551 photos, 16 a step."""
    steps = 16_551 // 16
    voc = resolved(DetectOptions(preset="kdep-voc-r18"), steps=steps)
    assert voc.epochs == 18 and voc.detector.head == "c4" and voc.detector.norm == "sync"
    assert [round(m * steps, -3) for m in voc.schedule.milestones] == [12_000, 17_000]
    assert voc.schedule.warmup_epochs * steps == pytest.approx(100)
    assert (voc.optim.lr, voc.optim.weight_decay, voc.batch_size) == (0.02, 1e-4, 16)
    assert voc.sizes.train[0] == 480 and voc.sizes.test == 800
    coco = resolved(DetectOptions(preset="kdep-coco-mnv2"), kind="coco", steps=117_266 // 16)
    assert coco.detector.norm == "frozen" and coco.detector.head == "fpn"
    assert coco.skip_ignored and not voc.skip_ignored and coco.sizes.train[0] == 640


def test_all_else_goes_over_a_preset():
    options = DetectOptions(
        preset="kdep-voc-r18", iterations=250, milestones=(150, 200), warmup_epochs=0.5
    )
    got = resolved(options, batch_size=8)
    assert got.epochs == 3 and got.schedule.milestones == (1.5, 2.0)
    assert got.schedule.warmup_epochs == 0.5
    assert got.optim.lr == pytest.approx(0.01)  # the published rate for half of the batch
    assert resolved(replace(options, iterations=None), epochs=5, lr=0.3).optim.lr == 0.3
    with pytest.raises(UsageError, match="give one"):
        resolved(options, epochs=5)


def test_the_commands_choices_are_those_of_the_settings():
    chosen = {o.name: o for o in command.detect.params}
    defaults = DetectOptions()
    for name in ("detector", "width", "anchor", "freeze_stages", "optimizer", "weight_decay",
                 "longest", "flip", "overlays", "preset"):  # fmt: skip
        assert chosen[name].default == getattr(defaults, name), name
    assert tuple(chosen["preset"].type.choices) == tuple(PRESETS)
    assert tuple(chosen["optimizer"].type.choices) == tuple(detect_settings.RATES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "voc:train"], "give them with --val"),
        (["--data", "student.safetensors"], "give them with --val"),
        (["--data", "nowhere", "--val", "voc"], "give a COCO annotation file, or a VOC folder"),
        (["--data", "voc", "--val", "voc:test"], "the folder has train, val"),
        (["--data", "voc", "--epochs", "2", "--iterations", "9"], "give one"),
        (["--data", "voc", "--head", "c4"], "needs a ResNet"),
        (["--data", "voc", "--detector", "fcos", "--head", "c4"], "is Faster R-CNN's"),
        (["--data", "voc", "--test-side", "9"], "--test-side 9"),
        (["--data", "voc", "--milestones", "8,4"], "expected rising epochs"),
        (["--data", "voc", "--compare", "voc/none"], "can't be read as safetensors"),
    ],
)
def test_misuse_is_one_line(student, voc, monkeypatch, arguments, said):
    monkeypatch.chdir(voc.parent)
    got = CliRunner().invoke(cli, ["detect", str(student), *arguments, "--device", "cpu"])
    assert isinstance(got.exception, TeachonceError) and said in str(got.exception)
    assert "\n" not in str(got.exception)


def test_coco_files_go_through_the_command(student, tmp_path, monkeypatch):
    photos = {f"{i}.png": detection.some_boxes(i) for i in range(4)}
    for name, boxes in photos.items():
        detection.draw_photo(boxes).save(tmp_path / name)
    path = detection.write_coco(tmp_path, detection.coco_values(photos))
    got = CliRunner().invoke(cli, [
        "detect", str(student), "--data", str(path), "--val", str(path), "--images", str(tmp_path),
        "--short-sides", "48", "--longest", "96", "--width", "64", "--epochs", "1", "--seeds", "1",
        "--batch-size", "2", "--detector", "fcos", "--workers", "1", "--device", "cpu",
        "--overlays", "1", "--json",
    ], catch_exceptions=False)  # fmt: skip
    values = json.loads(got.stdout)
    assert "AP50 at 11 recalls" not in values["starts"]["student"]["summary"]
    assert "4 photos are in both --data and --val: the figures flatter" in values["notes"]


def test_a_missing_library_is_one_line_with_the_way_out(student, voc, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[transfer\]'"):
        run_detect(request(student, voc, tmp_path / "out"))
