"""A small vision transformer that can learn from a thousand photos, and the commands that know it.

    python benchmarks/hybrid_vit.py init --mobilenet mobilenet_v2.safetensors --out start.st
    python benchmarks/hybrid_vit.py trainer fit --method supervised --student timm:vit_mobilenet \
        --init start.st ...
    python benchmarks/hybrid_vit.py narrow vit/student.safetensors \
        --data imagenette224/train --out vit10.safetensors
    python benchmarks/hybrid_vit.py labelgen run --teacher file:vit10.safetensors ...

ScaleKD asks for a strong transformer, and none can be trained from nothing on 1,200 photos. This
is a hybrid (Dosovitskiy et al., ICLR 2021, section 3.1): four transformer blocks, 192 wide, over
the first 14 blocks of MobileNetV2, one token for every 16 x 16 pixels. `init` puts ImageNet weights
into the convolutions and leaves the transformer as its seed made it; `narrow` keeps a folder's
classes of a head that has learnt more of them. The name belongs to this benchmark alone: it is
registered with timm here, and teachonce's commands run in this process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from timm.layers import HybridEmbed
from timm.models import VisionTransformer, generate_default_cfgs, register_model
from torchvision.models import mobilenet_v2

from labelgen.cli import cli as labelgen
from trainer.checkpoint import load_student, save_student
from trainer.cli import cli as trainer

STEM = 14  # blocks of MobileNetV2 kept: 96 channels at a sixteenth
STEM_PREFIX = "patch_embed.backbone."
default_cfgs = generate_default_cfgs(  # under this name timm looks for it
    {"vit_mobilenet": {"input_size": (3, 112, 112), "mean": MEAN, "std": STD, "num_classes": 10}}
)


@register_model
def vit_mobilenet(
    pretrained: bool = False, img_size: int = 112, num_classes: int = 1000, **_options: Any
) -> VisionTransformer:
    """The network with fresh weights, for crops of `img_size` pixels a side."""
    if pretrained:
        raise click.UsageError("vit_mobilenet has no weights of its own: see `init`")
    embed = partial(HybridEmbed, backbone=mobilenet_v2().features[:STEM])
    return VisionTransformer(
        img_size=img_size, patch_size=1, embed_layer=embed, num_classes=num_classes, embed_dim=192,
        depth=4, num_heads=4, global_pool="avg", class_token=False, fc_norm=False,
    )  # fmt: skip


@click.group()
def main() -> None:
    """A hybrid transformer, and commands that can build it."""


@main.command()
@click.option("--mobilenet", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--classes", type=int, default=10, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def init(mobilenet: Path, out: Path, classes: int, seed: int) -> None:
    """Convolutions of MOBILENET (torchvision's keys), a transformer of the seed."""
    torch.manual_seed(seed)
    state = timm.create_model("vit_mobilenet", num_classes=classes).state_dict()
    found = {
        name.replace("features.", STEM_PREFIX, 1): value
        for name, value in load_file(mobilenet).items()
    }
    stem = [name for name in state if name.startswith(STEM_PREFIX)]
    save_file(state | {name: found[name] for name in stem}, out)
    click.echo(f"{len(stem)} of {len(state)} tensors from {mobilenet}")


@main.command()
@click.argument("student", type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
def narrow(student: Path, data: Path, out: Path) -> None:
    """STUDENT with the classes of the folder DATA alone, by the rows of its head."""
    whole, config = load_student(student)
    kept = sorted(folder.name for folder in data.iterdir() if folder.is_dir())
    if unknown := sorted(set(kept) - set(config.classes)):
        raise click.ClickException(
            f"{data}: {student} has no class {unknown[0]}: give a folder of its classes"
        )
    rows = [config.classes.index(name) for name in kept]
    state = {
        name: value[rows] if name.startswith("head.") else value
        for name, value in whole.state_dict().items()
    }
    network = timm.create_model("vit_mobilenet", num_classes=len(kept))
    network.load_state_dict(state)
    about = replace(config, num_classes=len(kept), classes=tuple(kept))
    save_student(out, network, about, {"narrowed": student.name})
    click.echo(f"{len(kept)} of {len(config.classes)} classes kept")


main.add_command(labelgen, "labelgen")
main.add_command(trainer, "trainer")

if __name__ == "__main__":
    main()
