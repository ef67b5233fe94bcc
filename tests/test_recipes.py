"""The numbers in the package's recipes are those that are published, each written out here."""

import pytest
import torch

from trainer import models
from trainer.plan import plan_run
from trainer.schedule import lr_at
from trainer.settings import read_recipe, section
from trainer.step_config import ScheduleConfig

LABELS = {"labels.label_type": "marginal_smoothing", "labels.top_k": 5, "labels.tail": "even",
          "labels.temperature": 1.0}  # fmt: skip
FKD = {"method": "fkd", "batch_size": 1024, "views_per_image": 4, **LABELS}
SGD = {"optim.name": "sgd", "optim.momentum": 0.9, "optim.weight_decay": 1e-4,
       "optim.decay_vectors": True, "schedule.kind": "cosine"}  # fmt: skip
# 300 published epochs of one view each, 5 of warm-up
PASSES = {"epochs": 300 / 4, "schedule.warmup_epochs": 5 / 4}
BEST = {**FKD, **SGD, **PASSES, "optim.lr": 0.1 * 1024 / 512, "optim.nesterov": True}
PLAIN = {**FKD, **SGD, "epochs": 300, "epoch_counting": "views", "optim.lr": 0.1,
         "optim.nesterov": False, "schedule.warmup_epochs": 0.0}  # fmt: skip
VIT = {**FKD, **PASSES, "optim.name": "adamw", "optim.lr": 0.002, "optim.weight_decay": 0.05,
       "optim.decay_vectors": False, "schedule.kind": "cosine", "schedule.warmup_lr": 1e-5,
       "schedule.final_lr": 1e-5}  # fmt: skip
MEAL = {"method": "meal", "epochs": 200 / 8, "batch_size": 512, "views_per_image": 8, **LABELS,
        "optim.name": "sgd", "optim.lr": 0.01, "optim.momentum": 0.9, "optim.nesterov": False,
        "optim.weight_decay": 0.0, "optim.decay_vectors": True, "schedule.kind": "step",
        "schedule.milestones": (100 / 8, 180 / 8), "schedule.gamma": 0.1,
        "schedule.warmup_epochs": 0.0, "meal.discriminator": True,
        "meal.discriminator_weight": 1.0}  # fmt: skip
KDEP = {"method": "kdep", "epochs": 90, "batch_size": 512, "views_per_image": 1,
        "optim.name": "sgd", "optim.momentum": 0.9, "optim.nesterov": False,
        "optim.weight_decay": 5e-4, "optim.decay_vectors": True, "schedule.kind": "step",
        "schedule.step_epochs": 30.0, "schedule.gamma": 0.1, "schedule.warmup_epochs": 0.0,
        "kdep.alignment": "svd", "kdep.scaling": "pts", "kdep.temperature": 0.1,
        "kdep.power": 3.0}  # fmt: skip
RELABEL = {"method": "fkd", "epochs": 300, "batch_size": 1024, "views_per_image": 1, **SGD,
           "labels.label_type": "marginal_smoothing", "labels.tail": "even",
           "labels.temperature": 1.0, "optim.lr": 0.1, "optim.nesterov": True,
           "schedule.warmup_epochs": 5.0}  # fmt: skip
RELABEL_CUTMIX = {
    **{name: value for name, value in RELABEL.items() if not name.startswith("optim.")},
    "mix.kind": "cutmix", "mix.prob": 1.0, "mix.cutmix_alpha": 1.0, "mix.off_epochs": 5,
    "optim.name": "timm:adamp", "optim.lr": 0.002, "optim.weight_decay": 0.01,
    "optim.decay_vectors": True}  # fmt: skip
SSL = {"method": "fkd-ssl", "epochs": 200, "batch_size": 256, "views_per_image": 1,
       "optim.name": "adamw", "optim.lr": 3e-4, "optim.weight_decay": 0.0,
       "optim.decay_vectors": True, "schedule.kind": "linear", "schedule.warmup_epochs": 0.0,
       "schedule.final_lr": 0.0, "fkd_ssl.kind": "dense", "fkd_ssl.temperature": 0.2,
       "fkd_ssl.unit": True, "fkd_ssl.head": "mlp"}  # fmt: skip

PUBLISHED = {
    "fkd-resnet50": ("tv:resnet50", BEST),
    "fkd-resnet101": ("tv:resnet101", BEST),
    "fkd-resnet50-plain": ("tv:resnet50", PLAIN),
    "fkd-resnet101-plain": ("tv:resnet101", PLAIN),
    "fkd-resnet50-adamw": ("tv:resnet50", VIT),
    "fkd-deit-tiny": ("timm:deit_tiny_patch16_224", VIT),
    "fkd-deit-small": ("timm:deit_small_patch16_224", VIT),
    "fkd-deit-base": ("timm:deit_base_patch16_224", VIT),
    "fkd-fbnetc": ("timm:fbnetc_100", VIT),
    "fkd-efficientnetv2-b0": ("timm:tf_efficientnetv2_b0", VIT),
    "relabel-resnet50": ("tv:resnet50", RELABEL),
    "relabel-cutmix-resnet50": ("tv:resnet50", RELABEL_CUTMIX),
    "fast-meal-v2-resnet50": ("tv:resnet50", MEAL),
    "fkd-ssl-resnet50": ("tv:resnet50", SSL),
    "kdep-resnet18": ("tv:resnet18", {**KDEP, "optim.lr": 0.3, "kdep.loss_weight": 3.0}),
    "kdep-mobilenetv2": ("tv:mobilenet_v2", {**KDEP, "optim.lr": 0.1, "kdep.loss_weight": 3.0}),
    "kdep-sp-resnet18": ("tv:resnet18", {**KDEP, "optim.lr": 0.3, "kdep.loss_weight": 20.0}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_numbers_and_no_others(name):
    arch, published = PUBLISHED[name]
    assert read_recipe(name) == {**published, "student.arch": arch, "student.input_size": 224}


@pytest.mark.parametrize("arch", sorted({arch for arch, _ in PUBLISHED.values()}))
def test_the_students_of_recipes_exist(arch):
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(arch, 1000).parameters()) > 1e6


def schedule(name):
    values = read_recipe(name)
    return values, ScheduleConfig(**section(values, "schedule"))


def rate(name, at):
    """Learning rate at a pass, counted in passes."""
    values, config = schedule(name)
    return lr_at(int(at * 1000), config, peak=values["optim.lr"], epoch_steps=1000,
                 epochs=values["epochs"])  # fmt: skip


def test_kdep_falls_at_30_and_60_and_meal_at_the_published_100_and_180():
    assert [round(rate("kdep-resnet18", at), 6) for at in (0, 29.9, 30, 60, 89)] == [
        0.3, 0.3, 0.03, 0.003, 0.003
    ]  # fmt: skip
    assert [round(rate("fast-meal-v2-resnet50", at / 8), 6) for at in (0, 96, 104, 184)] == [
        0.01, 0.01, 0.001, 0.0001
    ]  # fmt: skip


def test_the_plain_setting_is_74_passes_of_four_views_and_4_of_one_at_5005_steps():
    values, _ = schedule("fkd-resnet50-plain")
    passes = plan_run(1_281_167, values["batch_size"], values["views_per_image"],
                      values["epochs"], values["epoch_counting"])  # fmt: skip
    assert [p.views for p in passes] == [4] * 74 + [1] * 4
    # the published loader keeps the last, smaller batch: 5,005 steps a pass
    assert {p.steps for p in passes if p.views == 4} == {1_281_167 // 256}
