"""Random HSAKD teachers and what a store would keep of them, without a store."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from storage.targets.heads import HeadSpec, head_record
from storage.targets.vectors import encode_vectors
from trainer import models
from trainer.batch import Batch
from trainer.models.branches import BranchedNetwork
from trainer.targets import StoredTarget, decode_part

CLASSES = 3


def branched(name: str, classes: int = CLASSES, seed: int = 0) -> BranchedNetwork:
    """A random network with branches and opinions (large logits)."""
    torch.manual_seed(seed)
    network = models.create(name, classes)
    assert isinstance(network, BranchedNetwork)
    with torch.no_grad():
        for layer in network.head_layers().values():
            layer.weight.mul_(8)
    return network


def live_heads(network: BranchedNetwork, rows: Tensor) -> dict[str, Tensor]:
    """Logits of every head of the network itself, in eval mode, without gradients."""
    with torch.no_grad():
        layers = network.eval().head_layers()
        return {name: layers[name](h) for name, h in network.forward_heads(rows).items()}


def stored_heads(
    network: BranchedNetwork, encoding: str, stored: str, rotations: int = 4
) -> StoredTarget:
    """The heads target of a store with this network's heads."""
    layers = network.head_layers()
    specs = [
        HeadSpec(name=name, width=layer.in_features, classes=layer.out_features,
                 encoding=encoding, stored=stored)
        for name, layer in layers.items()
    ]  # fmt: skip
    weights = {}
    for name, layer in layers.items() if encoding == "pooled" else ():
        weights[f"{name}_weight"] = layer.weight.detach().numpy()
        weights[f"{name}_bias"] = layer.bias.detach().numpy()
    record = head_record(name="h", teacher="t", views=1, rotations=rotations, heads=specs,
                         weights=weights)  # fmt: skip
    return StoredTarget(record, None, weights.__getitem__, lambda name: b"")


def head_batch(
    network: BranchedNetwork, images: Tensor, target: Tensor, encoding: str, stored: str
) -> tuple[StoredTarget, Batch]:
    """A batch with what a store gives back of these crops' heads, and its target."""
    kept = stored_heads(network, encoding, stored)
    rows = torch.stack([torch.rot90(image, r, (1, 2)) for image in images for r in range(4)])
    with torch.no_grad():
        values = network.eval().forward_heads(rows)
    if encoding == "dense":
        values = live_heads(network, rows)
    parts = {}
    for part in kept.record.parts:
        vectors = values[part.name].numpy().reshape(len(images), 4, -1)
        arrays = encode_vectors(part, np.ascontiguousarray(vectors, dtype=np.float32))
        parts[part.name] = decode_part(part, {n: torch.from_numpy(a) for n, a in arrays.items()})
    return kept, Batch(images, target, None, targets=parts)
