"""Plain vision transformers as encoders: maps against the student's own tokens, sums by hand."""

import copy

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from storage.errors import UsageError
from tests.segment_sets import write_set, write_student
from tests.test_transfer_segment import scratch
from transfer.options import TaskOptions
from transfer.segment.keep import NETWORK_NAME, load_segmenter
from transfer.segment.loading import check_encoder, load_encoder
from transfer.segment.model import build_segmenter, check_start
from transfer.segment.run import SegmentRequest, run_segment
from transfer.segment.settings import SegmentSettings
from transfer.segment.tokens import (
    TimmTokens,
    TokenDecoder,
    TorchvisionTokens,
    is_plain_vit,
    make_token_encoder,
    quarter_ends,
)
from transfer.starts import Start, build

ARCH, OWN_SIZE = "timm:test_vit", 160  # six blocks of width 64, patches of 16
PYRAMIDS = ("fpn", "upernet", "unet", "unetplusplus", "manet", "linknet", "segformer")


def settings(decoder="upernet", **changes):
    return SegmentSettings(decoder=decoder, **({"aux_weight": 0.0, "crop": 64} | changes))


def trained(arch=ARCH, seed=7):
    """A student's start with tensors that no fresh network of the tests' seeds has."""
    start = scratch(arch, OWN_SIZE)
    return Start("student", start.config, build(start, seed).state_dict(), "digest")


def block_maps(network, blocks, numbers, prefix, images):
    """The outputs of some blocks in a plain forward pass, without prefix tokens, as maps."""
    grid = images.shape[2] // 16, images.shape[3] // 16
    found = {}
    handles = [
        blocks[n].register_forward_hook(lambda _, __, out, n=n: found.update({n: out}))
        for n in numbers
    ]
    with torch.no_grad():
        network.eval()(images)
    for handle in handles:
        handle.remove()
    return [found[n][:, prefix:].transpose(1, 2).reshape(len(images), -1, *grid) for n in numbers]


def assert_same(found, wanted, atol=0.0):
    assert len(found) == len(wanted) == 4
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def tiny_torchvision(image_size=64):
    torch.manual_seed(3)
    network = VisionTransformer(image_size, 16, num_layers=8, num_heads=2, hidden_dim=32,
                                mlp_dim=48, num_classes=3)  # fmt: skip
    for tensor in (network.class_token, network.encoder.pos_embedding):
        nn.init.normal_(tensor)
    return network


def test_the_maps_are_the_tokens_of_the_last_block_of_each_quarter():
    start = trained()
    student = build(start, seed=0)
    encoder = build_segmenter(start, settings(), 3, seed=0).network.encoder.eval()
    images = torch.randn(2, 3, OWN_SIZE, OWN_SIZE)
    with torch.no_grad():
        shown, *maps = encoder(images)
    assert shown is images
    assert_same(maps, block_maps(student, student.blocks, (0, 2, 3, 5), 1, images))


def test_torchvisions_maps_are_its_tokens_too():
    network = tiny_torchvision()
    encoder = TorchvisionTokens(copy.deepcopy(network)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = encoder(images)[1:]
    wanted = block_maps(network, network.encoder.layers, (1, 3, 5, 7), 1, images)
    assert_same(maps, wanted, atol=1e-5)
    load_encoder(encoder, network.state_dict(), "tv:tiny")
    check_encoder(encoder, network, 64, "tv:tiny")


def test_position_embeddings_are_resized_to_any_grid():
    """Against a network that timm has resized itself, and torchvision's made for the other size."""
    start = trained()
    encoder = build_segmenter(start, settings(), 3, seed=0).network.encoder.eval()
    resized = timm.create_model("test_vit", num_classes=5)
    resized.load_state_dict(start.state)
    resized.set_input_size((96, 224))
    images = torch.randn(1, 3, 96, 224)
    with torch.no_grad():
        maps = encoder(images)[1:]
    assert_same(maps, block_maps(resized, resized.blocks, (0, 2, 3, 5), 1, images), atol=1e-5)

    network, larger = tiny_torchvision(), tiny_torchvision(96)
    state = network.state_dict()
    places = state["encoder.pos_embedding"]
    grid = places[:, 1:].transpose(1, 2).reshape(1, 32, 4, 4)
    grid = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    moved = torch.cat([places[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    larger.load_state_dict(state | {"encoder.pos_embedding": moved})
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        maps = TorchvisionTokens(network).eval()(images)[1:]
    assert_same(maps, block_maps(larger, larger.encoder.layers, (1, 3, 5, 7), 1, images), atol=1e-5)


@pytest.mark.parametrize(("depth", "ends"), [(12, (2, 5, 8, 11)), (4, (0, 1, 2, 3)),
                                             (6, (0, 2, 3, 5)), (24, (5, 11, 17, 23))])  # fmt: skip
def test_quarters_end_at(depth, ends):
    assert quarter_ends(depth) == ends


def test_every_tensor_of_the_encoder_is_the_students_and_only_norm_and_head_are_left():
    start = trained()
    encoder = build_segmenter(start, settings(), 3, seed=0).network.encoder
    loaded = {n.removeprefix("model."): t for n, t in encoder.state_dict().items()}
    assert all(torch.equal(start.state[name], tensor) for name, tensor in loaded.items())
    assert start.state.keys() - loaded.keys() == {"norm.weight", "norm.bias", "head.weight",
                                                  "head.bias"}  # fmt: skip
    fresh = build_segmenter(scratch(ARCH, OWN_SIZE), settings(), 3, seed=0).network.encoder
    assert not torch.equal(
        fresh.model.blocks[0].attn.qkv.weight, loaded["blocks.0.attn.qkv.weight"]
    )


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "pos_embed", "blocks.5.mlp.fc2.bias"])
def test_an_encoder_with_another_tensor_is_refused(name):
    student = build(trained(), seed=0)
    encoder = make_token_encoder(ARCH)
    load_encoder(encoder, student.state_dict(), ARCH)
    check_encoder(encoder, student, OWN_SIZE, ARCH)
    with torch.no_grad():
        encoder.model.get_parameter(name).add_(0.01)
    with pytest.raises(UsageError, match="does not compute what the student does"):
        check_encoder(encoder, student, OWN_SIZE, ARCH)


def test_the_pyramid_is_what_plain_sums_give():
    torch.manual_seed(0)
    decoder = TokenDecoder(5, nn.Identity()).eval()
    decoder.rescale[0][1].running_mean.uniform_(-1, 1)
    maps = [torch.randn(2, 5, 4, 6) for _ in range(4)]

    def doubled(values, layer):
        out = torch.einsum("bihw,iokl->bohkwl", values, layer.weight)
        b, o, h, k, w, l = out.shape  # noqa: E741
        return out.reshape(b, o, h * k, w * l) + layer.bias[:, None, None]

    first, norm, _, second = decoder.rescale[0]
    with torch.no_grad():
        images, half, *levels = decoder.pyramid([torch.zeros(2, 3, 64, 96), *maps])
        middle = doubled(maps[0], first) - norm.running_mean[:, None, None]
        middle = middle / (1 + norm.eps) ** 0.5
        middle = middle * 0.5 * (1 + torch.erf(middle / 2**0.5))
        wanted = [doubled(middle, second), doubled(maps[1], decoder.rescale[1]), maps[2],
                  maps[3].unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax(dim=(3, 5))]  # fmt: skip
    assert_same(levels, wanted, atol=1e-5)
    assert images.shape == (2, 3, 64, 96) and half.shape == (2, 0, 32, 48)


def test_patches_of_another_size_scale_the_pyramid():
    vit = TimmViT(img_size=28, patch_size=14, embed_dim=8, depth=4, num_heads=1, num_classes=0,
                  class_token=False, reg_tokens=2, global_pool="avg",
                  dynamic_img_size=True)  # fmt: skip
    encoder = TimmTokens(vit)
    assert encoder.pad_to == 28 and encoder.out_channels == [3, 0, 8, 8, 8, 8]
    sides = [m.shape[2:] for m in TokenDecoder(8, nn.Identity()).pyramid(
        encoder(torch.randn(1, 3, 56, 84)))[2:]]  # fmt: skip
    assert sides == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("decoder", PYRAMIDS)
def test_each_decoder_of_pyramids_learns_from_images_of_any_size(decoder):
    model = build_segmenter(trained(), settings(decoder, aux_weight=0.4), 4, seed=0).train()
    main, second = model(torch.randn(2, 3, 50, 70))
    assert main.shape == second.shape == (2, 4, 50, 70)
    (main.sum() + second.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    parts = [model.network.encoder, *model.heads()]
    assert [id(p) for part in parts for p in part.parameters()] == [
        id(p) for p in model.parameters()
    ]
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 33, 20)).shape == (1, 4, 33, 20)


def test_what_no_token_map_serves_is_refused_in_one_line():
    for decoder in ("pspnet", "deeplabv3", "deeplabv3plus", "pan"):
        with pytest.raises(UsageError, match=rf"{decoder} dilates .* timm:test_vit has no stages: "
                           r"give --decoder and one of fpn, upernet, unet"):  # fmt: skip
            check_start(scratch(ARCH, OWN_SIZE), settings(decoder), 3)
    with pytest.raises(UsageError, match=r"--output-stride is 8; upernet can have 32"):
        settings(output_stride=8)
    with pytest.raises(UsageError, match="a student of 3 blocks has no 4 maps"):
        quarter_ends(3)


def test_a_network_made_for_one_size_takes_others_and_smps_table_is_left_as_it_was():
    arch = "timm:test_vit3"  # with register tokens, an attention pool and no class token
    with pytest.raises(AssertionError, match="Input height"):
        build(scratch(arch, OWN_SIZE), 0)(torch.zeros(1, 3, 64, 64))
    check_start(scratch(arch, OWN_SIZE), settings("fpn"), 3)
    assert not [name for name in smp.encoders.encoders if "teachonce" in name]


@pytest.mark.parametrize(
    ("arch", "plain"),
    [("tv:vit_b_16", True), ("vit-s", True), ("deit-t", True), ("tv:swin_t", False),
     ("timm:vit_base_patch16_224.augreg_in1k", True), ("timm:eva02_small_patch14_336", True),
     ("timm:deit_base_distilled_patch16_224", True), ("timm:mixer_b16_224", False),
     ("timm:swin_tiny_patch4_window7_224", False), ("timm:beit_base_patch16_224", False),
     ("timm:vit_small_r26_s32_224", False), ("tv:resnet18", False), ("resnet20", False)],
)  # fmt: skip
def test_plain_vits_are_known_by_name(arch, plain):
    assert is_plain_vit(arch) is plain


def test_a_run_with_a_vit_and_scratch_ends_in_a_network_that_can_be_read(tmp_path):
    student = write_student(tmp_path / "student.safetensors", ARCH, size=OWN_SIZE)
    task = TaskOptions(out=tmp_path / "out", compare=("scratch",), seeds=1, epochs=1, batch_size=3,
                       lr=0.001, device="cpu", workers=1)  # fmt: skip
    changes = {
        "optimizer": "adamw",
        "decoder": "segformer",
        "crop": 64,
        "test": "whole",
        "test_scales": (0.7, 1.5),
    }
    values = run_segment(
        SegmentRequest(student=student, data=str(write_set(tmp_path / "set")), task=task,
                       changes=changes, overlays=1)
    )  # fmt: skip
    assert values["starts"].keys() == {"student", "scratch"}
    assert values["settings"]["optimizer"] == "adamw" and values["settings"]["lr"] == 0.001
    saved = tmp_path / "out" / "student" / "seed0" / NETWORK_NAME
    network, config, _ = load_segmenter(saved)
    checkpoint = torch.load(saved.parent / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(checkpoint["model"][n], t) for n, t in network.state_dict().items())
    groups = checkpoint["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01, 0.0]  # AdamW's vectors
    assert config.arch == ARCH and network(torch.zeros(1, 3, 40, 90)).shape == (1, 3, 40, 90)
