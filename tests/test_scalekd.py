"""ScaleKD's parts against the published card: projector, views, losses."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from extraction import seeded, tiny_swin, tiny_vit
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from storage.errors import UsageError
from trainer import models
from trainer.method_config import ScalekdConfig
from trainer.methods.scalekd_modules import CrossAttentionProjector, centred, token_distance
from trainer.models.stage_taps import tap_stages

# student's (channels, grid) of stage 3 and 4, the teacher's widths, millions of parameters as
# published; the published Swin-S setting has queries in stage 4 that nothing reads
PAIRS = {
    "Swin-S, ResNet-50": ((1024, 14), (2048, 7), (384, 768), True, (24.26, 95.07, 119.33)),
    "Swin-L, ResNet-50": ((1024, 14), (2048, 7), (768, 1536), False, (35.72, 140.23, 175.96)),
    "Swin-L, MobileNetV1": ((512, 14), (1024, 7), (768, 1536), False, (19.79, 77.21, 97.00)),
    "Swin-L, ConvNeXt-T": ((384, 14), (768, 7), (768, 1536), False, (17.28, 67.36, 84.64)),
    "Swin-L, ViT-S/16": ((384, 14), (384, 14), (768, 1536), False, (17.28, 57.11, 74.39)),
    "Swin-L, ViT-B/16": ((768, 14), (768, 14), (768, 1536), False, (26.58, 67.58, 94.16)),
    "Swin-L, Mixer-S/16": ((512, 14), (512, 14), (768, 1536), False, (19.79, 60.01, 79.80)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_four_projectors_have_the_published_number_of_parameters(pair):
    (c3, g3), (c4, g4), (d3, d4), own, published = PAIRS[pair]
    with torch.device("meta"):
        third = CrossAttentionProjector(c3, (g3, g3), d3, (14, 14))
        fourth = CrossAttentionProjector(c4, (g4, g4), d4, (7, 7), own_queries=own)
    counts = [2 * sum(p.numel() for p in part.parameters()) / 1e6 for part in (third, fourth)]
    found = (*counts, sum(counts))
    assert found == pytest.approx(published, abs=0.0051)


def by_hand(projector, maps, queries, heads, scale):
    """The projector position by position and head by head, in float64."""
    p = {name: value.detach().double() for name, value in projector.state_dict().items()}
    x = F.conv2d(maps.double(), p["stem.0.weight"], p["stem.0.bias"], padding=1)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    x = (x - mean) / (var + 1e-5).sqrt()
    x = x * p["stem.1.weight"].view(1, -1, 1, 1) + p["stem.1.bias"].view(1, -1, 1, 1)
    source = (x.clamp(min=0) + p["position"]).flatten(2).transpose(1, 2)
    lin = lambda value, name: value @ p[f"{name}.weight"].T + p[f"{name}.bias"]  # noqa: E731
    asked = lin(queries.double(), "query_projection.0").clamp(min=0)
    q, k = lin(asked, "attention.query"), lin(source, "attention.key")
    v = lin(source, "attention.value")
    size = q.shape[-1] // heads
    parts = []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        logits = q[..., cut] @ k[..., cut].transpose(1, 2) * scale / size**0.5
        parts.append(logits.softmax(-1) @ v[..., cut])
    u = lin(torch.cat(parts, -1), "attention.out")
    u = (u - u.mean(-1, keepdim=True)) / (u.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    u = u * p["norm.weight"] + p["norm.bias"]
    return u + lin(lin(u, "feed_forward.0").clamp(min=0), "feed_forward.2")


@pytest.mark.parametrize("own", [True, False])
def test_the_projector_is_the_formula_in_float64(own):
    torch.manual_seed(0)
    projector = CrossAttentionProjector(
        6, (4, 4), 8, (2, 3), heads=2, scale=5.0, own_queries=own
    )  # another grid than the student's
    with torch.no_grad():
        for value in projector.parameters():
            value.add_(0.1 * torch.randn_like(value))
    maps, given = torch.randn(3, 6, 4, 4), torch.randn(3, 6, 8)
    found = projector(maps, None if own else given)
    queries = projector.queries.weight.expand(3, -1, -1) if own else given
    expected = by_hand(projector, maps, queries, heads=2, scale=5.0)
    assert found.shape == (3, 6, 8)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_layer_norm_stem_norms_channels_at_every_position():
    projector = CrossAttentionProjector(6, (2, 2), 8, (2, 2), norm="layer")
    normed = projector.stem[:2](torch.randn(3, 6, 2, 2))
    torch.testing.assert_close(normed.mean(1), torch.zeros(3, 2, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.var(1, correction=0), torch.ones(3, 2, 2), rtol=0, atol=1e-2)
    assert isinstance(CrossAttentionProjector(6, (2, 2), 8, (2, 2)).stem[1], nn.BatchNorm2d)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UsageError, match="3 heads don't divide the 8 channels"):
        CrossAttentionProjector(6, (2, 2), 8, (2, 2), heads=3)


def cosine_matrix(size):
    """Orthonormal DCT-II: row k is coefficient k of a signal of this length."""
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (3, 5)])
def test_the_second_view_is_a_cosine_transform_without_its_first_coefficient(grid):
    tokens = np.random.default_rng(0).normal(3, 1, (2, grid[0] * grid[1], 5))
    down, across = cosine_matrix(grid[0]), cosine_matrix(grid[1])
    np.testing.assert_allclose(down @ down.T, np.eye(grid[0]), atol=1e-12)
    maps = tokens.transpose(0, 2, 1).reshape(2, 5, *grid)
    spectrum = down @ maps @ across.T
    spectrum[..., 0, 0] = 0
    back = (down.T @ spectrum @ across).reshape(2, 5, -1).transpose(0, 2, 1)
    np.testing.assert_allclose(centred(torch.from_numpy(tokens)).numpy(), back, atol=1e-12)


def test_the_distance_is_the_published_sum_over_tokens_divided_by_their_number():
    rng = np.random.default_rng(1)
    s, z = rng.normal(size=(2, 4, 49, 16))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    published = 0.08 * ((unit(s) - unit(z)) ** 2).sum() / len(s)
    found = 3.92 * token_distance(torch.from_numpy(s), torch.from_numpy(z))
    assert float(found) == pytest.approx(published, rel=1e-5)
    cosines = (unit(s) * unit(z)).sum(-1).mean()
    assert float(found) == pytest.approx(3.92 * (2 - 2 * cosines), rel=1e-5)


def test_unlike_tokens_begin_at_the_published_7_84_and_5_88():
    """Twice alpha T, where nothing of the teacher's direction is known yet."""
    generator = torch.Generator().manual_seed(0)
    s, z = torch.randn(2, 8, 49, 768, generator=generator)
    config = ScalekdConfig()
    spat = config.s3_spat_weight * token_distance(s, z)
    alt = config.s3_alt_weight * token_distance(centred(s), centred(z))
    assert float(spat) == pytest.approx(7.84, abs=0.05)
    assert float(alt) == pytest.approx(5.88, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": "mena"}, "expected one of auto, labels, mean"),
        ({"task": "mse"}, "expected one of ce, bce"),
        ({"norm": "group"}, "expected one of batch, layer"),
        ({"s3_alt_weight": -1.0}, "expected none below 0"),
        ({f"s{s}_{v}_weight": 0.0 for s in (3, 4) for v in ("spat", "alt")}, "are all 0"),
        ({"kd_weight": 1.5}, "expected 0 to 1"),
        ({"softmax_scale": 0.0}, "expected a positive number"),
        ({"task": "bce", "smoothing": 0.1}, "task bce has none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        ScalekdConfig(**changes)


STUDENTS = {
    "tv:resnet50": ((1024, 4), (2048, 2)),
    "timm:mobilenetv1_100": ((512, 4), (1024, 2)),
    "timm:convnext_tiny": ((384, 4), (768, 2)),
    "tv:swin_t": ((384, 4), (768, 2)),
    "resnet8": ((32, 32), (64, 16)),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_stages_have_the_published_widths_and_grids(name):
    """At 64 pixels grids are 64/224 of the published 14 and 7."""
    student = models.create(name, 3)
    found = tap_stages(student, 64, name)
    shapes = [(s.width, s.grid) for s in (found.stage3, found.stage4)]
    assert shapes == [(width, (side, side)) for width, side in STUDENTS[name]]
    assert student.training, "left as it was"


def tokens_as_map(tokens, side, prefix=0):
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def vit_by_hand(model, images):
    values = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    stages = [values := block(values) for block in model.blocks]
    return tokens_as_map(stages[2], 4, 1), tokens_as_map(model.norm(values), 4, 1)


def swin_by_hand(model, images):
    values = model.patch_embed(images)
    for layer in model.layers[:-1]:
        values = layer(values)
    last = model.norm(model.layers[-1](values))
    return values.permute(0, 3, 1, 2), last.permute(0, 3, 1, 2)


def mixer_by_hand(model, images):
    values = model.stem(images)
    stages = [values := block(values) for block in model.blocks]
    return tokens_as_map(stages[-3], 4), tokens_as_map(stages[-1], 4)


def convnext_by_hand(model, images):
    values = model.stem(images)
    stages = [values := stage(values) for stage in model.stages]
    return stages[-2], model.head.norm(stages[-1])


def tiny_mixer():
    return MlpMixer(num_classes=3, img_size=128, patch_size=32, num_blocks=4, embed_dim=16)


def tiny_convnext():
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 24))


BY_HAND = {
    "vit": (tiny_vit, vit_by_hand, 64),
    "swin": (tiny_swin, swin_by_hand, 64),
    "mixer": (tiny_mixer, mixer_by_hand, 128),
    "convnext": (tiny_convnext, convnext_by_hand, 64),
}


@pytest.mark.parametrize("family", BY_HAND)
def test_the_taps_take_what_the_stages_give_and_change_nothing(family):
    build, by_hand_of, size = BY_HAND[family]
    model, images = seeded(build).eval(), torch.randn(2, 3, size, size)
    names = list(model.state_dict())
    with torch.no_grad():
        plain = model(images)
    taps = tap_stages(model, size, family)
    with taps.listening() as maps:
        logits = model(images)
    assert torch.equal(logits, plain) and list(model.state_dict()) == names
    for shape, found, expected in zip(
        (taps.stage3, taps.stage4), (maps.stage3, maps.stage4), by_hand_of(model, images),
        strict=True,
    ):  # fmt: skip
        assert found.shape[1:] == (shape.width, *shape.grid)
        torch.testing.assert_close(found, expected)
    maps.stage4.square().mean().backward()
    assert next(iter(model.parameters())).grad is not None, "gradients reach the stem"
