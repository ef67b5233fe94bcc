"""Plain vision transformers as encoders of pyramids: the tokens of four blocks as maps, rescaled.

The blocks are the last of each quarter of the depth (2, 5, 8, 11 of twelve, counted from 0), as
mmsegmentation's UPerNets on ViT-B and DeiT have them. The pyramid is that of BEiT's UPerNet (Bao et
al. 2022, arXiv:2106.08254; mmsegmentation's Feature2Pyramid).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models import canonical_name, create
from transfer.libraries import segmentation_models

LEVELS = 4
_TIMM_FILES = ("vision_transformer", "deit", "eva")  # of timm.models
_LENT_NAME = "teachonce-tokens"


def is_plain_vit(arch: str) -> bool:
    """Whether a network's blocks all have one grid of tokens, and it can take any grid."""
    import timm

    library, _, name = canonical_name(arch).partition(":")
    if library == "tv":
        return name.startswith("vit_")
    return library == "timm" and timm.models.is_model_in_modules(name, _TIMM_FILES)


class TokenEncoder(nn.Module):
    """A plain ViT without head and last norm, in the way of smp's encoders.

    Attributes:
        model: the network, whose tensors have the student's names. blocks: whose outputs are the
            maps, counted from 0.
        out_channels: of the images, a map of half their size that there is none of, and the
            LEVELS maps of `TokenDecoder`.
        pad_to: what the images' sides must be divisible by, for the coarsest of those.
    """

    def __init__(self, model: nn.Module, *, depth: int, width: int, patch: int) -> None:
        super().__init__()
        self.model, self.blocks = model, quarter_ends(depth)
        self.out_channels = [3, 0, *[width] * LEVELS]
        self.pad_to = 2 * patch

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> itself and the maps [B, width, H / patch, W / patch] of the blocks."""
        return [images, *self.maps(images)]

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """The blocks' outputs without class and register tokens."""

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Asked by smp of every encoder: these take RGB alone."""
        assert in_channels == 3


class TimmTokens(TokenEncoder):
    """A VisionTransformer or Eva of timm, which resizes its position embeddings itself.

    Args:
        model: made with `dynamic_img_size`; what comes after its last block is taken off.
    """

    def __init__(self, model: nn.Module) -> None:
        depth = len(model.blocks)
        super().__init__(
            model, depth=depth, width=model.embed_dim, patch=model.patch_embed.feat_ratio()
        )
        model.prune_intermediate_layers(list(self.blocks), prune_norm=True, prune_head=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        """See TokenEncoder."""
        return self.model.forward_intermediates(
            images, indices=list(self.blocks), intermediates_only=True
        )


class TorchvisionTokens(TokenEncoder):
    """A VisionTransformer of torchvision, whose own forward takes images of one size alone.

    Args:
        model: what comes after its last block is taken off.
    """

    def __init__(self, model: nn.Module) -> None:
        depth = len(model.encoder.layers)
        super().__init__(model, depth=depth, width=model.hidden_dim, patch=model.patch_size)
        model.heads, model.encoder.ln = nn.Identity(), nn.Identity()

    def maps(self, images: Tensor) -> list[Tensor]:
        """See TokenEncoder."""
        from timm.layers import resample_abs_pos_embed

        vit = self.model
        patches = vit.conv_proj(images)
        grid = patches.shape[2:]
        classes = vit.class_token.expand(len(images), -1, -1)
        tokens = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1)
        places = resample_abs_pos_embed(vit.encoder.pos_embedding, list(grid), num_prefix_tokens=1)
        tokens = vit.encoder.dropout(tokens + places)
        found = []
        for number, block in enumerate(vit.encoder.layers):
            tokens = block(tokens)
            if number in self.blocks:
                found.append(tokens[:, 1:].transpose(1, 2).unflatten(2, grid))
        return found


def quarter_ends(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of a depth, counted from 0: 12 -> 2, 5, 8, 11.

    Raises:
        UsageError: there are fewer blocks than quarters.
    """
    if depth < LEVELS:
        raise UsageError(
            f"a student of {depth} blocks has no {LEVELS} maps: take one of {LEVELS} blocks or more"
        )
    return tuple(depth * level // LEVELS - 1 for level in range(1, LEVELS + 1))


def make_token_encoder(arch: str) -> TokenEncoder:
    """The encoder of a plain ViT (`is_plain_vit`), drawn from torch's generator.

    Raises:
        UsageError: too few blocks, or timm can't make this network for images of any size.
    """
    import timm

    arch = canonical_name(arch)
    if arch.startswith("tv:"):
        return TorchvisionTokens(create(arch, 1))
    try:
        model = timm.create_model(arch.removeprefix("timm:"), num_classes=0, dynamic_img_size=True)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(
            f"timm can't make {arch} for images of any size "
            f"({' '.join(str(error).split())[:200]}): take another student"
        ) from error
    return TimmTokens(model)


class TokenDecoder(nn.Module):
    """A decoder of smp behind the layers that make a pyramid of token maps.

    The first map grows fourfold (transposed convolutions of side 2, a batch norm and GELU between
    them), the second twofold, the third stays and the last is halved by max-pooling: with
    patches of 16 pixels these are strides 4, 8, 16 and 32.
    """

    def __init__(self, width: int, decoder: nn.Module) -> None:
        super().__init__()
        self.rescale = nn.ModuleList([
            nn.Sequential(_doubled(width), nn.BatchNorm2d(width), nn.GELU(), _doubled(width)),
            _doubled(width),
            nn.Identity(),
            nn.MaxPool2d(2),
        ])  # fmt: skip
        self.decoder = decoder

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """What the decoder makes of `TokenEncoder`'s images and maps."""
        return self.decoder(self.pyramid(maps))

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Images, smp's placeholder for a map of half their size, and the rescaled maps."""
        images, *tokens = maps
        levels = [layer(one) for layer, one in zip(self.rescale, tokens, strict=True)]
        height, width = levels[0].shape[2:]
        return [images, images.new_empty(len(images), 0, 2 * height, 2 * width), *levels]


def _doubled(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


@contextmanager
def lent_to_smp(encoder: TokenEncoder) -> Iterator[str]:
    """The name that smp, which takes encoders by name alone, builds networks on `encoder` by."""
    smp = segmentation_models()
    known = smp.encoders.encoders
    known[_LENT_NAME] = {"encoder": lambda **_: encoder, "params": {}, "pretrained_settings": {}}
    try:
        yield _LENT_NAME
    finally:
        del known[_LENT_NAME]
