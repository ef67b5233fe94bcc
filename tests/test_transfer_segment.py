"""Segmentation: encoders against the student itself, scores by hand, runs that repeat."""

import json
import sys

import hypothesis
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from storage.errors import UsageError
from tests.segment_sets import ARCH, write_set, write_student
from tests.training import stopped_after
from trainer.config import StudentConfig
from trainer.metrics import METRICS_NAME, read_metrics
from transfer.cli import cli
from transfer.options import TaskOptions
from transfer.results import read_results
from transfer.segment.evaluate import Judge, Predictor, window_places
from transfer.segment.keep import NETWORK_NAME, load_segmenter
from transfer.segment.loading import check_encoder, load_encoder
from transfer.segment.loss import pixel_loss
from transfer.segment.model import build_segmenter, check_start, encoder_name
from transfer.segment.overlay import palette, segment_overlay
from transfer.segment.run import SegmentRequest, run_segment
from transfer.segment.settings import IGNORED, PRESETS, SegmentSettings, resolve
from transfer.starts import Start, build

CPU = torch.device("cpu")


def scratch(arch, size=64):
    config = StudentConfig(arch=arch, num_classes=5, input_size=size, mean=(0.5, 0.4, 0.3),
                           std=(0.2, 0.3, 0.4), interpolation="bilinear", classes=None)  # fmt: skip
    return Start("scratch", config, None, "scratch")


def unlike_fresh(model):
    """Batch norms with statistics of their own, so that a swapped one is seen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model


def test_the_encoder_computes_what_the_students_stages_do():
    start = scratch("tv:resnet18")
    torch.manual_seed(1)
    student = unlike_fresh(build(start, seed=4)).eval()
    start = Start("student", start.config, student.state_dict(), "digest")
    settings = SegmentSettings(decoder="fpn", aux_weight=0, crop=64)
    encoder = build_segmenter(start, settings, 3, seed=0).network.encoder.eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        stem = student.relu(student.bn1(student.conv1(images)))
        wanted = [student.layer1(student.maxpool(stem))]
        for stage in (student.layer2, student.layer3, student.layer4):
            wanted.append(stage(wanted[-1]))
        found = encoder(images)
    for ours, theirs in zip(found[1:], [stem, *wanted], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["tv:mobilenet_v2", "timm:convnext_atto", ARCH])
def test_other_networks_become_encoders_too(arch):
    settings = SegmentSettings(decoder="fpn", aux_weight=0, crop=64)
    check_start(scratch(arch), settings, 3)


def test_an_encoder_that_computes_something_else_is_refused():
    start = scratch(ARCH)
    student = build(start, seed=0)
    model = build_segmenter(start, SegmentSettings(decoder="fpn", aux_weight=0), 3, seed=0)
    encoder = model.network.encoder
    check_encoder(encoder, student, 64, ARCH)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.01)
    with pytest.raises(UsageError, match=r"does not compute what the student does: map 1"):
        check_encoder(encoder, student, 64, ARCH)
    state = student.state_dict()
    name = next(iter(state))
    with pytest.raises(UsageError, match=r"1 of \d+ tensors of the encoder"):
        load_encoder(encoder, {k: v for k, v in state.items() if k != name}, ARCH)


def test_students_without_an_encoder_are_refused_by_name():
    with pytest.raises(UsageError, match=r"no encoder that is resnet20: take a student of timm:"):
        encoder_name("resnet20")
    with pytest.raises(UsageError, match=r"can't make an encoder of tu-mixer_s32_224 "):
        check_start(scratch("timm:mixer_s32_224", 224), SegmentSettings(), 3)


@pytest.mark.parametrize("stride", [8, 32])
def test_the_encoder_has_the_asked_output_stride(stride):
    settings = SegmentSettings(output_stride=stride, crop=64)
    model = build_segmenter(scratch("tv:resnet18"), settings, 4, seed=0)
    with torch.no_grad():
        assert model.network.encoder(torch.randn(1, 3, 64, 64))[-1].shape[2] == 64 // stride
        main, second = model.train()(torch.randn(2, 3, 50, 70))
        assert main.shape == second.shape == (2, 4, 50, 70)
        assert model.eval()(torch.randn(1, 3, 33, 20)).shape == (1, 4, 33, 20)


def test_heads_and_encoder_are_all_that_learns():
    model, again, other = (
        build_segmenter(scratch(ARCH), SegmentSettings(decoder="fpn"), 4, seed)
        for seed in (0, 0, 1)
    )
    parts = [model.network.encoder, *model.heads()]
    found = [id(p) for part in parts for p in part.parameters()]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert model.aux is not None
    head, same, different = (m.network.segmentation_head[0].weight for m in (model, again, other))
    assert torch.equal(head, same) and not torch.equal(head, different)


def test_the_loss_is_the_mean_over_pixels_that_count():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5))
    target[0, :2] = IGNORED
    values = logits.detach()
    terms = [
        -float(values[b, :, y, x].log_softmax(0)[target[b, y, x]])
        for b in range(2) for y in range(4) for x in range(5) if target[b, y, x] != IGNORED
    ]  # fmt: skip
    assert pixel_loss(values, target, (target != IGNORED).sum()).item() == pytest.approx(
        np.mean(terms), abs=1e-6
    )
    nothing = pixel_loss(logits, torch.full_like(target, IGNORED), torch.tensor(0))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.abs().sum() == 0


def test_scores_are_those_worked_out_by_hand():
    judge = Judge(4)
    # class 0: 2 right of 3 there, 1 elsewhere called 0; class 1: 1 right of 2; 2: never; 3: wrong
    judge.see(torch.tensor([[0, 0, 1], [0, 1, 2]]), torch.tensor([[0, 0, 0], [1, 1, IGNORED]]))
    judge.see(torch.tensor([[1]]), torch.tensor([[3]]))
    scores = judge.scores()
    assert scores.ious == pytest.approx((2 / 4, 1 / 4, None, 0.0))
    assert scores.miou == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(3 / 6)


@hypothesis.given(st.lists(st.integers(0, 2**31), min_size=1, max_size=3))
def test_scores_agree_with_sets_of_pixels(seeds):
    judge, pixels = Judge(3), []
    for number, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        predicted, target = rng.integers(0, 3, (5, 4)), rng.choice([0, 1, 2, IGNORED], (5, 4))
        judge.see(torch.tensor(predicted), torch.tensor(target))
        pixels += [(number, i, int(p), int(t)) for i, (p, t)
                   in enumerate(zip(predicted.flat, target.flat, strict=True))
                   if t != IGNORED]  # fmt: skip
    ious = []
    for c in range(3):
        is_c = {one[:2] for one in pixels if one[3] == c}
        called = {one[:2] for one in pixels if one[2] == c}
        if is_c | called:
            ious.append(len(is_c & called) / len(is_c | called))
    if pixels:
        assert judge.scores().miou == pytest.approx(np.mean(ious), abs=1e-6)
        right = sum(p == t for _, _, p, t in pixels)
        assert judge.scores().pixel_accuracy == pytest.approx(right / len(pixels), abs=1e-6)


@hypothesis.given(st.integers(32, 200), st.integers(32, 200), st.floats(0.1, 1))
def test_windows_cover_every_pixel_and_stay_inside(height, width, stride):
    covered = np.zeros((height, width), dtype=bool)
    for y, x in window_places((height, width), 32, stride):
        assert 0 <= y <= height - 32 and 0 <= x <= width - 32
        covered[y : y + 32, x : x + 32] = True
    assert covered.all()


class Looker(nn.Module):
    """Logits that depend on the pixels and on the place within what it is shown."""

    def forward(self, images):
        ramp = torch.linspace(-1, 1, images.shape[3]).expand(images.shape[0], *images.shape[2:])
        return torch.stack([images[:, 0] + ramp, images[:, 1] - ramp, images[:, 2]], dim=1)


def student_config():
    return scratch("tv:resnet18").config


def normalised(pixels):
    config = student_config()
    mean, std = (np.array(v)[:, None, None] for v in (config.mean, config.std))
    return (pixels / 255.0 - mean) / std


def looked(image):
    """What Looker makes of [3, H, W], as probabilities, in numpy; with the mirrored image's."""

    def once(values):
        ramp = np.linspace(-1, 1, values.shape[2])
        logits = np.stack([values[0] + ramp, values[1] - ramp, values[2]])
        shares = np.exp(logits)
        return shares / shares.sum(axis=0)

    return (once(image) + once(image[:, :, ::-1])[:, :, ::-1]) / 2


def test_windows_are_averaged_as_plain_loops_do():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 75)).astype(np.uint8)
    settings = SegmentSettings(crop=48)
    found = Predictor(Looker(), student_config(), settings, CPU).probabilities(
        torch.from_numpy(pixels)
    )
    image = np.pad(normalised(pixels), ((0, 0), (4, 4), (0, 0)))
    total, count = np.zeros((3, 48, 75)), np.zeros(75)
    for x in (0, 27):  # 48 wide, in steps of 32: the second is flush with the right side
        total[:, :, x : x + 48] += looked(image[:, :, x : x + 48])
        count[x : x + 48] += 1
    np.testing.assert_allclose(found.numpy(), (total / count)[:, 4:44], atol=1e-6)


def test_whole_images_and_several_scales():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 30, 44)).astype(np.uint8)
    shown = torch.from_numpy(pixels)

    def predict(**changes):
        settings = SegmentSettings(test="whole", **changes)
        return Predictor(Looker(), student_config(), settings, CPU).probabilities(shown)

    np.testing.assert_allclose(predict().numpy(), looked(normalised(pixels)), atol=1e-6)
    one, other = predict(test_scales=(0.5,)), predict(test_scales=(1.5,))
    both = predict(test_scales=(0.5, 1.5))
    torch.testing.assert_close(both, (one + other) / 2)
    assert not torch.allclose(one, other, atol=1e-3)
    torch.testing.assert_close(predict(test_side=66), other)
    torch.testing.assert_close(both.sum(dim=0), torch.ones(30, 44))


def test_published_settings_and_what_goes_over_them():
    city = resolve("cityscapes", "tv:resnet18", {"lr": None, "crop": 64})
    assert (city.epochs, city.lr, city.stride, city.crop) == (200, 0.01, 8, 64)
    mobile = resolve("cityscapes", "tv:mobilenet_v2", {})
    assert (mobile.lr, mobile.stride, mobile.aux_weight) == (0.006, 32, 0.0)
    assert resolve("voc", "tv:resnet18", {}).scale == (0.5, 1.5)
    assert resolve("folder", "tv:mobilenet_v2", {"decoder": "deeplabv3plus"}).stride == 8
    adamw = resolve("ade20k", "tv:vit_b_16", {"optimizer": "adamw", "lr": None, "power": 0.9})
    assert (adamw.lr, adamw.weight_decay, adamw.power, adamw.head_factor) == (6e-5, 0.01, 0.9, 1.0)
    assert resolve("ade20k", "tv:resnet18", {"optimizer": "sgd"}) == PRESETS["ade20k"]
    norms = {name: preset.norm for name, preset in PRESETS.items()}
    assert norms == {"cityscapes": "sync", "voc": "sync", "ade20k": "sync", "folder": "batch"}
    assert PRESETS.keys() == {"cityscapes", "voc", "ade20k", "folder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "fcn"}, "--decoder is 'fcn'; expected one of pspnet"),
        ({"decoder": "unet", "output_stride": 8}, "--output-stride is 8; unet can have 32"),
        ({"batch_size": 1}, "--batch-size is 1; expected 2 or more"),
        ({"crop": 16}, "--crop is 16"),
        ({"norm": "frozen"}, "--norm is 'frozen'; expected one of batch, sync"),
        ({"scale": (2.0, 1.0)}, "--scale is 2.0 1.0"),
        ({"window_stride": 0.0}, "--window-stride is 0.0"),
        ({"test_scales": ()}, r"--test-scales are \[\]"),
        ({"test_side": 3}, "--test-side is 3"),
        ({"optimizer": "adam"}, "--optimizer is 'adam'; expected one of sgd, adamw"),
        ({"head_factor": 0.0}, "--head-factor is 0.0"),
        ({"aux_weight": -1.0}, "--aux-weight is -1.0"),
        ({"test": "all"}, "--test is 'all'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        SegmentSettings(**changes)


def test_overlays_show_image_truth_and_prediction(tmp_path):
    pixels = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    target = torch.zeros(40, 60, dtype=torch.long)
    target[:, 30:], target[0] = 1, IGNORED
    segment_overlay(tmp_path / "a.png", pixels, torch.zeros_like(target), target, ["sky", "road"])
    drawn = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert drawn.shape[1] == 180 and drawn.shape[0] > 40
    mixed = [0.4 * 100 + 0.6 * np.array(colour) for colour in palette(2)]
    for (row, column), wanted in {(5, 5): (100,) * 3, (0, 90): (100,) * 3, (5, 70): mixed[0],
                                  (5, 110): mixed[1], (5, 170): mixed[0]}.items():  # fmt: skip
        assert abs(drawn[row, column] - wanted).max() <= 1
    assert len({tuple(colour) for colour in palette(150)}) > 140


def request(tmp_path, out="out", **changes):
    """A quick run on a made set."""
    data, student = tmp_path / "set", tmp_path / "student.safetensors"
    if not data.exists():
        write_set(data)
        write_student(student)
    values = {"seeds": 1, "epochs": 2, "batch_size": 3, "lr": 0.001, "device": "cpu", "workers": 1}
    task = TaskOptions(out=tmp_path / out, **(values | changes.pop("task", {})))
    settings = {"decoder": "fpn", "crop": 64, "aux_weight": 0.4, "test": "whole"} | changes
    return SegmentRequest(student=student, data=str(data), task=task, changes=settings, overlays=2)


def test_a_run_leaves_what_it_says_and_the_same_run_again_trains_nothing(tmp_path):
    asked = request(tmp_path, task={"compare": ("scratch",)})
    first = run_segment(asked)
    folder = tmp_path / "out" / "student" / "seed0"
    left = ["checkpoint.pt", "metrics.jsonl", "overlays", "score.json", "segmenter.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert [p.name for p in sorted((folder / "overlays").iterdir())] == [
        "picture0.png", "picture1.png"]  # fmt: skip
    assert read_results(tmp_path / "out" / "segment.json")["starts"].keys() == {
        "student", "scratch"}  # fmt: skip
    evaluations = [line for line in read_metrics(folder / METRICS_NAME) if line["kind"] == "eval"]
    run = first["starts"]["student"]["runs"][0]
    assert run["metrics"]["miou"] == evaluations[-1]["miou"]
    network, student, names = load_segmenter(folder / NETWORK_NAME)
    assert names == ("red", "green", "blue") and student.mean == (0.5, 0.4, 0.6)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], t) for name, t in network.state_dict().items())
    counted = [v for v in run["extra"]["ious"].values() if v is not None]
    assert run["metrics"]["miou"] == pytest.approx(np.mean(counted), abs=1e-6)
    assert any("no licence file" in note for note in first["notes"])
    written = (folder / "checkpoint.pt").stat().st_mtime_ns
    again = run_segment(asked)
    assert again["starts"] == first["starts"]
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="give another --out, or --overwrite"):
        run_segment(request(tmp_path, crop=96, task={"compare": ("scratch",)}))


def test_a_file_that_is_no_segmenter_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"can't be read as a network of `transfer segment`"):
        load_segmenter(write_student(tmp_path / "student.safetensors"))
    with pytest.raises(UsageError, match=r"give a segmenter\.safetensors"):
        load_segmenter(tmp_path / "nothing.safetensors")


def metrics(values):
    return [run["metrics"] for run in values["starts"]["student"]["runs"]]


def test_a_run_repeats_and_a_stopped_one_ends_as_it(tmp_path, monkeypatch):
    whole = run_segment(request(tmp_path, "whole"))
    with stopped_after(3, monkeypatch):
        run_segment(request(tmp_path, "parts"))
    parts = run_segment(request(tmp_path, "parts"))
    assert metrics(whole) == metrics(parts)
    ends = [load_file(tmp_path / out / "student" / "seed0" / "segmenter.safetensors")
            for out in ("whole", "parts")]  # fmt: skip
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    replaced = run_segment(request(tmp_path, "parts", task={"overwrite": True}))
    assert metrics(replaced) == metrics(whole)


def test_colours_are_learnt(tmp_path):
    asked = request(tmp_path, decoder="unet", lr=0.01, rotate=0.0, photometric=False, blur=False,
                    task={"epochs": 12, "lr": 0.01})  # fmt: skip
    score = metrics(run_segment(asked))[0]
    assert score["pixel_accuracy"] > 0.6 and score["best_miou"] >= score["miou"] > 0.4


def test_the_command_gives_a_table_and_one_line_for_what_is_wrong(tmp_path):
    asked = request(tmp_path)
    arguments = ["segment", str(asked.student), "--data", asked.data, "--out", str(tmp_path / "o"),
                 "--decoder", "pan", "--crop", "64"]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, UsageError)
    assert "pan can't take crops of 64 pixels" in str(result.exception)
    arguments = [*arguments[:-4], "--decoder", "fpn", "--crop", "64", "--test", "whole",
                 "--epochs", "1", "--seeds", "1", "--batch-size", "3", "--workers", "1",
                 "--no-blur", "--overlays", "0", "--json"]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None
    values = json.loads(result.stdout)
    assert values["settings"]["blur"] is False and values["settings"]["epochs"] == 1
    assert 0 <= values["starts"]["student"]["runs"][0]["metrics"]["miou"] <= 1


def test_a_missing_library_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UsageError, match=r"segment needs the package segmentation-models-pytorch"
                       r".* pip install -e '\.\[transfer\]'"):  # fmt: skip
        run_segment(request(tmp_path))
