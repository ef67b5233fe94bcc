"""From a teacher's name to everything a run must know about it, before any weight is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelgen.fitting import build_empty
from labelgen.grammar import ENSEMBLE, FILE, TeacherName, parse_teacher
from labelgen.libraries import BACKGROUND_HEAD, first_line, library_settings
from labelgen.weights import WeightsFile, read_weights
from storage.errors import TeacherError, UsageError
from storage.pixels import INTERPOLATIONS

CHANNEL_ORDERS = ("rgb", "bgr")
# What a weights file may say of itself, and flags may say above it.
_SETTINGS = (
    "input_size", "mean", "std", "interpolation", "classes", "channel_order", "class_offset",
)  # fmt: skip
_FLAGS = {"input_size": "--size", "mean": "--mean", "std": "--std"}


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """One teacher, resolved: architecture, weights and how its pixels must be prepared.

    Attributes:
        name: short name, the folder of its labels in a store.
        canonical: the teacher written out in full, without any folder of this machine.
        library: package that builds the network.
        arch: what that package calls it (for trainer.models.create with a file's weights).
        file: weights to load; None when the library brings its own (`weights`).
        input_size: side in pixels.
        mean, std: of pixels scaled to 0..1, by the network's channels in the order it takes them:
            with "bgr" the first of three is blue's.
        channel_order: "rgb" or "bgr".
        num_classes: classes labelled, those of the head without the first `class_offset`.
        classes: names of the outputs in their order, None when unknown.
        revision: commit of the repository the weights come from, None where there is none.
        members: an ensemble's teachers; () for one network. mean, std and channel_order of an
            ensemble are its first member's (labelgen.ensemble says what becomes of the others').
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
    channel_order: str = "rgb"
    class_offset: int = 0
    revision: str | None = None
    members: tuple[TeacherSpec, ...] = ()

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
        if self.channel_order not in CHANNEL_ORDERS:
            raise UsageError(
                f"teacher channel order is {self.channel_order!r}; expected rgb or bgr"
            )
        if self.class_offset < 0 or self.num_classes < 1:
            raise UsageError(
                f"class offset is {self.class_offset} for a teacher of "
                f"{self.num_classes + self.class_offset} outputs; expected 0 or more, fewer than "
                "outputs: choose another --class-offset"
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
    channel_order: str | None = None,
    class_offset: int | None = None,
) -> TeacherSpec:
    """Resolve a teacher's name (see labelgen.grammar) without fetching any weights.

    What is not given is taken from the weights file's own description, then from the
    library's data config of that architecture. Torchvision and timm heads as wide as ImageNet's
    are taken to be in its class order (measured agreement shows it, should they not be).
    An ensemble's members take size, interpolation and class_names together; all else is a
    member's own.

    Raises:
        UsageError: unknown name (with the nearest ones), a setting missing or out of range, or
            members of an ensemble that don't go together.
        TeacherError: the weights file can't be read or belongs to another architecture.
    """
    name = parse_teacher(spec)
    given = {
        "input_size": size, "mean": mean, "std": std, "interpolation": interpolation,
        "classes": class_names, "channel_order": channel_order, "class_offset": class_offset,
    }  # fmt: skip
    if name.source == ENSEMBLE:
        return _resolve_ensemble(name, {"weights": weights, "arch": arch, **given})
    return _resolve_one(name, Path(weights) if weights else None, arch, given)


def _resolve_ensemble(name: TeacherName, given: Mapping[str, Any]) -> TeacherSpec:
    from labelgen.ensemble import join_specs

    together = ("input_size", "interpolation", "classes")
    single = [key for key, value in given.items() if key not in together and value is not None]
    if single:
        raise UsageError(
            f"--{single[0].replace('_', '-')} belongs to one network, and {name} is an ensemble: "
            "describe the member in its own weights file"
        )
    shared = {key: given[key] for key in together}
    return join_specs([_resolve_one(member, None, None, shared) for member in name.members])


def _resolve_one(
    name: TeacherName, path: Path | None, arch: str | None, given: Mapping[str, Any]
) -> TeacherSpec:
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
        if name.source in (FILE, ENSEMBLE):
            raise UsageError(f"--arch {arch} is no architecture; expected tv:NAME, timm:NAME ...")
    base = library_settings(name, file)
    return _assemble(name, file, base | _known(described) | _known(given))


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in _SETTINGS if settings.get(key) is not None}


def _assemble(
    name: TeacherName, file: WeightsFile | None, settings: Mapping[str, Any]
) -> TeacherSpec:
    for key, flag in _FLAGS.items():
        if key not in settings:
            raise UsageError(
                f"the {key.replace('_', ' ')} of teacher {name} is unknown: neither its library "
                f"nor its weights file says it; give it with {flag}"
            )
    offset = _class_offset(settings)
    num_classes = int(settings["outputs"]) - offset
    classes = settings.get("classes") or (
        _imagenet_classes(num_classes) if settings.get("imagenet") else None
    )
    short = settings.get("short_name") or settings["arch"].partition(":")[2] or settings["arch"]
    return TeacherSpec(
        name=re.sub(r"[^A-Za-z0-9._-]", "_", short),
        canonical=f"{settings['arch']}@file:{file.path.name}" if file else settings["canonical"],
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
        num_classes=num_classes,
        classes=tuple(str(value) for value in classes) if classes else None,
        channel_order=settings.get("channel_order", "rgb"),
        class_offset=offset,
        revision=settings.get("revision"),
    )


def _class_offset(settings: Mapping[str, Any]) -> int:
    """Outputs before the first class: what is said of them, else the background of 1001."""
    offset = settings.get("class_offset")
    if offset is not None:
        return int(offset)
    nameless = not settings.get("classes") or len(settings["classes"]) == BACKGROUND_HEAD - 1
    background = settings.get("imagenet") and settings["outputs"] == BACKGROUND_HEAD
    return 1 if background and nameless else 0


def _square(size: int | Sequence[int]) -> int:
    return int(size) if isinstance(size, (int, float)) else int(size[-1])


def _imagenet_classes(num_classes: int) -> tuple[str, ...] | None:
    """wnids in the order of ImageNet-1k (or 12k, 22k) when the size of the head says so."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None  # type: ignore[no-untyped-call]


def count_parameters(spec: TeacherSpec) -> int:
    """Parameters of the network, background classes included, built without storage."""
    from trainer.models import create

    if spec.members:
        return sum(count_parameters(member) for member in spec.members)
    outputs = spec.num_classes + spec.class_offset
    model = build_empty(partial(create, spec.arch), outputs)
    return sum(parameter.numel() for parameter in model.parameters())


def unavailable(spec: TeacherSpec, error: Exception) -> TeacherError:
    """Weights that can't be fetched: offline, or the server refuses."""
    return TeacherError(
        f"the weights of {spec.canonical} are not on this machine and can't be fetched "
        f"({first_line(error)}): run once where there is a network, or give "
        "the weights as a file with --weights"
    )
