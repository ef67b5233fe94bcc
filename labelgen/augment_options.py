"""Options of `labelgen run` and its relatives for augmentations whose draws a store keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.cli_common import with_options
from storage.errors import UsageError

if TYPE_CHECKING:
    from storage.augment import Augment

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--randaugment", type=int, nargs=2, default=None, metavar="N M",
                 help="N operations of RandAugment on every crop, at magnitude M of 30."),
    click.option("--colour-jitter", type=float, nargs=4, default=None, metavar="B C S H",
                 help="Strengths of brightness, contrast, saturation and hue (KDEP: .1 .1 .1 0)."),
    click.option("--lighting", type=float, default=None, metavar="SIGMA",
                 help="PCA colour noise of AlexNet (KDEP: 0.05)."),
    click.option("--erasing", type=float, default=None, metavar="P",
                 help="Probability that a rectangle of a crop is erased."),
    click.option("--erasing-fill", type=int, nargs=3, default=None, metavar="R G B",
                 help="Levels of what is erased [default: 124 116 104, ImageNet's mean]."),
)  # fmt: skip


def augment_options(command: F) -> F:
    """--randaugment, --colour-jitter, --lighting, --erasing; see `augment_from_options`."""
    return with_options(_OPTIONS)(command)


def take_augment(options: dict[str, Any]) -> Augment | None:
    """The augmentations of a command's options, of which `augment_options`' own are taken out."""
    names = ("randaugment", "colour_jitter", "lighting", "erasing", "erasing_fill")
    return augment_from_options(*(options.pop(name) for name in names))


def augment_from_options(
    randaugment: tuple[int, int] | None,
    colour_jitter: tuple[float, float, float, float] | None,
    lighting: float | None,
    erasing: float | None,
    erasing_fill: tuple[int, int, int] | None,
) -> Augment | None:
    """The augmentations that `augment_options` describe, in the order of that list.

    Returns:
        None where none is asked for.
    Raises:
        UsageError: a value out of range, or a fill without erasing.
    """
    from storage.augment import Augment, Operation
    from storage.colour_draws import ColourJitter, Lighting
    from storage.erasing import IMAGENET_MEAN, Erasing
    from storage.randaugment import RandAugment

    if erasing_fill is not None and erasing is None:
        raise UsageError("--erasing-fill needs --erasing")
    found: list[Operation] = []
    if randaugment is not None:
        found.append(RandAugment(count=randaugment[0], magnitude=randaugment[1]))
    if colour_jitter is not None:
        names = ("brightness", "contrast", "saturation", "hue")
        found.append(ColourJitter(**dict(zip(names, colour_jitter, strict=True))))
    if lighting is not None:
        found.append(Lighting(sigma=lighting))
    if erasing is not None:
        found.append(Erasing(probability=erasing, fill=erasing_fill or IMAGENET_MEAN))
    return Augment(tuple(found)) if found else None
