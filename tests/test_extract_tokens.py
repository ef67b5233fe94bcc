"""Tokens of the last stage, and the tail that makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from labelgen.extract import extractor_for
from labelgen.extract.base import find_sources
from labelgen.extract.features import probe_batch
from labelgen.extract.tokens import tail_file
from labelgen.teacher import Teacher
from storage.errors import CorruptStore, StoreMismatch, TeacherError
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
from trainer.models.tails import load_tail


def torchvision_swin(classes: int = CLASSES) -> nn.Module:
    return models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[1, 1, 2], num_heads=[1, 2, 4],
        window_size=[2, 2], num_classes=classes,
    )  # fmt: skip


def torchvision_vit(classes: int = CLASSES) -> nn.Module:
    model = models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=5, num_heads=2, hidden_dim=24, mlp_dim=48,
        num_classes=classes,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight)  # zeros otherwise: logits that nothing moves
    return model


def average_vit(classes: int = CLASSES) -> nn.Module:
    return tiny_vit(classes, class_token=False, global_pool="avg")


def timm_convnext(classes: int = CLASSES) -> nn.Module:
    return timm.create_model(
        "convnext_atto", num_classes=classes, depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)
    )


# family: (build, size, grid, width, prefix tokens, whether logits are affine in the mean token)
FAMILIES: dict[str, tuple[Callable[..., nn.Module], int, tuple[int, int], int, int, bool]] = {
    "timm swin": (tiny_swin, 64, (2, 2), 128, 0, True),
    "torchvision swin": (torchvision_swin, 64, (4, 4), 64, 0, True),
    "timm vit": (tiny_vit, 64, (4, 4), 24, 1, False),
    "timm vit, mean of tokens": (average_vit, 64, (4, 4), 24, 0, False),
    "torchvision vit": (torchvision_vit, 64, (4, 4), 24, 1, False),
    "torchvision resnet": (tiny_resnet, 96, (3, 3), 512, 0, True),
    "timm resnet": (tiny_timm_resnet, 64, (2, 2), 512, 0, True),
    "cifar resnet": (lambda c=CLASSES: create("resnet8", c), 32, (8, 8), 64, 0, True),
    "timm convnext": (timm_convnext, 64, (2, 2), 24, 0, False),
}


def made(family: str) -> Teacher:
    build, size, *_ = FAMILIES[family]
    return as_teacher(seeded(build), family, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_have_the_grid_of_the_last_stage_and_the_logits_follow(family: str) -> None:
    _, size, grid, width, prefix, affine = FAMILIES[family]
    teacher, batch = made(family), crops(2, size)
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None
    assert (source.grid, source.width, source.place.prefix) == (grid, width, prefix)
    assert source.affine == affine
    outputs = extractor_for(teacher, ["tokens", "head/class"])(batch)
    assert outputs["tokens"].shape == (2, grid[0] * grid[1], width)
    with torch.inference_mode():
        assert torch.equal(outputs["logits"], teacher.model(batch))
    if affine:
        read = outputs["head/class"][:, 0]
        torch.testing.assert_close(outputs["tokens"].mean(dim=1), read, rtol=1e-4, atol=1e-5)


def test_swin_tokens_are_normed_and_in_raster_order() -> None:
    teacher, batch = made("timm swin"), crops(2, 64)
    tokens = extractor_for(teacher, ["tokens"])(batch)["tokens"]
    with torch.inference_mode():
        grid = teacher.model.forward_features(batch)  # [B, h, w, D], after the norm
    assert grid.shape == (2, 2, 2, 128)
    for row in range(2):
        for column in range(2):
            assert torch.equal(tokens[:, 2 * row + column], grid[:, row, column])


def test_vit_tokens_leave_the_class_token_out() -> None:
    teacher, batch = made("timm vit"), crops(2, 64)
    tokens = extractor_for(teacher, ["tokens"])(batch)["tokens"]
    with torch.inference_mode():
        sequence = teacher.model.forward_features(batch)
    assert sequence.shape == (2, 17, 24) and torch.equal(tokens, sequence[:, 1:])


def test_map_tokens_are_its_positions() -> None:
    teacher, batch = made("torchvision resnet"), crops(2, 96)
    caught = {}
    handle = teacher.model.layer4.register_forward_hook(
        lambda module, args, output: caught.update(map=output.clone())
    )
    tokens = extractor_for(teacher, ["tokens"])(batch)["tokens"]
    handle.remove()
    assert torch.equal(tokens[:, 3 * 1 + 2], caught["map"][:, :, 1, 2])
    assert tokens.min() == 0, "after the last ReLU"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tail_makes_the_teachers_tokens_of_the_stage_before(family: str) -> None:
    """`tail_file` compares exactly with the rebuilt module; here on other crops, by hand."""
    build, size, grid, width, prefix, _ = FAMILIES[family]
    teacher, batch = made(family), crops(2, size, seed=5)
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None
    rebuilt = lambda arch, classes: build(classes)  # noqa: E731
    settings, data = tail_file(teacher, source, probe_batch(teacher), rebuilt)
    assert settings["arch"] == family and settings["teacher"] == teacher.digest

    first = teacher.model.get_submodule(source.place.tail[0])
    entered = []
    handle = first.register_forward_pre_hook(lambda module, args: entered.append(args[0].clone()))
    tokens = extractor_for(teacher, ["tokens"])(batch)["tokens"]
    handle.remove()
    value = entered[-1]
    if settings["layout"] == "nchw":
        value = value.flatten(2).transpose(1, 2)
    elif settings["layout"] == "nhwc":
        value = value.flatten(1, 2)
    assert value.shape[1] == prefix + settings["input_grid"][0] * settings["input_grid"][1]
    tail = load_tail(settings, data, rebuilt)
    with torch.inference_mode():
        assert torch.equal(tail(value), tokens)
    assert tuple(settings["grid"]) == grid and settings["width"] == width
    assert not any(p.requires_grad for p in tail.parameters())


def test_a_tail_stays_frozen_and_in_eval_mode_but_lets_gradients_through() -> None:
    teacher = made("timm swin")
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None
    build = lambda arch, classes: tiny_swin(classes)  # noqa: E731
    tail = load_tail(*tail_file(teacher, source, probe_batch(teacher), build), build)
    tail.train()
    assert not any(module.training for module in tail.modules())
    student = torch.randn(2, 16, 64, requires_grad=True)
    first = tail(student)
    first.square().sum().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert torch.equal(first, tail(student)), "drop path would differ from call to call"


def test_a_vit_tail_takes_patch_tokens_without_the_class_token() -> None:
    teacher = made("timm vit")
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None
    build = lambda arch, classes: tiny_vit(classes)  # noqa: E731
    tail = load_tail(*tail_file(teacher, source, probe_batch(teacher), build), build)
    assert tail(torch.randn(2, 16, 24)).shape == tail(torch.randn(2, 17, 24)).shape == (2, 16, 24)


def test_swin_logits_are_the_heads_linear_map_of_the_mean_token() -> None:
    teacher, batch = made("timm swin"), crops(4, 64)
    outputs = extractor_for(teacher, ["tokens"])(batch)
    fc = teacher.model.head.fc
    by_hand = F.linear(outputs["tokens"].mean(dim=1), fc.weight, fc.bias)
    torch.testing.assert_close(by_hand, outputs["logits"], rtol=1e-5, atol=1e-6)


def test_a_network_of_no_known_family_gives_its_last_map_but_no_tail() -> None:
    model = seeded(lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.35))
    teacher = as_teacher(model, "tv:mobilenet_v2", 64)
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None and source.affine and source.grid == (2, 2)
    assert source.layer == "output of features"
    with pytest.raises(TeacherError, match="can't be cut off as a module: give --no-tail"):
        tail_file(teacher, source, probe_batch(teacher))


def test_a_map_of_one_position_is_refused() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 32)
    with pytest.raises(TeacherError, match="a single position at 32 pixels: use --features"):
        find_sources(teacher, ["tokens"])


def test_a_tail_that_another_library_version_would_build_otherwise_is_refused() -> None:
    teacher = made("cifar resnet")
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None

    def wider(arch: str, classes: int) -> nn.Module:
        return create("resnet14", classes)

    def other_eps(arch: str, classes: int) -> nn.Module:
        model = create("resnet8", classes)
        model.layer3[0].bn2.eps = 0.1
        return model

    probe = probe_batch(teacher)
    with pytest.raises(StoreMismatch, match="does not fit cifar resnet"):
        tail_file(teacher, source, probe, wider)
    with pytest.raises(TeacherError, match="gives other tokens than the teacher"):
        tail_file(teacher, source, probe, other_eps)


def test_damaged_tails_are_named() -> None:
    teacher = as_teacher(seeded(lambda: create("resnet8", CLASSES)), "resnet8", 32)
    source = find_sources(teacher, ["tokens"]).tokens
    assert source is not None
    settings, data = tail_file(teacher, source, probe_batch(teacher))
    with pytest.raises(CorruptStore, match="not a readable safetensors file"):
        load_tail(settings, data[:-1])
    with pytest.raises(StoreMismatch, match="version 9"):
        load_tail(settings | {"version": 9}, data)
    with pytest.raises(StoreMismatch, match="can't be read"):
        load_tail({"arch": "resnet8"}, data)
