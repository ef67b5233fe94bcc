"""Networks by name: torchvision (`tv:`), timm (`timm:`) and the CIFAR families kept here.

Weights are never fetched here: a network is built empty, its weights come from a file.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from storage.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

# Short names of common students; `labelgen teachers` lists the teachers' own.
ALIASES = {
    "r18": "tv:resnet18",
    "r34": "tv:resnet34",
    "r50": "tv:resnet50",
    "r101": "tv:resnet101",
    "r152": "tv:resnet152",
    "mnv2": "tv:mobilenet_v2",
    "deit-t": "timm:deit_tiny_patch16_224",
    "vit-s": "timm:vit_small_patch16_224",
}
# Entry of a student's safetensors header that says how to build and feed it (JSON).
METADATA_KEY = "teachonce"
CIFAR_RESNETS = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
# other networks for 32-pixel images (trainer.models.cifar_families)
CIFAR_FAMILIES = ("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8",
                  "vgg13", "cifar_resnet50", "cifar_mobilenetv2", "shufflenetv1",
                  "shufflenetv2")  # fmt: skip
EMBEDDERS = ("mlp-", "headless-")  # before a network's name: with another head, or none
BRANCHED = "hsakd-"  # before a network's name: that network with HSAKD's branches


def names() -> list[str]:
    """Names that `create` takes without a library prefix."""
    return sorted([*ALIASES, *CIFAR_RESNETS, *CIFAR_FAMILIES])


def canonical_name(name: str) -> str:
    """Alias written out: `r18` is `tv:resnet18`; other names are returned as they are."""
    return ALIASES.get(name, name)


def branched_name(name: str) -> str:
    """Name of a network with HSAKD's branches: `hsakd-resnet56`, `hsakd-tv-resnet34`.

    Without a colon, which a teacher's name would be cut at.
    """
    name = canonical_name(name)
    return name if name.startswith(BRANCHED) else BRANCHED + name.replace(":", "-", 1)


def plain_name(name: str) -> str:
    """Inverse of `branched_name`: the network without its branches."""
    return library_name(name.removeprefix(BRANCHED))


def library_name(plain: str) -> str:
    """`tv-NAME` and `timm-NAME`, as names of made-up networks have them, with a colon again."""
    library, _, rest = plain.partition("-")
    return f"{library}:{rest}" if library in ("tv", "timm") else plain


def create(name: str, num_classes: int) -> nn.Module:
    """An untrained network with a `num_classes`-way head, initialised from torch's generator.

    Args:
        name: alias, `tv:NAME`, `timm:NAME`, a CIFAR network (`resnet20`, 32-pixel images), or
            `hsakd-` and one of these (`hsakd-tv-resnet18`): with branches; `mlp-` or `headless-`:
            with a projection head, or without any (trainer.models.embedders).
        num_classes: width of the head, at least 1.
    Raises:
        UsageError: unknown name (the nearest ones are given).
    """
    name = canonical_name(name)
    if name.startswith("tv:"):
        return _create_torchvision(name.removeprefix("tv:"), num_classes)
    if name.startswith("timm:"):
        return _create_timm(name.removeprefix("timm:"), num_classes)
    if name in CIFAR_RESNETS:
        from trainer.models.cifar_resnet import CifarResNet

        return CifarResNet(int(name.removeprefix("resnet")), num_classes)
    if name in CIFAR_FAMILIES:
        from trainer.models.cifar_families import create_cifar

        return create_cifar(name, num_classes)
    if name.startswith(EMBEDDERS):
        from trainer.models.embedders import create_embedder

        return create_embedder(name, num_classes, create)
    if name.startswith(BRANCHED):
        return _create_branched(name.removeprefix(BRANCHED), num_classes)
    raise unknown_name("network", name, names(), "or tv:NAME, timm:NAME")


def _create_branched(name: str, num_classes: int) -> nn.Module:
    from trainer.models.branches import BranchedNetwork

    plain = plain_name(name)
    return BranchedNetwork(create(plain, num_classes), num_classes, plain)


def unknown_name(kind: str, name: str, known: list[str], also: str = "") -> UsageError:
    """Error for a name nobody knows, with the nearest known ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    also = f" {also}" if also else ""
    return UsageError(f"unknown {kind} {name!r}; nearest: {', '.join(near)}{also}")


def _create_torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision network", name, known)
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name in ("googlenet", "inception_v3"):
        extra["aux_logits"] = False
    return models.get_model(name, weights=None, num_classes=num_classes, **extra)


def _create_timm(name: str, num_classes: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise unknown_name("timm network", name, timm.list_models())
    return timm.create_model(name, pretrained=False, num_classes=num_classes)
