"""Where fine-tuning starts from: a student's weights, others of the same network, or fresh ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from storage.errors import UsageError
from trainer import models
from trainer.checkpoint import load_student
from trainer.config import StudentConfig
from trainer.models import METADATA_KEY
from trainer.models.branches import BranchedNetwork
from trainer.models.feature_tap import find_head, noise_batch
from trainer.models.init import file_digest

STUDENT, SCRATCH = "student", "scratch"


@dataclass(frozen=True, eq=False)
class Start:
    """A network with the weights that a task begins from.

    Attributes:
        name: in tables and folders. config: how the network is built and fed.
        state: its tensors; None: fresh ones, of the run's seed.
        identity: hex SHA-256 of the file, or `scratch`.
        notes: what people should know of it.
    """

    name: str
    config: StudentConfig
    state: dict[str, Tensor] | None
    identity: str
    notes: tuple[str, ...] = ()


def open_starts(student: Path, compare: Sequence[str]) -> list[Start]:
    """The student first, then what it is compared with.

    Args:
        student: student.safetensors of `trainer fit`.
        compare: each `scratch`, a safetensors file of the same network, or NAME=FILE. A file
            without a student's header is taken for public weights in the network's own layout.
    Raises:
        UsageError: no student, another network, or a name that stands twice.
    """
    own = _of_student(STUDENT, student)
    starts = [own]
    for text in compare:
        start = _compared(text, own)
        if any(start.name == other.name for other in starts):
            raise UsageError(
                f"--compare names two starts {start.name!r}: name one otherwise, as in "
                f"--compare other={text.rpartition('=')[2]}"
            )
        starts.append(start)
    return starts


def build(start: Start, seed: int, num_classes: int | None = None) -> nn.Module:
    """The start's network; what has no weights is drawn from `seed` alone.

    Args:
        num_classes: give it a fresh head of this width, also where its own is as wide; None: its
            own head.
    Raises:
        UsageError: a fresh head for a network that doesn't end in a linear layer.
    """
    config = start.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.create(config.arch, num_classes or config.num_classes)
    if start.state is None:
        return network
    left_out = head_names(network, config) if num_classes else frozenset()
    kept = {name: tensor for name, tensor in start.state.items() if name not in left_out}
    network.load_state_dict(network.state_dict() | kept)
    return network


def head_names(network: nn.Module, config: StudentConfig) -> frozenset[str]:
    """Names of the tensors of the linear layer that gives a network's logits.

    Raises:
        UsageError: there is none.
    """
    was_training = network.training
    head = find_head(network.eval(), noise_batch(config.input_size))
    network.train(was_training)
    if head is None:
        raise UsageError(
            f"{config.arch} has no head to renew: none of its linear layers gives its logits; "
            "take a student that ends in a linear layer"
        )
    return frozenset(f"{head.name}.{name}" for name in head.linear.state_dict())


def _compared(text: str, own: Start) -> Start:
    if text == SCRATCH:
        return Start(SCRATCH, own.config, None, SCRATCH)
    name, equals, file = text.partition("=")
    path = Path(file if equals else text)
    name = name if equals else path.resolve().parent.name
    if not name or "/" in name or name[0] in "._" or name == SCRATCH:
        raise UsageError(f"--compare {text!r} has no usable name: give NAME=FILE")
    start = _of_student(name, path) if _has_header(path) else _of_public(name, path, own.config)
    if start.config.arch != own.config.arch:
        raise UsageError(
            f"{path} is {start.config.arch} and the student {own.config.arch}: compare weights of "
            "the same network"
        )
    return start


def _of_student(name: str, path: Path) -> Start:
    network, config = load_student(path)
    if isinstance(network, BranchedNetwork):  # branches served its training alone
        network, config = network.backbone, replace(config, arch=models.plain_name(config.arch))
    return Start(name, config, network.state_dict(), file_digest(path))


def _has_header(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} can't be read as safetensors: {error}") from error


def _of_public(name: str, path: Path, like: StudentConfig) -> Start:
    """Weights that say nothing of themselves, which must fit the student's network but the head."""
    tensors = load_file(path)
    empty = models.create(like.arch, like.num_classes)
    wanted, head = empty.state_dict(), head_names(empty, like)
    wrong = sorted(
        key
        for key in wanted.keys() | tensors.keys()
        if key not in wanted
        or key not in tensors
        or (key not in head and wanted[key].shape != tensors[key].shape)
    )
    if wrong:
        raise UsageError(
            f"{path} says nothing of its network and isn't {like.arch}: {len(wrong)} tensors "
            f"don't fit, such as {', '.join(wrong[:3])}"
        )
    widths = {len(tensors[key]) for key in head}
    if len(widths) != 1:
        raise UsageError(f"{path} has a head of {sorted(widths)} classes: its tensors don't fit")
    config = replace(like, num_classes=widths.pop(), classes=None)
    note = f"{name}: the file does not say which pixels it was trained on; fed as the student"
    return Start(name, config, tensors, file_digest(path), (note,))
