"""Segmentation networks of segmentation-models-pytorch whose encoder is the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models import canonical_name
from trainer.models.feature_tap import noise_batch
from trainer.models.taps import OUTPUT, Listener, Tap
from transfer.extra import load_extra
from transfer.segment.settings import SegmentSettings
from transfer.starts import Start, build

LARGEST_DIFFERENCE = 1e-5  # of the encoder's maps from the student's, relative above 1
PAD_TO = 32  # what smp's decoders take: sides divisible by it
# torchvision networks whose encoder in smp has torchvision's own names and shapes.
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
                "resnext101_32x8d", "mobilenet_v2")  # fmt: skip
_SMP_NAMES = {"pspnet": "PSPNet", "deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3Plus",
              "pan": "PAN", "fpn": "FPN", "upernet": "UPerNet", "unet": "Unet",
              "unetplusplus": "UnetPlusPlus", "manet": "MAnet", "linknet": "Linknet",
              "segformer": "Segformer"}  # fmt: skip


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

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of normalised images: [B, 3, H, W] -> [B, C, H, W].

        In training with a second head, those of both.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % PAD_TO, 0, -height % PAD_TO))
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
        network = _make_network(encoder_name(arch), settings, num_classes)
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
    encoder = _make_encoder(encoder_name(arch))
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
        f"or tv: and one of {', '.join(_TORCHVISION)}"
    )


def _make_encoder(name: str) -> nn.Module:
    """At output stride 32, without weights."""
    smp = load_extra("segmentation_models_pytorch", "transfer segment")
    try:
        return smp.encoders.get_encoder(name, weights=None, depth=5)
    except Exception as error:  # timm and smp raise many types for what they can't build
        raise UsageError(
            f"segmentation-models-pytorch can't make an encoder of {name} "
            f"({' '.join(str(error).split())[:200]}): take a student with maps of falling size "
            "(ResNet, MobileNet, ConvNeXt ...)"
        ) from error


def _make_network(name: str, settings: SegmentSettings, num_classes: int) -> nn.Module:
    smp = load_extra("segmentation_models_pytorch", "transfer segment")
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


def load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], arch: str) -> None:
    """Give an encoder the student's weights, all of them that it has a place for.

    timm's networks of features flatten the names of sequences (`stages.0` -> `stages_0`), and smp
    puts `model.` before them.

    Raises:
        UsageError: a tensor of the encoder that the student has none for.
    """
    places = encoder.state_dict()
    flat = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    found = {name: flat.get(name.removeprefix("model.").replace(".", "_")) for name in places}
    wrong = [n for n, t in found.items() if t is None or t.shape != places[n].shape]
    if wrong:
        raise UsageError(
            f"{len(wrong)} of {len(places)} tensors of smp's encoder for {arch} are none of the "
            f"student's, such as {wrong[0]}: take another student"
        )
    # not the encoder's own load_state_dict, which changes the mapping it is given
    nn.Module.load_state_dict(encoder, found)


@torch.no_grad()
def check_encoder(encoder: nn.Module, student: nn.Module, input_size: int, arch: str) -> None:
    """See that every map of an encoder (stride 32) is one that the student computes itself.

    Raises:
        UsageError: one differs from all of the student's maps of its shape by more than
            LARGEST_DIFFERENCE.
    """
    own: dict[str, Tensor] = {}
    names = [name for name, _ in student.named_modules() if name]
    listener = Listener(student, [Tap(name, name, OUTPUT, _as_map) for name in names])
    listener.found = own
    images = noise_batch(input_size)[:1]
    was_training = student.training
    try:
        student.eval()(images)
    finally:
        listener.close()
        student.train(was_training)
    was_training = encoder.training
    maps = encoder.eval()(images)[1:]
    encoder.train(was_training)
    for number, found in enumerate(maps, start=1):
        if not found.numel():  # smp's placeholder where a network has no map of half the size
            continue
        limit = LARGEST_DIFFERENCE * max(1.0, float(found.abs().max()))
        alike = [m for m in _both_orders(own) if m.shape == found.shape]
        near = [float((m - found).abs().max()) for m in alike]
        if not near or min(near) > limit:
            raise UsageError(
                f"smp's encoder for {arch} does not compute what the student does: map {number} "
                f"differs by {min(near, default=float('inf')):.1e}; take another student"
            )


def _both_orders(maps: Mapping[str, Tensor]) -> list[Tensor]:
    """Maps as they are, and those with channels last put first, as smp does."""
    found = [value for value in maps.values() if value.ndim == 4]
    return found + [value.permute(0, 3, 1, 2) for value in found]


def _as_map(value: Any) -> Tensor:
    """A copy of a module's output as [B, c, h, w]; nothing where it is no map."""
    if not isinstance(value, Tensor) or value.ndim != 4:
        return torch.empty(0)
    return value.detach().clone()
