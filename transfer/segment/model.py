"""Segmentation networks of segmentation-models-pytorch whose encoder is the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models import canonical_name
from transfer.libraries import segmentation_models
from transfer.segment.loading import check_encoder, load_encoder
from transfer.segment.settings import DECODERS, SegmentSettings
from transfer.segment.tokens import (
    TokenDecoder,
    is_plain_vit,
    lent_to_smp,
    make_token_encoder,
)
from transfer.starts import Start, build

PAD_TO = 32  # what smp's decoders take: sides divisible by it
# torchvision networks whose encoder in smp has torchvision's own names and shapes.
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
                "resnext101_32x8d", "mobilenet_v2")  # fmt: skip
_SMP_NAMES = {"pspnet": "PSPNet", "deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3Plus",
              "pan": "PAN", "fpn": "FPN", "upernet": "UPerNet", "unet": "Unet",
              "unetplusplus": "UnetPlusPlus", "manet": "MAnet", "linknet": "Linknet",
              "segformer": "Segformer"}  # fmt: skip
# Decoders of a pyramid as it is; the others dilate the encoder's last stages, which no ViT has.
_OF_PYRAMIDS = tuple(name for name, strides in DECODERS.items() if strides == (PAD_TO,))


class Segmenter(nn.Module):
    """A network of smp for images of any size, with a second head where it is asked for.

    The images are padded with zeros (the mean colour) to sides that the decoder takes, and the
    logits cut back.

    Attributes:
        network: the SegmentationModel. aux: torchvision's FCNHead on the encoder's last map but
            one, in training alone; None for none.
    """

    def __init__(self, network: nn.Module, aux: nn.Module | None) -> None:
        super().__init__()
        self.network, self.aux = network, aux
        self._pad_to: int = getattr(network.encoder, "pad_to", PAD_TO)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of normalised images: [B, 3, H, W] -> [B, C, H, W].

        In training with a second head, those of both.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self._pad_to, 0, -height % self._pad_to))
        maps = self.network.encoder(padded)
        logits = self.network.segmentation_head(self.network.decoder(maps))
        if self.aux is None or not self.training:
            return _full(logits, padded)[:, :, :height, :width]
        both = (_full(one, padded)[:, :, :height, :width] for one in (logits, self.aux(maps[-2])))
        main, second = both
        return main, second

    def heads(self) -> list[nn.Module]:
        """All that isn't encoder."""
        parts = [self.network.decoder, self.network.segmentation_head]
        return parts if self.aux is None else [*parts, self.aux]


def _full(logits: Tensor, images: Tensor) -> Tensor:
    """Logits at the images' size; the decoder's own upsampling mostly gives it already."""
    if logits.shape[2:] == images.shape[2:]:
        return logits
    return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)


def build_segmenter(
    start: Start, settings: SegmentSettings, num_classes: int, seed: int
) -> Segmenter:
    """A segmentation network on a start's weights; all else is drawn from the seed alone.

    Raises:
        UsageError: smp is missing, has no encoder for this network or can't give it this stride.
    """
    arch = start.config.arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _make_network(arch, settings, num_classes)
        aux = _make_aux(network, num_classes) if settings.aux_weight else None
    load_encoder(network.encoder, build(start, seed).state_dict(), arch)
    return Segmenter(network, aux)


def check_start(start: Start, settings: SegmentSettings, num_classes: int) -> None:
    """See that a start can be an encoder, before anything is learnt.

    Raises:
        UsageError: see `build_segmenter`; its encoder does not compute what the student does; or
            the decoder needs larger crops.
    """
    arch, student = start.config.arch, build(start, seed=0)
    _refuse_decoder(settings.decoder, arch)
    encoder = make_token_encoder(arch) if is_plain_vit(arch) else _make_encoder(encoder_name(arch))
    load_encoder(encoder, student.state_dict(), arch)
    check_encoder(encoder, student, start.config.input_size, arch)
    _try_out(build_segmenter(start, settings, num_classes, seed=0), settings)


@torch.no_grad()
def _try_out(model: Segmenter, settings: SegmentSettings) -> None:
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, 3, settings.crop, settings.crop))
    except RuntimeError as error:
        raise UsageError(
            f"{settings.decoder} can't take crops of {settings.crop} pixels "
            f"({' '.join(str(error).split())[:120]}): give a larger --crop"
        ) from error
    model.train(was_training)


def encoder_name(arch: str) -> str:
    """smp's name of the encoder that is a student's network.

    Raises:
        UsageError: there is none.
    """
    arch = canonical_name(arch)
    plain = arch.removeprefix("tv:").removeprefix("timm:")
    if arch.startswith("tv:") and plain in _TORCHVISION:
        return plain
    if arch.startswith("timm:"):
        return f"tu-{plain}"
    raise UsageError(
        f"segmentation-models-pytorch has no encoder that is {arch}: take a student of timm:..., "
        f"or tv: and one of {', '.join(_TORCHVISION)}, vit_..."
    )


def _refuse_decoder(decoder: str, arch: str) -> None:
    """See that a plain ViT has a decoder that takes its pyramid."""
    if is_plain_vit(arch) and decoder not in _OF_PYRAMIDS:
        raise UsageError(
            f"{decoder} dilates its encoder's last stages, and {arch} has no stages: give "
            f"--decoder and one of {', '.join(_OF_PYRAMIDS)}"
        )


def _make_encoder(name: str) -> nn.Module:
    """At output stride 32, without weights."""
    smp = segmentation_models()
    try:
        return smp.encoders.get_encoder(name, weights=None, depth=5)
    except Exception as error:  # timm and smp raise many types for what they can't build
        raise UsageError(
            f"segmentation-models-pytorch can't make an encoder of {name} "
            f"({' '.join(str(error).split())[:200]}): take a student with maps of falling size "
            "(ResNet, MobileNet, ConvNeXt ...) or a plain ViT"
        ) from error


def _make_network(arch: str, settings: SegmentSettings, num_classes: int) -> nn.Module:
    _refuse_decoder(settings.decoder, arch)
    if not is_plain_vit(arch):
        name = encoder_name(arch)
        return _put_decoder(name, settings, num_classes, _network_options(name, settings))
    encoder = make_token_encoder(arch)
    with lent_to_smp(encoder) as name:
        network = _put_decoder(name, settings, num_classes, {})
    network.decoder = TokenDecoder(encoder.out_channels[-1], network.decoder)
    return network


def _network_options(name: str, settings: SegmentSettings) -> dict[str, Any]:
    kind, stride = settings.decoder, settings.stride
    options: dict[str, Any] = {}
    if kind == "pspnet":
        options = {"encoder_depth": 5, "upsampling": stride, "psp_dropout": 0.1}
        if stride != 32:
            options["output_stride"] = stride  # handed on to the encoder, as is img_size below
    elif kind in ("deeplabv3", "deeplabv3plus", "pan"):
        options = {"encoder_output_stride": stride}
    if _has_fixed_input(name):
        options["img_size"] = _fixed_crop(name, settings)
    return options


def _put_decoder(
    name: str, settings: SegmentSettings, num_classes: int, options: Mapping[str, Any]
) -> nn.Module:
    smp = segmentation_models()
    kind, stride = settings.decoder, settings.stride
    try:
        return getattr(smp, _SMP_NAMES[kind])(
            name, encoder_weights=None, classes=num_classes, **options
        )
    except Exception as error:  # see _make_encoder
        raise UsageError(
            f"segmentation-models-pytorch can't put {kind} with output stride {stride} on {name} "
            f"({' '.join(str(error).split())[:200]}): take another --decoder or --output-stride"
        ) from error


def _has_fixed_input(name: str) -> bool:
    """Whether a timm network (`tu-...`) takes images of the one size that it was made for."""
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix("tu-")) if name.startswith("tu-") else None
    return config is not None and bool(config.fixed_input_size)


def _fixed_crop(name: str, settings: SegmentSettings) -> int:
    """The one size that such a network is made for here: that of a crop."""
    if settings.crop % PAD_TO or settings.test != "window":
        raise UsageError(
            f"{name.removeprefix('tu-')} takes images of one size alone: give a --crop that "
            f"{PAD_TO} divides, and leave --test window"
        )
    return settings.crop


def _make_aux(network: nn.Module, num_classes: int) -> nn.Module:
    from torchvision.models.segmentation.fcn import FCNHead

    return FCNHead(network.encoder.out_channels[-2], num_classes)
