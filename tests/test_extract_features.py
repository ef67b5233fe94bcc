"""The feature before the last ReLU and the logits after it, of one forward pass."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from labelgen.extract import extractor_for
from labelgen.extract.base import KINDS, find_sources
from storage.errors import TeacherError, UsageError
from tests.extraction import (
    CLASSES,
    as_teacher,
    crops,
    seeded,
    tiny_resnet,
    tiny_swin,
    tiny_timm_resnet,
    tiny_vit,
)
from trainer.models import create


def headless(model: nn.Module, head: str) -> nn.Module:
    """A copy that gives what its head reads."""
    changed = copy.deepcopy(model).eval()
    changed.set_submodule(head, nn.Identity())
    return changed


def of_torchvision_resnet(model: models.ResNet, x: Tensor) -> Tensor:
    x = model.maxpool(F.relu(model.bn1(model.conv1(x))))
    x = model.layer3(model.layer2(model.layer1(x)))
    block = model.layer4[0]
    y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return (y + block.downsample(x)).mean(dim=(2, 3))


def of_timm_resnet(model: nn.Module, x: Tensor) -> Tensor:
    changed = headless(model, "fc")
    changed.layer4[0].act2 = nn.Identity()
    return changed(x)


def of_cifar_resnet(model: nn.Module, x: Tensor) -> Tensor:
    x = model.layer2(model.layer1(F.relu(model.bn1(model.conv1(x)))))
    block = model.layer3[0]
    y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return (y + block.downsample(x)).mean(dim=(2, 3))


def of_mobilenet(model: nn.Module, x: Tensor) -> Tensor:
    changed = headless(model, "classifier.1")
    changed.features[-1][2] = nn.Identity()
    return changed(x)


def of_densenet(model: nn.Module, x: Tensor) -> Tensor:
    """torchvision's last ReLU is a function, in place, on the output of `features`."""
    return model.features(x).mean(dim=(2, 3))


def of_vgg(model: nn.Module, x: Tensor) -> Tensor:
    changed = copy.deepcopy(model).eval()
    changed.classifier = changed.classifier[:4]
    return changed(x)


BEFORE_RELU = {
    "torchvision resnet": (tiny_resnet, of_torchvision_resnet, 64, "layer4.0.relu"),
    "timm resnet": (tiny_timm_resnet, of_timm_resnet, 64, "layer4.0.act2"),
    "cifar resnet": (lambda: create("resnet8", CLASSES), of_cifar_resnet, 32, "layer3.0.relu"),
    "mobilenet v2": (
        lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.35), of_mobilenet, 64,
        "features.18.2",
    ),
    "functional relu": (
        lambda: models.DenseNet(4, (2, 2), 8, num_classes=CLASSES), of_densenet, 64,
        "features",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", BEFORE_RELU)
def test_the_feature_is_that_of_the_network_without_its_last_relu(family: str) -> None:
    build, plainly, size, place = BEFORE_RELU[family]
    teacher = as_teacher(seeded(build), family, size)
    batch = crops(3, size)
    with torch.inference_mode():
        expected = plainly(teacher.model, batch)
        logits = teacher.model(batch)

    outputs = extractor_for(teacher, ["feature"])(batch)

    source = find_sources(teacher, ["feature"]).feature
    assert source is not None and source.before_relu and place in source.layer
    assert expected.min() < 0, "a rectified feature would pass as well"
    torch.testing.assert_close(outputs["feature"], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(outputs["logits"], logits)


HEAD_INPUT = {
    "swin": (tiny_swin, 64, "head.fc"),
    "vit": (tiny_vit, 64, "head"),
    "convnext": (
        lambda: timm.create_model(
            "convnext_atto", num_classes=CLASSES, depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)
        ), 64, "head.fc",
    ),
    "efficientnet": (
        lambda: timm.create_model("test_efficientnet", num_classes=CLASSES, act_layer="silu"),
        64, "classifier",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", HEAD_INPUT)
def test_without_a_last_relu_the_feature_is_what_the_head_reads(family: str) -> None:
    build, size, head = HEAD_INPUT[family]
    teacher = as_teacher(seeded(build), family, size)
    batch = crops(3, size)
    with torch.inference_mode():
        expected = headless(teacher.model, head)(batch)
        logits = teacher.model(batch)

    outputs = extractor_for(teacher, ["feature"])(batch)

    source = find_sources(teacher, ["feature"]).feature
    assert source is not None and not source.before_relu and source.layer == f"input of {head}"
    assert torch.equal(outputs["feature"], expected)
    assert torch.equal(outputs["logits"], logits)


def test_a_vector_before_the_last_relu_of_a_multi_layer_head_is_found_too() -> None:
    def build() -> nn.Module:
        model = models.vgg11(num_classes=CLASSES)
        model.features = nn.Sequential(nn.Conv2d(3, 512, 7, 7), nn.ReLU(inplace=True))
        model.classifier[0] = nn.Linear(512 * 49, 32)
        model.classifier[3] = nn.Linear(32, 24)
        model.classifier[6] = nn.Linear(24, CLASSES)
        return model

    teacher = as_teacher(seeded(build), "vgg", 56)
    batch = crops(3, 56)
    with torch.inference_mode():
        expected = of_vgg(teacher.model, batch)
    assert expected.min() < 0
    assert torch.equal(extractor_for(teacher, ["feature"])(batch)["feature"], expected)


def test_a_last_relu_with_nothing_to_rectify_is_found_all_the_same() -> None:
    """As in a network whose last batch norm starts at zero: its values alone would not tell."""

    def build() -> nn.Module:
        model = create("resnet14", CLASSES)
        nn.init.zeros_(model.layer3[1].bn2.weight)
        return model

    teacher = as_teacher(build(), "resnet14", 32)
    source = find_sources(teacher, ["feature"]).feature
    assert source is not None and source.layer == "mean before layer3.1.relu (ReLU)"


def test_all_outputs_at_once_are_those_asked_for_one_by_one() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 64)
    batch = crops(2, 64)
    wants = ["feature", "tokens", "head4/class", "head_logits/class"]
    together = extractor_for(teacher, wants)(batch)
    assert sorted(together) == sorted([*wants, "logits"])
    for want in wants:
        alone = extractor_for(teacher, [want])(batch)
        assert torch.equal(together[want], alone[want])
        assert torch.equal(together["logits"], alone["logits"])


def test_the_network_is_as_before_once_the_extractor_is_closed() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 64)
    extractor = extractor_for(teacher, ["feature", "head/class"])
    hooked = [m for m in teacher.model.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert hooked
    extractor.close()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in teacher.model.modules())


def test_under_autocast_the_mean_is_float32_of_the_networks_own_precision() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 64, precision="bf16")
    batch = crops(2, 64)
    caught = []
    last = teacher.model.layer4[0].relu

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0].clone())

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        handle = last.register_forward_pre_hook(keep)
        logits = teacher.model(batch)
        handle.remove()
        outputs = extractor_for(teacher, ["feature"])(batch)
    assert caught[-1].dtype == torch.bfloat16
    assert outputs["feature"].dtype == outputs["logits"].dtype == torch.float32
    assert torch.equal(outputs["logits"], logits.float())
    expected = caught[-1].double().mean(dim=(2, 3))
    torch.testing.assert_close(outputs["feature"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_compiled_extractor_gives_the_same() -> None:
    """aot_eager: traced as inductor's code is, in-place operations made functional, no compiler."""
    teacher = as_teacher(seeded(tiny_resnet), "made", 64)
    batch = crops(2, 64)
    wants = ["feature", "tokens", "head4/class"]
    expected = extractor_for(teacher, wants)(batch)
    compiled = extractor_for(teacher, wants)
    compiled.compile(backend="aot_eager", fullgraph=True)
    found = compiled(batch)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_taps_do_nothing_in_forwards_that_are_not_the_extractors() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 64)
    first, second = crops(2, 64), crops(2, 64, seed=1)
    extractor = extractor_for(teacher, ["feature"])
    before = extractor(first)
    with torch.inference_mode():
        teacher.model(second)
    assert torch.equal(extractor(first)["feature"], before["feature"])
    assert extractor._listener.found is None


class NoLinear(nn.Module):
    """Logits from a convolution, as SqueezeNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(dim=(2, 3))


def test_a_network_without_pooled_features_is_refused() -> None:
    teacher = as_teacher(NoLinear(), "convolutional", 32)
    for kind in ("feature", "heads"):
        with pytest.raises(TeacherError, match="convolutional has no pooled features: no Linear"):
            find_sources(teacher, [kind])
    with pytest.raises(TeacherError, match="no known last map"):
        find_sources(teacher, ["tokens"])
    assert set(KINDS) == {"feature", "heads", "tokens"}


def test_an_output_that_nobody_knows_is_named() -> None:
    teacher = as_teacher(create("resnet8", CLASSES), "resnet8", 32)
    with pytest.raises(UsageError, match="not 'attention'"):
        extractor_for(teacher, ["feature", "attention"])
    with pytest.raises(TeacherError, match="has no head 'branch1'; it has class"):
        extractor_for(teacher, ["head/branch1"])
