"""From a teacher's name to everything a run must know about it, before any weight is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelgen.grammar import ALIASES, FILE, PLAIN, TIMM, TORCHVISION, TeacherName, parse_teacher
from labelgen.weights import WeightsFile, infer_num_classes, read_weights
from storage.errors import TeacherError, UsageError
from storage.pixels import INTERPOLATIONS

_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """One teacher, resolved: architecture, weights and how its pixels must be prepared.

    Attributes:
        name: short name, the folder of its labels in a store.
        canonical: the teacher written out in full, without any folder of this machine.
        library: package that builds the network.
        arch: what that package calls it (for trainer.models.create with a file's weights).
        file: weights to load; None when the library brings its own (`weights`).
        input_size: side in pixels. mean, std: of RGB scaled to 0..1.
        classes: names of the outputs in their order, None when unknown.
    """

    name: str
    canonical: str
    library: str
    version: str
    arch: str
    weights: str | None
    file: WeightsFile | None
    licence: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    num_classes: int
    classes: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.input_size < 1:
            raise UsageError(f"teacher input size is {self.input_size}; expected a positive side")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise UsageError(f"teacher {what} is {values}; expected three finite numbers")
        if min(self.std) <= 0:
            raise UsageError(f"teacher std is {self.std}; expected three positive numbers")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"teacher interpolation is {self.interpolation!r}; the pixel contract knows "
                f"{', '.join(sorted(INTERPOLATIONS))}: choose one with --interpolation"
            )
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise UsageError(
                f"{len(self.classes)} class names for a teacher of {self.num_classes} classes"
            )


def resolve(
    spec: str,
    *,
    weights: str | Path | None = None,
    arch: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    class_names: Sequence[str] | None = None,
) -> TeacherSpec:
    """Resolve a teacher's name (see labelgen.grammar) without fetching anything.

    What is not given is taken from the weights file's own description, then from the
    library's data config of that architecture. Torchvision and timm heads as wide as ImageNet's
    are taken to be in its class order (measured agreement shows it, should they not be).

    Raises:
        UsageError: unknown name (with the nearest ones), or a setting missing or out of range.
        TeacherError: the weights file can't be read or belongs to another architecture.
    """
    name = parse_teacher(spec)
    if name.source == PLAIN and name.name.endswith(_WEIGHTS_SUFFIXES):
        name = TeacherName(source=FILE, name=name.name)
    path = Path(weights) if weights else None
    if name.source == FILE:
        path = path or Path(name.name)
    file = read_weights(path) if path else None
    described = dict(file.metadata) if file else {}
    if name.source == FILE or arch:
        arch = arch or described.get("arch")
        if not arch:
            raise UsageError(
                f"{path} does not say its architecture: give it with --arch (tv:NAME, timm:NAME "
                "or a name of trainer.models such as resnet20)"
            )
        name = parse_teacher(arch)
    base = _LIBRARIES[name.source](name, file)
    given = {
        "input_size": size, "mean": mean, "std": std, "interpolation": interpolation,
        "classes": class_names,
    }  # fmt: skip
    return _assemble(name, file, base | _known(described) | _known(given))


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("input_size", "mean", "std", "interpolation", "classes")
    return {key: settings[key] for key in keys if settings.get(key) is not None}


def _assemble(
    name: TeacherName, file: WeightsFile | None, settings: Mapping[str, Any]
) -> TeacherSpec:
    flags = {"input_size": "--size", "mean": "--mean", "std": "--std"}
    for key, flag in flags.items():
        if key not in settings:
            raise UsageError(
                f"the {key.replace('_', ' ')} of teacher {name} is unknown: neither its library "
                f"nor its weights file says it; give it with {flag}"
            )
    classes = settings.get("classes")
    canonical = f"{settings['arch']}@file:{file.path.name}" if file else settings["canonical"]
    bare = settings["arch"].partition(":")[2] or settings["arch"]
    return TeacherSpec(
        name=re.sub(r"[^A-Za-z0-9._-]", "_", bare),
        canonical=canonical,
        library=settings["library"],
        version=settings["version"],
        arch=settings["arch"],
        weights=None if file else settings["weights"],
        file=file,
        licence="unknown" if file else settings["licence"],
        input_size=_square(settings["input_size"]),
        mean=tuple(float(value) for value in settings["mean"]),  # type: ignore[arg-type]
        std=tuple(float(value) for value in settings["std"]),  # type: ignore[arg-type]
        interpolation=settings.get("interpolation", "bilinear"),
        num_classes=int(settings["num_classes"]),
        classes=tuple(str(value) for value in classes) if classes else None,
    )


def _square(size: int | Sequence[int]) -> int:
    return int(size) if isinstance(size, (int, float)) else int(size[-1])


def _torchvision(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    import torchvision
    from torchvision import models

    from trainer.models import unknown_name

    known = models.list_models(module=models)
    if name.name not in known:
        raise unknown_name("torchvision teacher", name.name, known, "(tv:NAME)")
    choices = models.get_model_weights(name.name)
    tag = name.weights or choices.DEFAULT.name
    if tag not in choices.__members__:
        raise unknown_name(f"weights of tv:{name.name}", tag, list(choices.__members__))
    transforms = choices[tag].transforms()
    arch = f"tv:{name.name}"
    num_classes = _file_classes(file, arch) or len(choices[tag].meta["categories"])
    return {
        "library": "torchvision",
        "version": torchvision.__version__,
        "arch": arch,
        "canonical": f"{arch}@{tag}",
        "weights": tag,
        "licence": "unknown",  # torchvision states none for its weights
        "input_size": transforms.crop_size,
        "mean": transforms.mean,
        "std": transforms.std,
        "interpolation": transforms.interpolation.value,
        "num_classes": num_classes,
        "classes": _imagenet_classes(num_classes),
    }


def _timm(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    import timm
    from timm.data import resolve_data_config

    from trainer.models import unknown_name

    if not timm.is_model(name.name.partition(".")[0]):
        raise unknown_name("timm teacher", name.name, timm.list_models(), "(timm:NAME)")
    try:
        config = timm.get_pretrained_cfg(name.name)
    except RuntimeError as error:  # the architecture exists, the tag does not
        architecture = name.name.partition(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*") or [architecture]
        raise unknown_name("timm teacher", name.name, tags, "(timm:NAME)") from error
    if not file and not config.has_weights:
        raise UsageError(
            f"timm:{name.name} has no published weights: give a file with --weights, or one of "
            f"timm's pretrained names ({', '.join(timm.list_pretrained()[:3])} ...)"
        )
    arch = f"timm:{name.name.partition('.')[0]}"
    data = resolve_data_config(pretrained_cfg=config.to_dict())
    num_classes = _file_classes(file, arch) or config.num_classes
    full = f"{config.architecture}.{config.tag}" if config.tag else name.name
    return {
        "library": "timm",
        "version": timm.__version__,
        "arch": arch if file else f"timm:{full}",
        "canonical": f"timm:{full}",
        "weights": full,
        "licence": config.license or "unknown",
        "input_size": data["input_size"],
        "mean": data["mean"],
        "std": data["std"],
        "interpolation": data["interpolation"],
        "num_classes": num_classes,
        "classes": config.label_names or _imagenet_classes(num_classes),
    }


def _own(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from trainer.models import names, unknown_name

    if name.name not in names():
        from torchvision import models

        torchvision_names = (f"tv:{each}" for each in models.list_models(module=models))
        known = sorted({*ALIASES, *names(), *torchvision_names})
        raise unknown_name("teacher", name.name, known, "(see labelgen teachers)")
    if not file:
        raise UsageError(
            f"teacher {name.name} has no published weights: give a file with --weights"
        )
    try:
        release = version("teachonce")
    except PackageNotFoundError:  # run from a source tree that is not installed
        release = "unknown"
    return {
        "library": "teachonce",
        "version": release,
        "arch": name.name,
        "num_classes": _file_classes(file, name.name),
    }


_LIBRARIES: dict[str, Callable[[TeacherName, WeightsFile | None], dict[str, Any]]] = {
    TORCHVISION: _torchvision,
    TIMM: _timm,
    PLAIN: _own,
}


def _file_classes(file: WeightsFile | None, arch: str) -> int | None:
    """Number of classes of a weights file: what it says, else what its tensors show."""
    if file is None:
        return None
    if "num_classes" in file.metadata:
        return int(file.metadata["num_classes"])
    from trainer.models import create

    return infer_num_classes(file, lambda num_classes: create(arch, num_classes), arch)


def _imagenet_classes(num_classes: int) -> tuple[str, ...] | None:
    """wnids in the order of ImageNet-1k (or 12k, 22k) when the size of the head says so."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def unavailable(spec: TeacherSpec, error: Exception) -> TeacherError:
    """Weights that can't be fetched: offline, or the server refuses."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return TeacherError(
        f"the weights of {spec.canonical} are not on this machine and can't be fetched "
        f"({type(error).__name__}: {reason[:120]}): run once where there is a network, or give "
        "the weights as a file with --weights"
    )
