"""Starting a student from weights that it, or the same network, already has."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from storage.errors import UsageError
from trainer.models.branches import BranchedNetwork


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        UsageError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"student.init {path} can't be read: {error.strerror}") from error


def load_weights(student: nn.Module, path: Path) -> list[str]:
    """Put a safetensors file's tensors into a network, which must have them all.

    A classifier of another width is left as it is: tensors of the last two-dimensional weight and
    its bias only.

    Returns:
        Names of the tensors left out.
    Raises:
        UsageError: no safetensors file, or one of another network (the first names are given).
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"student.init {path} can't be read as safetensors: {error}") from error
    if isinstance(student, BranchedNetwork) and not any(n.startswith("backbone.") for n in tensors):
        student = student.backbone  # a plain network's weights, to which branches come
    wanted = student.state_dict()
    head = _head_names(student)
    other = [name for name in wanted.keys() & tensors.keys()
             if wanted[name].shape != tensors[name].shape]  # fmt: skip
    wrong = sorted((wanted.keys() ^ tensors.keys()) | (set(other) - head))
    if wrong:
        raise UsageError(
            f"student.init {path} is of another network: {len(wrong)} tensors don't fit, such as "
            f"{', '.join(wrong[:3])}"
        )
    left_out = sorted(head if other else ())
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    student.load_state_dict(kept, strict=False)
    return left_out


def _head_names(student: nn.Module) -> set[str]:
    """Tensors of the last linear layer."""
    layers = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    names = {f"{layers[-1]}.weight", f"{layers[-1]}.bias"} if layers else set()
    return names & student.state_dict().keys()
