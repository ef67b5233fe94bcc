"""`transfer classify`: what is learnt from, chosen on what, reported and refused."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from conftest import write_folder
from training import SIZE, stopped_after, write_teacher

from storage.errors import UsageError
from storage.images import scan_folder
from storage.views import PaddedCrop, RandomResizedCrop
from trainer import models
from trainer.batches import BatchSource
from trainer.checkpoint import load_student
from trainer.config import StudentConfig
from trainer.data import fresh_views
from trainer.evaluate import EvaluationImages, evaluate, student_targets
from trainer.inputs import create_loader
from trainer.metrics import read_metrics
from trainer.models.freezing import freeze_body
from trainer.plan import plan_epoch
from trainer.replay.beton import Beton
from trainer.step_config import LoopConfig
from transfer import classify_settings
from transfer.classify import ClassifyRequest, run_classify
from transfer.classify_settings import ClassifyOptions, preset_of, resolve
from transfer.cli import cli
from transfer.commands import classify
from transfer.options import TaskOptions
from transfer.probe import split_rows
from transfer.starts import build, open_starts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("classify")
    write_teacher(root / "student.safetensors", seed=3, scale=1.0)
    write_folder(root / "train", per_class=5)
    write_folder(root / "val", per_class=2, sides=(41, 80))
    return root


@pytest.fixture
def place(base, tmp_path):
    shutil.copytree(base, tmp_path / "here")
    return tmp_path / "here"


def request(place, *, task=None, **options):
    task_values = {"seeds": 1, "epochs": 2, "batch_size": 5, "lr": 0.02, "device": "cpu",
                   "workers": 0} | (task or {})  # fmt: skip
    return ClassifyRequest(
        student=place / "student.safetensors",
        data=str(place / "train"),
        val=str(place / "val"),
        task=TaskOptions(**task_values),
        options=ClassifyOptions(**({"loader": "torch", "evaluate_every": 1} | options)),
    )


def run_of(place, start="student", seed=0):
    return place / "classify" / start / f"seed{seed}"


def test_the_headline_is_the_last_epoch_and_the_best_one_stands_apart(place):
    values = run_classify(request(place, task={"compare": ("scratch",), "seeds": 2}))
    assert list(values["starts"]) == ["student", "scratch"]
    for name, start in values["starts"].items():
        for run in start["runs"]:
            folder = run_of(place, name, run["seed"])
            lines = [x for x in read_metrics(folder / "metrics.jsonl") if x["kind"] == "eval"]
            assert run["metrics"]["top1"] == lines[-1]["top1"]
            assert run["metrics"]["best_top1"] == max(line["top1"] for line in lines)
            assert run["extra"]["last_epoch"]["epoch"] == 2
            network, config = load_student(folder / "student.safetensors")
            again = evaluate(network, scan_folder(place / "val"), config, device=CPU, workers=0)
            assert again.top1 == run["metrics"]["top1"]
            assert run["seconds"] > 0
        mean = sum(run["metrics"]["top1"] for run in start["runs"]) / 2
        assert start["summary"]["top1"]["mean"] == pytest.approx(mean)
    assert any("nothing was chosen on the images judged on" in note for note in values["notes"])
    assert any("no licence file" in note for note in values["notes"])
    assert not list((place / "classify").rglob("init*"))
    assert json.loads((place / "classify" / "classify.json").read_text()) == json.loads(
        json.dumps(values)
    )


def test_a_run_of_one_epoch_is_plain_torch_from_the_same_weights(place):
    run_classify(request(place, task={"epochs": 1, "batch_size": 15}, schedule="constant"))
    (start,) = open_starts(place / "student.safetensors", ())
    network = build(start, 0, 3).train()
    found, config = load_student(run_of(place) / "student.safetensors")
    beton = Beton.open(next((place / "classify" / "_data").glob("*.beton")))
    data = fresh_views(beton, PaddedCrop(), 0, 1)
    loader = create_loader("torch", beton, size=SIZE, views=1, batch_images=15, workers=0,
                           interpolation=data.interpolation, padding=data.padding)  # fmt: skip
    plan = plan_epoch(0, 0, num_images=15, stored_views=1, views_per_image=1)
    (batch,) = BatchSource(data, config, None, CPU).epoch(loader, 0, plan, 15, 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    torch.nn.functional.cross_entropy(network(batch.images), batch.target).backward()
    optimizer.step()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_finished_runs_are_kept_and_stopped_ones_go_on(place, monkeypatch):
    whole = run_classify(request(place, task={"out": place / "whole"}))
    asked = request(place)
    with stopped_after(4, monkeypatch):  # of 6
        run_classify(asked)
    assert not (run_of(place) / "score.json").exists()
    values = run_classify(asked)
    stamp = (run_of(place) / "metrics.jsonl").stat().st_mtime_ns
    assert run_classify(asked)["starts"] == values["starts"]
    assert (run_of(place) / "metrics.jsonl").stat().st_mtime_ns == stamp
    runs = [found["starts"]["student"]["runs"][0] for found in (values, whole)]
    assert runs[0]["metrics"] == runs[1]["metrics"]
    with pytest.raises(UsageError, match=r"another run \(lr: 0.05, not 0.02\)"):
        run_classify(request(place, task={"lr": 0.05}))


def test_a_swept_rate_is_chosen_on_held_out_training_images(place):
    values = run_classify(request(place, task={"epochs": 1}, sweep=(1e-6, 0.05)))
    data = place / "classify" / "_data"
    held, whole = (Beton.open(next(data.glob(f"*{end}"))) for end in ("kept-0.beton", "[!0].beton"))
    folder = scan_folder(place / "train")
    kept, out = split_rows(whole.targets, 0)
    assert held.keys == tuple(folder.keys[row] for row in kept)
    assert len(out) == 3 and set(held.keys).isdisjoint(folder.keys[row] for row in out)
    found = {}
    for rate in ("1e-06", "0.05"):
        score = json.loads(
            (place / "classify/student/sweep" / f"lr{rate}" / "score.json").read_text()
        )["score"]
        assert score["extra"]["last_epoch"]["num_images"] == 3
        found[float(rate)] = score["metrics"]["top1"]
    best = max(sorted(found), key=lambda rate: found[rate])
    assert values["starts"]["student"]["runs"][0]["extra"]["lr"] == best
    assert values["settings"]["lr"] is None
    assert any(f"learning rate {best:g} chosen on a held-out fifth" in n for n in values["notes"])


def test_a_frozen_student_keeps_all_but_its_head(place):
    run_classify(request(place, freeze=True))
    (start,) = open_starts(place / "student.safetensors", ())
    before = build(start, 0, 3).state_dict()
    after = load_student(run_of(place) / "student.safetensors")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}  # batch norms' statistics stay, too


def test_a_frozen_network_is_the_one_that_is_evaluated():
    torch.manual_seed(0)
    network = models.create("tv:mobilenet_v2", 3)  # has dropout
    images = torch.randn(2, 3, 32, 32)
    expected = network.eval()(images)
    freeze_body(network, 32)
    network.train()
    assert torch.equal(network(images), expected)  # the tap is before the head: no dropout
    with pytest.raises(UsageError, match="none of the network's linear layers"):
        freeze_body(models.create("tv:squeezenet1_1", 3), 64)


def test_freezing_is_for_supervised_runs_without_compilation():
    with pytest.raises(UsageError, match="don't go together"):
        LoopConfig(freeze=True, compile=True)
    with pytest.raises(UsageError, match="evaluate_every is 0"):
        LoopConfig(evaluate_every=0)


def test_evaluations_are_as_rare_as_asked_and_end_with_the_last_epoch(place):
    run_classify(request(place, task={"epochs": 5}, evaluate_every=2))
    lines = read_metrics(run_of(place) / "metrics.jsonl")
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [2, 4, 5]


def test_the_mean_over_classes_is_torchmetrics_macro_accuracy(base, tmp_path):
    library = pytest.importorskip("torchmetrics.functional.classification")
    write_folder(tmp_path / "val", per_class=4)
    for name in ("image1.jpg", "image2.jpg", "image3.jpg"):
        (tmp_path / "val" / "class1" / name).unlink()
    (tmp_path / "val" / "class2" / "image0.jpg").write_bytes(b"no image")
    folder = scan_folder(tmp_path / "val")
    network, config = load_student(base / "student.safetensors")
    found = evaluate(network, folder, config, device=CPU, workers=0)
    targets = student_targets(folder, config)
    images = EvaluationImages(folder, targets, SIZE, config.interpolation)
    ((pixels, target),) = images.batches(16, 0)
    pixels, target = pixels[target >= 0], target[target >= 0]
    with torch.no_grad():
        logits = network.eval()((pixels.float().permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    expected = library.multiclass_accuracy(logits, target, num_classes=3, average="macro")
    assert found.class_mean == pytest.approx(float(expected))
    assert found.class_mean != pytest.approx(found.top1)


def test_published_settings_are_those_of_kdep():
    student = open_config()
    found = resolve("cub200:x", student, TaskOptions(), ClassifyOptions(size=224), cuda=False)
    assert (found.epochs, found.step_epochs, found.gamma, found.batch_size, found.lr) == (
        150, 50.0, 0.1, 64, 0.001,
    )  # fmt: skip
    assert (found.weight_decay, found.momentum, found.nesterov) == (5e-4, 0.9, False)
    assert (found.metric, found.evaluate_every) == ("top1", 5)
    assert found.sampler == RandomResizedCrop() and found.pixels is None
    settings = found.fit_settings(student)
    assert settings["schedule.kind"] == "step" and settings["student.mean"] == [0.5, 0.5, 0.5]
    assert resolve("pets:x", student, TaskOptions(), ClassifyOptions(), cuda=False).metric == (
        "class_mean"
    )
    raw = resolve("dtd:x", student, TaskOptions(), ClassifyOptions(pixels="published"), cuda=True)
    assert raw.precision == "bf16"
    assert raw.fit_settings(student)["student.std"] == [1.0, 1.0, 1.0]
    assert resolve("x", student, TaskOptions(), ClassifyOptions(), cuda=False).sampler == (
        PaddedCrop()
    )
    assert preset_of("cifar100:x").pixels is not None


def open_config():
    return StudentConfig(arch="resnet8", num_classes=3, input_size=SIZE, mean=(0.5,) * 3,
                         std=(0.25,) * 3, interpolation="bilinear", classes=None)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": "published"}, "known of cifar100, dtd, caltech256, cub200; photos is none"),
        ({"sweep": (0.1,)}, "--sweep has one rate"),
        ({"sweep": (0.1, 0.1)}, "expected different learning rates"),
        ({"metric": "f1"}, "--metric is 'f1'; expected one of top1, class_mean"),
        ({"schedule": "wavy"}, "--schedule is 'wavy'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        resolve("photos", open_config(), TaskOptions(), ClassifyOptions(**options), cuda=False)


def test_classes_that_training_lacks_are_refused_before_anything_is_written(place):
    (place / "val" / "class1").rename(place / "val" / "whale")
    with pytest.raises(UsageError, match=r"has 1 classes that .* lacks, such as 'whale'"):
        run_classify(request(place))
    assert not (place / "classify").exists()


def test_what_spoils_the_figures_is_said(place):
    shutil.copy(place / "train/class0/image0.jpg", place / "val/class0/copied.jpg")
    (place / "train/class1/image1.jpg").write_bytes(b"no image")
    (place / "val/class2/image0.jpg").write_bytes(b"neither")
    values = run_classify(request(place, task={"epochs": 1}, size=64))
    notes = " ".join(values["notes"])
    assert "1 images are in both --data and --val" in notes
    assert "1 training images can't be decoded, left out: class1/image1.jpg" in notes
    assert "1 images of --val can't be decoded: not counted" in notes
    assert "are smaller than the 64 pixels of the input" in notes


def test_the_command_prints_starts_and_seeds(place):
    arguments = [
        "classify", str(place / "student.safetensors"), "--data", str(place / "train"), "--val",
        str(place / "val"), "--compare", "scratch", "--seeds", "1", "--epochs", "1",
        "--batch-size", "5", "--lr", "0.01", "--loader", "torch", "--workers", "1", "--device",
        "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "classify: top1 counts" in done.stdout and "scratch" in done.stdout
    assert f"written to {place / 'classify' / 'classify.json'}" in done.stdout
    again = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["settings"]["epochs"] == 1


def test_the_commands_own_lists_are_those_of_the_settings():
    for name in ("METRICS", "VIEWS", "PIXELS"):
        assert getattr(classify, name) == getattr(classify_settings, name)
