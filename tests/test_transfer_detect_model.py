"""Detectors on students: which of the student's tensors they hold, and what stays frozen."""

import detection
import pytest
import torch
from torch import nn

from storage.errors import UsageError
from trainer import models
from transfer.detect.maps import STRIDES, find_maps
from transfer.detect.model import build_detector
from transfer.detect.presets import DetectorConfig

R18_MAPS = ("layer1", "layer2", "layer3", "layer4")


def network(arch, seed=0):
    """A student whose batch norms have seen something."""
    torch.manual_seed(seed)
    made = models.create(arch, 4)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made


def detector(arch, made=None, classes=2, seed=1, **settings):
    made = network(arch) if made is None else made
    config = DetectorConfig(**({"width": 64} | settings))
    return build_detector(config, made, detection.student_config(arch), classes, seed)


def photos(count=2):
    torch.manual_seed(5)
    images = [torch.rand(3, 64, 96) for _ in range(count)]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 50.0, 56.0]]), "labels": torch.tensor([1])}]
    return images, targets * count


@pytest.mark.parametrize(
    ("arch", "settings", "left_out"),
    [
        ("tv:resnet18", {}, {"fc"}),
        ("tv:resnet18", {"detector": "retinanet"}, {"fc"}),
        ("tv:resnet18", {"detector": "fcos"}, {"fc"}),
        ("tv:resnet18", {"head": "c4"}, {"fc"}),
        ("tv:resnet18", {"head": "c4", "norm": "frozen"}, {"fc"}),
        ("tv:resnet18", {"freeze_stages": 2}, {"fc"}),
        ("timm:resnet18", {}, {"fc"}),
        ("timm:resnet18", {"head": "c4"}, {"fc"}),
        ("tv:mobilenet_v2", {"norm": "frozen"}, {"features.18", "classifier"}),
        ("timm:mobilenetv3_small_050", {}, {"conv_head", "classifier"}),
    ],
)
def test_every_tensor_of_the_student_is_there_and_equal(arch, settings, left_out):
    whole = {name: tensor.clone() for name, tensor in network(arch).state_dict().items()}
    made = detector(arch, **settings)
    state = made.model.state_dict()
    assert set(made.used) | set(made.left_out) == set(whole)
    assert {n for n in made.left_out if not any(n.startswith(f"{p}.") for p in left_out)} == set()
    for name, place in made.used.items():
        if place in state:  # frozen norms count no batches
            assert torch.equal(state[place], whole[name]), name
        else:
            assert name.endswith("num_batches_tracked")


@pytest.mark.parametrize("arch", ["tv:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_the_pyramid_reads_the_maps_that_the_student_computes(arch, norm):
    made = network(arch).eval()
    images = torch.randn(1, 3, 64, 96)
    seen = {}
    for name in R18_MAPS:
        made.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output.clone())
        )
    with torch.no_grad():
        made(images)
        wanted = dict(seen)
        body = detector(arch, made, norm=norm).model.eval().backbone.body
        maps = body(images)
    for name, key in zip(R18_MAPS, maps, strict=True):
        assert torch.allclose(wanted[name], maps[key], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("arch", ["tv:resnet18", "timm:resnet18"])
def test_the_c4_head_is_the_last_stage(arch):
    made, other = network(arch).eval(), network(arch).eval()
    head = detector(arch, made, head="c4").model.eval().roi_heads.box_head
    regions = torch.randn(3, 256, 14, 14)
    with torch.inference_mode():
        assert torch.equal(head(regions), other.layer4(regions).mean((2, 3)))


def test_mobilenet_has_kdeps_maps():
    found = find_maps(network("tv:mobilenet_v2"), "tv:mobilenet_v2")
    assert found.widths == (24, 32, 96, 320) and STRIDES == (4, 8, 16, 32)
    body = found.extract(0, 3)
    maps = body.eval()(torch.zeros(1, 3, 128, 64))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (24, 32, 16), (32, 16, 8), (96, 8, 4), (320, 4, 2)
    ]  # fmt: skip


def test_photos_are_normalised_by_the_students_own_numbers_and_padded_with_zeros():
    transform = detector(detection.ARCH).model.transform
    images, _ = transform([torch.full((3, 64, 90), 0.5)], None)
    wanted = torch.tensor([0.5, 0.0, -0.25])  # (0.5 - mean) / std
    assert torch.allclose(images.tensors[0, :, 10, 10], wanted)
    assert images.tensors.shape[2:] == (64, 96) and not images.tensors[0, :, :, 90:].any()


def trained_a_step(**settings):
    """Tensors of a detector before and after a step, and where the student's are."""
    made = detector("tv:resnet18", **settings)
    model = made.model.train()
    if hasattr(model, "roi_heads"):
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 8  # of 512: quicker
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01)
    sum(model(*photos()).values()).backward()
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return {name for name, place in made.used.items() if place in changed}


def test_frozen_stages_keep_weights_and_statistics():
    changed = trained_a_step(detector="retinanet", freeze_stages=2)
    assert changed and not {n for n in changed if n.startswith(("conv1", "bn1", "layer1",
                                                                "layer2"))}  # fmt: skip
    assert {"layer3.0.conv1.weight", "layer4.1.bn2.running_var"} <= changed


def test_frozen_norms_keep_what_the_student_learnt():
    changed = trained_a_step(head="c4", norm="frozen")
    assert "layer4.0.conv1.weight" in changed
    assert not {name for name in changed if ".bn" in name or name.startswith("bn")}


def test_batch_norms_learn_otherwise():
    changed = trained_a_step()
    assert {"bn1.weight", "bn1.running_mean", "layer4.1.bn2.running_var"} <= changed


def test_what_is_new_comes_from_the_seed_alone():
    torch.manual_seed(1)
    first = detector(detection.ARCH, seed=4).model.state_dict()
    torch.manual_seed(2)
    again = detector(detection.ARCH, seed=4).model.state_dict()
    other = detector(detection.ARCH, seed=5).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("arch", "settings", "said"),
    [
        ("resnet20", {}, "has no maps of strides 4, 8, 16, 32"),
        ("timm:vit_tiny_patch16_224", {}, "has no maps of strides"),
        ("tv:mobilenet_v2", {"head": "c4"}, "needs a ResNet"),
        (detection.ARCH, {"head": "c4", "detector": "fcos"}, "is Faster R-CNN's"),
        (detection.ARCH, {"freeze_stages": 5}, "--freeze-stages is 5"),
        (detection.ARCH, {"norm": "group"}, "--norm is 'group'"),
        (detection.ARCH, {"width": 32, "detector": "fcos"}, "FCOS normalises 32 groups"),
    ],
)
def test_networks_and_settings_that_do_not_fit_are_refused(arch, settings, said):
    with pytest.raises(UsageError, match=said):
        detector(arch, **settings)


@pytest.mark.parametrize("name", ["faster-rcnn", "retinanet", "fcos"])
def test_a_photo_without_boxes_is_learnt_from(name):
    model = detector(detection.ARCH, detector=name).model.train()
    images, targets = photos()
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    terms = model(images, targets)
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
