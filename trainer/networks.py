"""The networks of a run, fresh or from its checkpoint, and their way back to disk."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from storage.errors import UsageError
from trainer import checkpoint, methods, models, optim
from trainer.config import TrainConfig, completed
from trainer.distributed import World
from trainer.learner import Learner
from trainer.models.freezing import freeze_body
from trainer.models.init import load_weights
from trainer.norms import check_norm, with_norm
from trainer.recorder import RunState
from trainer.targets import StoredTarget

EMA_NAME = "student_ema.safetensors"


@dataclass(frozen=True)
class Networks:
    """What a run changes by learning. ema: moving average of the student, where one is kept."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None

    @property
    def student(self) -> nn.Module:
        """The network that is kept."""
        return self.learner.student

    def state(self) -> dict[str, Any]:
        """Tensors of everything that learns, for a checkpoint."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load(self, saved: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])

    def _parts(self) -> dict[str, Any]:
        parts = {
            "student": self.student,
            "method": self.learner.method,
            "optimizer": self.optimizer,
        }
        return parts if self.ema is None else parts | {"ema": self.ema.module}


def prepare(
    config: TrainConfig,
    out: Path,
    device: torch.device,
    init: str | None = None,
    features: StoredTarget | None = None,
    world: World = World(),  # noqa: B008 - frozen
) -> tuple[Networks, RunState]:
    """Fresh networks, or those of the run's last checkpoint.

    Args:
        init: safetensors file that a fresh student begins from.
        features: of the store, where the method learns from them.
    Raises:
        UsageError: synchronised batch norms without GPUs.
        TrainingError, StoreMismatch: see checkpoint.load_checkpoint; or the checkpoint is of
            another number of processes.
    """
    check_norm(config.loop.norm, world, device, "loop.norm=")
    torch.manual_seed(config.seed)
    student = models.create(config.student.arch, config.student.num_classes)
    path = out / checkpoint.CHECKPOINT_NAME
    if init and not path.exists():
        left_out = load_weights(student, Path(init))
        if left_out and config.method == "hsakd-teacher" and config.hsakd_teacher.mode == "frozen":
            raise UsageError(
                f"{init} has other classes than the {config.student.num_classes} of the images, "
                "and hsakd_teacher.mode frozen would keep a head that never learnt: give weights "
                "of a network of these classes, or take mode joint"
            )
        if left_out and world.is_first:
            print(f"{init}: other classes, {' and '.join(left_out)} start anew", file=sys.stderr)
    student = with_norm(student, config.loop.norm, world)  # before a method listens to its parts
    student = student.to(device).to(memory_format=torch.channels_last)
    if config.loop.freeze:
        freeze_body(student, config.student.input_size)
    method = with_norm(methods.create(config, student, features), config.loop.norm, world)
    method = method.to(device)
    dtype = torch.bfloat16 if config.precision == "bf16" else None
    decay = config.loop.ema_decay
    networks = Networks(
        Learner(student, method, dtype, config.loop.compile),
        optim.create(config.optim, student, method),
        None if decay is None else ModelEmaV3(student, decay=decay),
    )
    if not path.exists():
        world.draw_apart(config.seed)
        return networks, RunState()
    saved = checkpoint.load_checkpoint(path, config, completed)
    world.resume_chances(saved["torch_rng"], path)
    networks.load(saved)
    state = RunState(**saved["run"])
    if world.is_first:
        print(f"resuming {out} at epoch {state.epoch}, step {state.step}", file=sys.stderr)
    return networks, state


def save(out: Path, config: TrainConfig, networks: Networks, state: RunState, world: World) -> None:
    """Checkpoint of a run that goes on; every process calls it, the first one writes."""
    chances = world.chances()
    if world.is_first:
        values = networks.state() | {"run": asdict(state), "torch_rng": chances}
        checkpoint.save_checkpoint(out / checkpoint.CHECKPOINT_NAME, config, values)


def save_students(out: Path, config: TrainConfig, networks: Networks) -> None:
    """The student alone in safetensors; beside it its peers and the average of its weights."""
    provenance = {"data": config.data_identity, "method": config.method, "epochs": config.epochs}
    checkpoint.save_student(
        out / checkpoint.STUDENT_NAME, networks.student, config.student, provenance
    )
    for name, peer in networks.learner.method.peers().items():
        path = out / f"student_{name}.safetensors"
        checkpoint.save_student(path, peer, config.student, provenance | {"peer": name})
    if networks.ema is not None:
        checkpoint.save_student(
            out / EMA_NAME, networks.ema.module, config.student, provenance | {"ema": True}
        )
