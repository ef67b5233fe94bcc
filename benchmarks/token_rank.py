"""How much of ScaleKD's gradient a rank-r int8 store of tokens keeps, on photos.

    python benchmarks/token_rank.py --data PHOTOS --weights mobilenet_v2.safetensors
    python benchmarks/token_rank.py --data PHOTOS --teacher vit/student.safetensors

Tokens are a network's last ones over crops of the photos: those of torchvision's MobileNetV2 with
`--weights`, of a network that `trainer fit` trained with `--teacher`, of a Swin-T with seeded
weights with `--swin`. Bases are fitted as `labelgen` fits them, on the crops of one half of each
class's photos, and everything is measured on the other half. The first lines have one basis for the
whole set, the `class` lines one for every class, the `image` lines one for each crop itself (a
bound: no store has that). Encoding and decoding are the store's own: mean float16, remainder int8.

For each rank: bytes a view before compression; energy kept of the remainder; 1 - cosine of the
tokens as they are and less their mean; cosine between the gradients of the loss with respect to the
projected student's tokens, from stored and from live tokens, in both views. The student's tokens
are the live ones with noise of their mean length (`--noise` 1): somewhere in mid-training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from labelgen.basis import Moments, fit_basis
from labelgen.extract.tokens import geometry, known_place
from storage.targets.tokens import MEAN, REMAINDER, split_tokens, token_record
from storage.targets.vectors import decode_vectors, encode_vectors
from trainer.checkpoint import load_student
from trainer.methods.scalekd_modules import centred, token_distance
from trainer.models.tails import to_tokens

WEIGHTS = {"spat": 3.92, "alt": 2.94}


@dataclass(frozen=True)
class Network:
    """What makes tokens [n, T, D] of normalised crops [n, 3, size, size]."""

    tokens: Callable[[Tensor], Tensor]
    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def photo_crops(data: Path, images: int, views: int, network: Network) -> tuple[Tensor, list[str]]:
    """Normalised crops [n, 3, S, S] and the class of each, evenly spaced photos of the folder."""
    import hashlib

    from storage.images import scan_folder
    from storage.pixels import cut_view, decode_rgb
    from storage.views import RandomResizedCrop

    folder, crops, classes = scan_folder(data), [], []
    for row in np.unique(np.linspace(0, len(folder) - 1, images).astype(int)):
        encoded = folder.path(int(row)).read_bytes()
        image = decode_rgb(encoded)
        drawn = RandomResizedCrop().draw(
            0, hashlib.sha256(encoded).digest(), image.height, image.width, 0, views
        )
        for box, flip in zip(drawn.box, drawn.flip, strict=True):
            crops.append(cut_view(image, box, bool(flip), network.size, "bilinear"))
            classes.append(folder.keys[int(row)].split("/")[0])
    pixels = torch.from_numpy(np.stack(crops)).float().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    return (pixels - mean) / std, classes


def mobilenet(weights: Path) -> Network:
    """torchvision's MobileNetV2: its last map."""
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(load_file(weights))
    features: nn.Module = model.eval().features
    return Network(lambda crops: features(crops).flatten(2).transpose(1, 2))


def seeded_swin() -> Network:
    """A Swin in shape only."""
    import timm

    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224").eval()
    return Network(lambda crops: swin.forward_features(crops).flatten(1, 2))


def trained(checkpoint: Path) -> Network:
    """A network of `trainer fit`, with the tokens that labelgen takes of it."""
    model, config = load_student(checkpoint)
    model.eval()
    place = known_place(model)
    if place is None:
        raise click.UsageError(f"{checkpoint} is {config.arch}, whose last tokens aren't known")
    found: list[Tensor] = []
    module = model.get_submodule(place.module)
    module.register_forward_hook(lambda module, args, output: found.append(output))

    def tokens(crops: Tensor) -> Tensor:
        model(crops)
        value = found.pop()
        return to_tokens(value, place.layout, geometry(place, value.shape)[0])

    return Network(tokens, config.input_size, config.mean, config.std)


@torch.inference_mode()
def tokens_of(crops: Tensor, network: Network) -> np.ndarray:
    """float32 [n, T, D]."""
    return torch.cat([network.tokens(part) for part in crops.split(16)]).numpy()


def remainders(tokens: np.ndarray) -> Tensor:
    """What bases are fitted on, [n T, D]."""
    return torch.from_numpy(split_tokens(tokens)[REMAINDER]).flatten(0, 1)


def stored(tokens: np.ndarray, basis: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and remainder as a store gives them back, and bytes a view."""
    width, grid = tokens.shape[2], (round(tokens.shape[1] ** 0.5),) * 2
    spectrum = None if basis is None else np.ones(width)
    record = token_record(name="t", teacher="t", views=1, layer="-", grid=grid, width=width,
                          basis=basis, spectrum=spectrum, basis_images=1)  # fmt: skip
    parts = split_tokens(tokens, basis)
    back = {
        part.name: decode_vectors(part, encode_vectors(part, parts[part.name]))
        for part in record.parts
    }
    rest = back[REMAINDER] if basis is None else back[REMAINDER] @ basis.T
    return back[MEAN], rest, record.view_bytes


def gradient(student: Tensor, wanted: Tensor, view: str) -> Tensor:
    """Of one view's loss with respect to the student's tokens."""
    student = student.clone().requires_grad_()
    found = student if view == "spat" else centred(student)
    (WEIGHTS[view] * token_distance(found, wanted)).backward()
    assert student.grad is not None
    return student.grad


def measure(
    tokens: np.ndarray, bases: list[np.ndarray | None], groups: list[np.ndarray], noise: float
) -> dict[str, float]:
    """The table's numbers where every group of crops has its own basis."""
    mean = np.empty((len(tokens), tokens.shape[2]), np.float32)
    rest = np.empty_like(tokens)
    for basis, rows in zip(bases, groups, strict=True):
        mean[rows], rest[rows], size = stored(tokens[rows], basis)
    live = torch.from_numpy(tokens)
    remainder = torch.from_numpy(rest)
    whole = centred(live)
    views = {
        "spat": (torch.from_numpy(mean).unsqueeze(1) + remainder, live),
        "alt": (centred(remainder), whole),
    }
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(live.shape, generator=generator) * live.norm(dim=-1).mean()
    student = live + noise * noisy / live.shape[2] ** 0.5
    found = {
        "bytes": float(size),
        "energy": 1 - float((whole - remainder).square().sum() / whole.square().sum()),
    }
    for view, (kept, true) in views.items():
        found[f"{view}_loss"] = float(token_distance(kept, true)) / 2
        ours, theirs = gradient(student, kept, view), gradient(student, true, view)
        found[f"{view}_gradient"] = float(
            torch.cosine_similarity(ours.double().flatten(), theirs.double().flatten(), dim=0)
        )
    return found


def fitted(tokens: np.ndarray, rank: int) -> np.ndarray:
    """float32 [D, r], as labelgen fits it; of several ranks the first columns are the same."""
    return fit_basis(Moments.of(remainders(tokens)), rank, centred=False).vectors


def table(tokens: np.ndarray, classes: list[str], half: np.ndarray, ranks: list[int], noise: float):
    """Lines (basis, rank, numbers), measured on the crops that `half` doesn't mark."""
    width, held = tokens.shape[2], ~half
    seen, kind = tokens[held], np.array(classes)
    everything = [np.arange(len(seen))]
    names = sorted(set(classes))
    by_class = [np.flatnonzero(kind[held] == name) for name in names]
    wide = max((r for r in ranks if r < width), default=1)
    whole = fitted(tokens[half], wide)
    each = [fitted(tokens[half & (kind == name)], wide) for name in names]
    for rank in (r for r in ranks if r < width):
        yield "set", rank, measure(seen, [whole[:, :rank]], everything, noise)
        yield "class", rank, measure(seen, [basis[:, :rank] for basis in each], by_class, noise)
    for rank in (r for r in ranks if r < tokens.shape[1]):
        own = [np.linalg.svd(one - one.mean(0), full_matrices=False)[2][:rank].T for one in seen]
        yield "image", rank, measure(seen, own, [np.array([i]) for i in range(len(seen))], noise)
    yield "none", width, measure(seen, [None], everything, noise)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="MobileNetV2's.")
@click.option(
    "--teacher", type=click.Path(path_type=Path, exists=True), help="student.safetensors."
)
@click.option("--swin", is_flag=True, help="A Swin-T with seeded weights instead.")
@click.option("--images", default=200, show_default=True)
@click.option("--views", default=2, show_default=True)
@click.option("--ranks", default="16,32,64,128,256", show_default=True)
@click.option("--noise", default=1.0, show_default=True, help="Of the student, in lengths.")
@click.option("--json", "as_json", is_flag=True)
def main(
    data: Path, weights: Path | None, teacher: Path | None, swin: bool, images: int, views: int,
    ranks: str, noise: float, as_json: bool,
) -> None:  # fmt: skip
    """See the module's text."""
    if [weights is not None, teacher is not None, swin].count(True) != 1:
        sys.exit("give one of --weights, --teacher and --swin")
    if weights is not None:
        network = mobilenet(weights)
    else:
        network = seeded_swin() if teacher is None else trained(teacher)
    crops, classes = photo_crops(data, images, views, network)
    tokens = tokens_of(crops, network)
    half = np.arange(len(tokens)) // views % 2 == 0
    lines = table(tokens, classes, half, [int(r) for r in ranks.split(",")], noise)
    if as_json:
        print(json.dumps([{"basis": b, "rank": r, **numbers} for b, r, numbers in lines]))
        return
    print(f"{len(tokens)} crops, {tokens.shape[1]} tokens of {tokens.shape[2]}; "
          f"mean's share of the energy {1 - centred_share(tokens):.3f}")  # fmt: skip
    print("basis  rank   bytes  energy  1-cos spat  1-cos alt  gradient spat  gradient alt")
    for basis, rank, n in lines:
        numbers = f"{n['spat_loss']:10.2e} {n['alt_loss']:10.2e}"
        numbers += f"  {n['spat_gradient']:13.5f} {n['alt_gradient']:13.5f}"
        print(f"{basis:5} {rank:5} {n['bytes']:7,.0f}  {n['energy']:.4f}  {numbers}")


def centred_share(tokens: np.ndarray) -> float:
    """How much of the tokens' energy is left without their mean."""
    rest = split_tokens(tokens)[REMAINDER]
    return float((rest**2).sum() / (tokens**2).sum())


if __name__ == "__main__":
    main()
