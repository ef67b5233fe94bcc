"""Networks that end in an embedding: self-supervised teachers, with a projection head and without.

`mlp-NAME` is a network whose linear head is two layers, as MoCo v2 has it (Chen et al. 2020,
arXiv:2003.04297): its tensors carry the head's own name and .0 and .2. `headless-NAME` has no head
and gives what the head would read.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from storage.errors import UsageError
from trainer.models import library_name

HEADLESS = "headless-"


def plain_name(name: str) -> str:
    """The network inside: `mlp-tv-resnet50` is `tv:resnet50` with another head."""
    return library_name(name.partition("-")[2])


def create_embedder(name: str, outputs: int, create: Callable[[str, int], nn.Module]) -> nn.Module:
    """The network, untrained.

    Args:
        name: beginning with one of `trainer.models.EMBEDDERS`.
        outputs: components of the embedding.
        create: makes a plain network of a name and a number of classes.
    Raises:
        UsageError: no linear head, or a number of outputs that a headless network doesn't have.
    """
    network = create(plain_name(name), outputs)
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1][1].out_features != outputs:
        raise UsageError(f"{plain_name(name)} ends in no linear layer: it has no head to replace")
    place, head = layers[-1]
    width = head.in_features
    if name.startswith(HEADLESS):
        if outputs != width:
            raise UsageError(f"{name} gives {width} components, not {outputs}")
        network.set_submodule(place, nn.Identity())
        return network
    network.set_submodule(place, nn.Sequential(nn.Linear(width, width), nn.ReLU(), head))
    return network


def headless_width(name: str, create: Callable[[str, int], nn.Module]) -> int | None:
    """Components that a headless network gives; None for others."""
    if not name.startswith(HEADLESS):
        return None
    layers = [m for m in create(plain_name(name), 2).modules() if isinstance(m, nn.Linear)]
    return layers[-1].in_features if layers else None
