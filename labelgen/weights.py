"""Weights in and out of files, their digest, and whether they fit a model.

Nothing here runs code from a file: safetensors hold tensors only, other files go through
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from storage.errors import TeacherError, UsageError
from trainer.models import METADATA_KEY

if TYPE_CHECKING:
    from torch import Tensor

# Where training scripts put the tensors inside a checkpoint; the first that holds a dict is taken.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
# BatchNorm's counter takes no part in inference; converted files often leave it out.
NOT_NEEDED = "num_batches_tracked"


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

        return WeightsFile(path, _strip_prefixes(load_file(path)), metadata)
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
    if not tensors:
        raise TeacherError(
            f"{path} holds no state dict (found {', '.join(map(str, list(loaded)[:3]))}): save "
            f"model.state_dict(), alone or under one of {', '.join(_WRAPPERS)}"
        )
    return _strip_prefixes(tensors)


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without a wrapper's prefix, where every one of them has it (one after the other)."""
    for prefix in _PREFIXES * 2:  # compiled inside or outside of the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over sorted (name, dtype, shape, bytes): the same for .pth and .safetensors.

    BatchNorm's batch counter is left out: it is not used at inference and some files drop it.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith(NOT_NEEDED):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
