"""Weights in and out of files, their digest, and whether they fit a model.

Nothing here runs code from a file: safetensors hold tensors only, other files go through
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from storage.errors import TeacherError, UsageError
from trainer.models import METADATA_KEY

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
# BatchNorm's counter takes no part in inference; converted files often leave it out.
_NOT_NEEDED = "num_batches_tracked"


@dataclass(frozen=True)
class WeightsFile:
    """Tensors of a weights file and what the file says about them (safetensors only)."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_metadata(path: Path) -> dict[str, Any]:
    """The trainer's description of a safetensors file, {} where there is none.

    Raises:
        UsageError: no such file.
        TeacherError: not a safetensors file, or the description is damaged.
    """
    _check_exists(path)
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
        described = json.loads(text)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise TeacherError(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(described, dict):
        raise TeacherError(f"{path}: metadata {METADATA_KEY!r} is not a JSON object")
    return described


def read_weights(path: Path) -> WeightsFile:
    """Load a weights file on the CPU without running anything from it.

    Raises:
        UsageError: no such file.
        TeacherError: unreadable, or a pickle that holds more than tensors.
    """
    metadata = read_metadata(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return WeightsFile(path, load_file(path), metadata)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats that are read all the same
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise TeacherError(
            f"{path} is a pickle that holds more than tensors and is never run: save its "
            "state_dict() with safetensors.torch.save_file and give that file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise TeacherError(f"{path} is not a readable weights file: {error}") from error
    return WeightsFile(path, _unwrap(path, loaded))


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"no weights file at {path}: give an existing one with --weights")


def _unwrap(path: Path, loaded: object) -> dict[str, Tensor]:
    import torch

    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise TeacherError(f"{path} holds no state dict: save model.state_dict()")
    tensors = {str(name): value for name, value in loaded.items() if torch.is_tensor(value)}
    if tensors and all(name.startswith("module.") for name in tensors):  # saved from DDP
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def infer_num_classes(file: WeightsFile, create: Callable[[int], nn.Module], arch: str) -> int:
    """Number of classes of a weights file: the size of the tensor that grows with it.

    Two models of different widths are built without storage; the first tensor whose shape
    differs is the classifier, whatever the architecture calls it.

    Raises:
        TeacherError: the file has no such tensor.
    """
    import torch

    with torch.device("meta"):
        few, more = create(7).state_dict(), create(11).state_dict()
    for name, tensor in few.items():
        for axis, (size, larger) in enumerate(zip(tensor.shape, more[name].shape, strict=True)):
            if size == larger:
                continue
            found = file.tensors.get(name)
            if found is None or found.ndim != tensor.ndim:
                raise TeacherError(
                    f"{file.path} does not fit {arch}: tensor {name!r} (the classifier) is "
                    f"{'missing' if found is None else f'of shape {list(found.shape)}'}; "
                    "give the architecture of these weights with --arch"
                )
            return int(found.shape[axis]) - (size - 7)
    raise TeacherError(f"{arch} has no classifier whose size follows the number of classes")


def load_into(model: nn.Module, file: WeightsFile, arch: str) -> None:
    """Copy the tensors of a file into a model, all of them or none.

    Raises:
        TeacherError: naming the first tensor that does not fit, with both shapes.
    """
    expected = model.state_dict()
    problems = [
        text
        for name, tensor in expected.items()
        if (text := _problem(name, tensor, file.tensors.get(name)))
    ]
    problems += [
        f"tensor {name!r} {list(tensor.shape)} is not in the model"
        for name, tensor in file.tensors.items()
        if name not in expected
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TeacherError(
            f"{file.path} does not fit {arch}: {problems[0]}{more}; "
            "give the architecture of these weights with --arch"
        )
    model.load_state_dict(dict(file.tensors), strict=False)


def _problem(name: str, expected: Tensor, found: Tensor | None) -> str | None:
    if found is None:
        missing = f"tensor {name!r} {list(expected.shape)} is missing from the file"
        return None if name.endswith(_NOT_NEEDED) else missing
    if found.shape != expected.shape:
        return (
            f"tensor {name!r} is {list(found.shape)} in the file, "
            f"{list(expected.shape)} in the model"
        )
    return None


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over sorted (name, dtype, shape, bytes): the same for .pth and .safetensors.

    BatchNorm's batch counter is left out: it is not used at inference and some files drop it.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith(_NOT_NEEDED):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
