"""Reinforced ImageNet (Faghri et al. 2023, apple/ml-dr): `<index>.pth.tar`, one an image.

Each is a torch-save file of (index, [{"params": ..., "prob": (p[K], class[K])}, ...]); the index
counts the images of an ImageFolder, sorted. `config.pth.tar` says which augmentations there are.
Crop and flip have an equal in a store. RandAugment, erasing, mixup and cutmix don't: a sample with
any of them applied would be a label of other pixels, so such archives are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from storage.archives.errors import BadRecord
from storage.archives.importing import SourceImage, ViewLabels
from storage.archives.numbers import (
    as_array,
    as_classes,
    check_probabilities,
    most_probable,
)
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.archives.torch_file import read_torch_file
from storage.errors import UsageError
from storage.images import ImageFolder
from storage.imported import ImportedViews
from storage.views import Sampler

CONFIG = "config.pth.tar"
_NAME = re.compile(r"(\d{1,9})\.pth\.tar")
# in the order they are applied, whatever the configuration's order is
_ORDER = ("uint8", "resize", "center_crop", "random_crop", "random_resized_crop",
          "random_horizontal_flip", "rand_augment", "to_tensor", "random_erase", "normalize",
          "mixup", "cutmix")  # fmt: skip
_WITHOUT_PARAMETERS = frozenset(["uint8", "center_crop", "to_tensor", "normalize"])
_KNOWN = frozenset(["uint8", "to_tensor", "normalize", "random_resized_crop",
                    "random_horizontal_flip"])  # fmt: skip


class MldrRecords:
    """An ml-dr archive joined to an image folder by index; see `importing.Records`."""

    def __init__(
        self,
        source: ArchiveSource,
        folder: ImageFolder,
        report: ImportReport,
        *,
        num_classes: int = 1000,
        num_views: int | None = None,
    ) -> None:
        """Read the configuration and join.

        Raises:
            UsageError: no or another configuration, an augmentation without equal, or another
                number of images.
        """
        for name, reason in source.refused.items():
            report.problem(name, reason)
        self._source = source
        self.num_classes = num_classes
        names, config = _names(source)
        self._with_parameters = _augmentations(source, config)
        if sorted(names) != list(range(len(folder))):
            raise UsageError(
                f"{source.path} has labels of {len(names)} images (to index {max(names)}), the "
                f"folder {len(folder)} images: ml-dr counts the images of the whole folder, so "
                "give exactly the images that were labelled with --data"
            )
        self._names = names
        self.rows: Sequence[int] = range(len(folder))
        first = self._samples(0, names[0])
        self.num_views = num_views or len(first)
        self.top_k = len(first[0]["prob"][0])
        self.sampler: Sampler = ImportedViews(source="mldr")
        self.facts: dict[str, Any] = {"augmentations": sorted(self._with_parameters)}
        report.notes.append("joined by the images' sorted order, the only key that ml-dr has")

    def _samples(self, index: int, name: str) -> list[dict[str, Any]]:
        value = read_torch_file(self._source.read(name))
        match value:
            case (int(found), [*samples]) if samples:
                if found != index:
                    raise BadRecord(f"says it is of image {found}")
                return [_sample(sample) for sample in samples]
        raise BadRecord("expected (index, [samples])")

    def labels(self, image: SourceImage) -> ViewLabels:
        """One image's crops; see `importing.Records`."""
        samples = self._samples(image.row, self._names[image.row])
        if len(samples) < self.num_views:
            raise BadRecord(f"has {len(samples)} samples, expected {self.num_views} (see --crops)")
        samples = samples[: self.num_views]
        prob = as_array([s["prob"][0] for s in samples], "prob")
        found = as_array([s["prob"][1] for s in samples], "classes")
        if prob.shape != (len(samples), self.top_k) or found.shape != prob.shape:
            raise BadRecord(f"keeps {prob.shape[-1:]} classes, the archive {self.top_k}")
        index = as_classes(found, self.num_classes, "classes")
        if any(len(set(row)) < len(row) for row in index.tolist()):
            raise BadRecord("the same class twice")
        index, kept = most_probable(index, check_probabilities(prob, "prob"), self.top_k)
        views = [self._view(s["params"], image) for s in samples]
        return ViewLabels(
            box=np.array([box for box, _ in views], np.uint16),
            flip=np.array([flip for _, flip in views], np.uint8),
            index=index,
            prob=kept,
            tail=np.clip(1 - kept.sum(axis=-1), 0, 1),
        )

    def _view(self, params: Any, image: SourceImage) -> tuple[list[int], bool]:
        """Box and flip of one sample's parameters, compressed (a list) or not (a dict of pairs)."""
        if isinstance(params, list):
            if len(params) != len(self._with_parameters):
                raise BadRecord(f"{len(params)} parameters; expected {self._with_parameters}")
            values = dict(zip(self._with_parameters, params, strict=True))
        elif isinstance(params, dict):
            applied = sorted(str(name)[:30] for name in params.keys() - _KNOWN)
            if applied:
                raise BadRecord(f"has {', '.join(applied)} applied, which has no equal in a store")
            values = {
                name: params[name][0]
                for name in self._with_parameters
                if isinstance(params.get(name), tuple | list) and params[name]
            }
        else:
            raise BadRecord("a sample without parameters")
        box = values.get("random_resized_crop", (0, 0, image.height, image.width))
        flip = values.get("random_horizontal_flip", False)
        if not isinstance(box, tuple | list) or [type(v) for v in box] != [int] * 4:
            raise BadRecord("a crop that isn't four integers")
        top, left, height, width = box
        inside = top + height <= image.height and left + width <= image.width
        if min(top, left) < 0 or min(height, width) < 1 or not inside:
            raise BadRecord("a crop beyond the image")
        if isinstance(flip, tuple | list) and len(flip) == 1:
            flip = flip[0]
        if not isinstance(flip, bool):
            raise BadRecord("a flip that is neither true nor false")
        return [top, left, height, width], flip


def _sample(sample: Any) -> dict[str, Any]:
    match sample:
        case {"params": params, "prob": (list() | tuple() as prob, list() | tuple() as classes)}:
            return {"params": params, "prob": (prob, classes)}
    raise BadRecord("a sample that isn't {params, prob: (probabilities, classes)}")


def _names(source: ArchiveSource) -> tuple[dict[int, str], str]:
    names: dict[int, str] = {}
    config = None
    for name in source.names:
        last = PurePosixPath(name).name
        if found := _NAME.fullmatch(last):
            if int(found[1]) in names:
                raise UsageError(f"{source.path} has image {found[1]} twice ({name})")
            names[int(found[1])] = name
        elif last == CONFIG:
            config = name
    if config is None or not names:
        raise UsageError(
            f"{source.path} has no {CONFIG} or no <index>.pth.tar: give the unpacked folder of an "
            "ml-dr archive"
        )
    return names, config


def _augmentations(source: ArchiveSource, config: str) -> tuple[str, ...]:
    """Augmentations that keep parameters, in their order; refuses those without an equal."""
    try:
        value = read_torch_file(source.read(config))
    except BadRecord as error:
        raise UsageError(f"{source.path}/{config}: {error}") from error
    try:
        found = value["reinforce"]["image_augmentation"]
        names = {
            str(name) for name, settings in found.items()
            if not (isinstance(settings, dict) and settings.get("enable") is False)
        }  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{source.path}/{config} has no reinforce.image_augmentation: can't tell what the "
            "parameters of the samples mean"
        ) from error
    foreign = sorted(names - _KNOWN)
    if foreign:
        raise UsageError(
            f"{source.path} was made with {', '.join(foreign)}: a label of such a picture has no "
            "equal in a store (crops and flips have). The variants of ml-dr with random resized "
            "crops only can be imported"
        )
    return tuple(n for n in _ORDER if n in names and n not in _WITHOUT_PARAMETERS)
