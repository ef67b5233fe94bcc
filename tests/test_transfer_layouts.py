"""Names and first layers of a ResNet in other libraries."""

import json

import pytest
import torch
from torch import nn
from torchvision import models

from storage.errors import UsageError
from trainer.checkpoint import save_student
from trainer.config import StudentConfig
from trainer.models import create
from transfer.export import export
from transfer.layouts import LAYOUTS, adapt_stem, pixels_for, resnet_name

DETECTRON2 = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.conv2.weight": "res2.0.conv2.weight",
    "layer2.0.bn2.bias": "res3.0.conv2.norm.bias",
    "layer3.0.downsample.0.weight": "res4.0.shortcut.weight",
    "layer4.0.downsample.1.weight": "res5.0.shortcut.norm.weight",
    "fc.weight": "linear.weight",
}
MMPRETRAIN = {
    "conv1.weight": "backbone.conv1.weight",
    "layer4.0.downsample.1.weight": "backbone.layer4.0.downsample.1.weight",
    "fc.bias": "head.fc.bias",
}


@pytest.fixture(scope="module")
def student18(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    config = StudentConfig(
        arch="tv:resnet18",
        num_classes=6,
        input_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        classes=None,
    )
    save_student(path, create("tv:resnet18", 6), config, {"method": "test"})
    return path


@pytest.mark.parametrize(("target", "names"), [("detectron2", DETECTRON2),
                                               ("mmpretrain", MMPRETRAIN)])  # fmt: skip
def test_names_are_those_of_the_other_library(target, names):
    assert {name: LAYOUTS[target].rename(name) for name in names} == names


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("target", sorted(LAYOUTS))
def test_every_name_comes_back(target, arch):
    with torch.device("meta"):
        names = list(models.get_model(arch, weights=None).state_dict())
    renamed = [LAYOUTS[target].rename(name) for name in names]
    assert len(set(renamed)) == len(names)
    assert [LAYOUTS[target].restore(name) for name in renamed] == names


def test_the_first_layer_is_reversed_and_scaled_as_worked_by_hand():
    weight = torch.tensor([2.0, 3.0, 4.0]).view(1, 3, 1, 1)  # of red, green, blue
    # p / (255 s) with p = 51, 102, 255 for blue, green, red and s = 0.2, 0.4, 0.5 for r, g, b
    pixels = pixels_for("bgr", (51, 102, 255), (0.5, 0.4, 0.3), (0.2, 0.4, 0.5))
    assert pixels.mean == pytest.approx((76.5, 102.0, 127.5))
    found = adapt_stem(weight, pixels, (0.2, 0.4, 0.5)).flatten()
    assert found.tolist() == pytest.approx([4 * 0.4, 3 * 1.0, 2 * 5.0])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("std", [None, (1.0, 1.0, 1.0), (57.4, 57.1, 58.4)])
def test_the_changed_layer_gives_what_the_student_gave_to_the_very_border(order, std):
    torch.manual_seed(0)
    own_mean, own_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    layer = nn.Conv2d(3, 4, 7, 2, 3, bias=False).double()
    raw = 255 * torch.rand(2, 3, 20, 20, dtype=torch.float64)
    mean, deviation = (torch.tensor(v).double().view(3, 1, 1) for v in (own_mean, own_std))
    expected = layer((raw / 255 - mean) / deviation)
    pixels = pixels_for(order, std, own_mean, own_std)
    # as the other library does it, channel by channel
    channels = [raw[:, c] for c in ((0, 1, 2) if order == "rgb" else (2, 1, 0))]
    fed = torch.stack(
        [(x - m) / s for x, m, s in zip(channels, pixels.mean, pixels.std, strict=True)], dim=1
    )
    layer.weight.data = adapt_stem(layer.weight.data, pixels, own_std)
    torch.testing.assert_close(layer(fed), expected, atol=1e-6, rtol=1e-6)


def test_deviations_that_are_none_are_refused():
    for wrong in ((1.0, 1.0), (1.0, 0.0, 1.0)):
        with pytest.raises(UsageError, match="three positive numbers"):
            pixels_for("rgb", wrong, (0.5,) * 3, (0.5,) * 3)


def test_only_plain_resnets_have_a_layout():
    names = ("tv:resnet18", "timm:resnet50", "resnet20", "tv:mobilenet_v2", "timm:resnet10t")
    assert [resnet_name(name) for name in names] == ["resnet18", "resnet50", None, None, None]


@pytest.mark.parametrize("target", sorted(LAYOUTS))
def test_a_file_holds_tensors_alone_and_says_how_to_feed_them(tmp_path, student18, target):
    report = export(student18, target, tmp_path / "out", pixel_order="rgb")
    assert report.max_difference == 0.0
    saved = torch.load(tmp_path / "out" / "resnet18.pth", weights_only=True)
    layout = LAYOUTS[target]
    tensors = saved if layout.wrap is None else saved[layout.wrap]
    expected = {layout.rename(name): tensor for name, tensor in
                create("tv:resnet18", 6).state_dict().items()}  # fmt: skip
    if layout.headless:
        expected = {name: t for name, t in expected.items() if not name.startswith("fc.")}
    assert {name: t.shape for name, t in tensors.items()} == {
        name: t.shape for name, t in expected.items()
    }
    told = json.loads((tmp_path / "out" / "student.json").read_text())["pixels"]
    assert told["mean"] == [127.5] * 3
    assert told["std"] == [63.75] * 3


def test_detectron2_is_fed_bgr_unless_asked_otherwise(tmp_path, student18):
    report = export(student18, "detectron2", tmp_path / "out", pixel_std=(1.0, 1.0, 1.0))
    assert 0 < report.max_difference < 1e-4
    told = json.loads((tmp_path / "out" / "student.json").read_text())["pixels"]
    assert (told["order"], told["std"]) == ("bgr", [1.0, 1.0, 1.0])
    assert told["MODEL.RESNETS.STRIDE_IN_1X1"] is False
