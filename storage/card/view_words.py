"""Options of `labelgen run` that ask for a store's views and augmentations."""

from __future__ import annotations

from storage.augment import Augment
from storage.colour_draws import ColourJitter, Lighting
from storage.erasing import Erasing
from storage.format import StoreSpec
from storage.randaugment import RandAugment
from storage.views import CentreCrop, PaddedCrop, RandomResizedCrop

DEFAULT_RATIO = (0.75, 4 / 3)
ORDER = (RandAugment, ColourJitter, Lighting, Erasing)  # as the options apply them


def view_words(spec: StoreSpec, gaps: list[str]) -> list[str]:
    """Options of the view sampler; what they can't say is added to `gaps`."""
    sampler = spec.sampler
    if isinstance(sampler, PaddedCrop):
        return ["--views", sampler.kind, "--padding", str(sampler.padding)]
    if isinstance(sampler, RandomResizedCrop):
        ratio = ["--ratio", *map(repr, sampler.ratio)] if sampler.ratio != DEFAULT_RATIO else []
        if sampler.flip_probability not in (0.0, 0.5):
            gaps.append(f"flip probability {sampler.flip_probability}")
        flip = "--flip" if sampler.flip_probability else "--no-flip"
        low, high = sampler.scale
        return ["--views", sampler.kind, "--scale", repr(low), repr(high), *ratio, flip]
    if isinstance(sampler, CentreCrop):
        flip = "--flip" if sampler.flip else "--no-flip"
        return ["--views", sampler.kind, "--crop-ratio", repr(sampler.crop_ratio), flip]
    gaps.append(f"views of kind {sampler.kind}")
    return []


def augment_words(augment: Augment | None, gaps: list[str]) -> list[str]:
    """Options of the augmentations; what they can't say is added to `gaps`."""
    operations = augment.operations if augment else ()
    words: list[str] = []
    for operation in operations:
        match operation:
            case RandAugment(count=count, magnitude=magnitude):
                words += ["--randaugment", str(count), str(magnitude)]
            case ColourJitter(brightness=b, contrast=c, saturation=s, hue=h):
                words += ["--colour-jitter", *map(repr, (b, c, s, h))]
            case Lighting(sigma=sigma):
                words += ["--lighting", repr(sigma)]
            case Erasing(probability=probability, fill=fill):
                words += ["--erasing", repr(probability), "--erasing-fill", *map(str, fill)]
                if Erasing(probability=probability, fill=fill) != operation:
                    gaps.append(f"erasing of scale {operation.scale} and ratio {operation.ratio}")
    places = [ORDER.index(type(operation)) for operation in operations]
    if places != sorted(places):
        gaps.append(f"the order of augmentations: {', '.join(o.kind for o in operations)}")
    return words
