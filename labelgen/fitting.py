"""Whether the tensors of a weights file fit a network, and which network they would fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from labelgen.weights import NOT_NEEDED, WeightsFile
from storage.errors import TeacherError, TeachonceError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 3  # tensors that a message names
_NEIGHBOURS = 8  # architectures of a similar name that are tried


def infer_num_classes(file: WeightsFile, create: Callable[[int], nn.Module], arch: str) -> int:
    """Number of classes of a weights file: the size of the tensor that grows with it.

    Raises:
        TeacherError: the file has no such tensor.
    """
    width = _head_width(file, create)
    if isinstance(width, str):
        raise TeacherError(f"{file.path} does not fit {arch}: {width}; {_way_out(file, arch)}")
    return width


def load_into(model: nn.Module, file: WeightsFile, arch: str) -> None:
    """Copy the tensors of a file into a model, all of them or none.

    Raises:
        TeacherError: naming the first tensors that do not fit, with both shapes, and the
            architecture that they are of where one fits them all.
    """
    problems = _problems(model, file)
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise TeacherError(
            f"{file.path} does not fit {arch}: {', '.join(problems[:_SHOWN])}{more}; "
            f"{_way_out(file, arch)}"
        )
    model.load_state_dict(dict(file.tensors), strict=False)


def build_empty(create: Callable[[int], nn.Module], outputs: int) -> nn.Module:
    """A network whose tensors have shapes and, where it can be built so, no storage."""
    import torch

    try:
        with torch.device("meta"):
            return create(outputs)
    except NotImplementedError:  # RegNets work out their widths with tensors
        return create(outputs)


def _head_width(file: WeightsFile, create: Callable[[int], nn.Module]) -> int | str:
    """Outputs of a file's classifier, or what is wrong with it.

    Two models of different widths are built without storage; the first tensor whose shape
    differs is the classifier, whatever the architecture calls it.
    """
    few, more = (build_empty(create, outputs).state_dict() for outputs in (7, 11))
    for name, tensor in few.items():
        for axis, (size, larger) in enumerate(zip(tensor.shape, more[name].shape, strict=True)):
            if size == larger:
                continue
            found = file.tensors.get(name)
            if found is None or found.ndim != tensor.ndim:
                shown = "missing" if found is None else f"of shape {list(found.shape)}"
                return f"tensor {name!r} (the classifier) is {shown}"
            return int(found.shape[axis] - (size - 7))
    return "the architecture has no classifier whose size follows the number of classes"


def _problems(model: nn.Module, file: WeightsFile) -> list[str]:
    """Tensors missing, of another shape or left over, each in words."""
    expected = model.state_dict()
    found = [
        text
        for name, tensor in expected.items()
        if (text := _problem(name, tensor, file.tensors.get(name)))
    ]
    return found + [
        f"tensor {name!r} {list(tensor.shape)} is not in the model"
        for name, tensor in file.tensors.items()
        if name not in expected
    ]


def _problem(name: str, expected: Tensor, found: Tensor | None) -> str | None:
    if found is None:
        missing = f"tensor {name!r} {list(expected.shape)} is missing from the file"
        return None if name.endswith(NOT_NEEDED) else missing
    if found.shape != expected.shape:
        return (
            f"tensor {name!r} is {list(found.shape)} in the file, "
            f"{list(expected.shape)} in the model"
        )
    return None


def _way_out(file: WeightsFile, arch: str) -> str:
    fitting = _fitting_architecture(file, arch)
    if fitting:
        return f"they fit {fitting}: say so with --arch {fitting}"
    return "give the architecture of these weights with --arch"


def _fitting_architecture(file: WeightsFile, arch: str) -> str | None:
    """The first that fits whole of the project's architectures, those named like `arch` and those
    with a short name."""
    return next((name for name in _candidates(arch) if name != arch and _fits(file, name)), None)


def _fits(file: WeightsFile, arch: str) -> bool:
    from trainer.models import create

    try:
        names = set(build_empty(partial(create, arch), 7).state_dict())
        if not _needed(names) <= set(file.tensors) <= names:  # cheaper than a look at the shapes
            return False
        width = _head_width(file, partial(create, arch))
        if isinstance(width, str):
            return False
        return not _problems(build_empty(partial(create, arch), width), file)
    except (TeachonceError, RuntimeError, ValueError):
        return False  # a network that can't be built of that width


def _needed(names: set[str]) -> set[str]:
    return {name for name in names if not name.endswith(NOT_NEEDED)}


def _candidates(arch: str) -> list[str]:
    import difflib

    from torchvision import models

    from trainer.models import ALIASES, CIFAR_RESNETS

    prefix, _, bare = arch.rpartition(":")
    neighbours: list[str] = []
    if prefix == "tv":
        neighbours = models.list_models(module=models)
    elif prefix == "timm":
        import timm

        neighbours = timm.list_models()
    near = difflib.get_close_matches(bare, neighbours, n=_NEIGHBOURS, cutoff=0.5)
    similar = [f"{prefix}:{name}" for name in near]
    return list(dict.fromkeys([*CIFAR_RESNETS, *similar, *ALIASES.values()]))
