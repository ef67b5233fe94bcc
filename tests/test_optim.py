"""What decays, against timm's own lists and torchvision's recipes."""

import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_weight_decay
from torch import nn

from trainer.optim import parameter_groups
from trainer.step_config import OptimConfig


def decays(groups):
    return [{id(p) for p in g["params"]} for g in groups if g["weight_decay"] > 0]


def names_without_decay(model):
    config = OptimConfig(name="adamw", weight_decay=0.05, decay_vectors=False)
    rest = parameter_groups(config, model)[1]
    assert rest["weight_decay"] == 0.0
    kept = {id(p) for p in rest["params"]}
    return {name for name, p in model.named_parameters() if id(p) in kept}


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224",
             "convnext_atto", "eva02_tiny_patch14_224"],
)  # fmt: skip
def test_what_decays_is_what_timm_lets_decay(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    none = getattr(model, "no_weight_decay", set)()
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=none)
    config = OptimConfig(name="adamw", weight_decay=0.05, decay_vectors=False)
    assert decays(parameter_groups(config, model)) == decays(theirs)


def test_torchvisions_transformers_keep_their_embeddings():
    with torch.device("meta"):
        vit, swin = torchvision.models.vit_b_32(), torchvision.models.swin_t()
    assert {"class_token", "encoder.pos_embedding"} <= names_without_decay(vit)
    assert "features.1.0.attn.relative_position_bias_table" in names_without_decay(swin)


def test_all_decays_where_vectors_do():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    groups = parameter_groups(OptimConfig(weight_decay=1e-4), model)
    assert [len(group["params"]) for group in groups] == [4]
    assert groups[0]["weight_decay"] == 1e-4


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 4).requires_grad_(False)
    assert parameter_groups(OptimConfig(), model) == []
