"""The training loop of dense tasks (segmentation, detection), of the trainer's own parts."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from storage.progress import Progress
from trainer import checkpoint, optim
from trainer.batch import Counted
from trainer.checks import require
from trainer.config import PRECISIONS
from trainer.distributed import World
from trainer.loop import check_weights, train_steps
from trainer.metrics import METRICS_NAME, MetricsLog, read_metrics
from trainer.plan import Pass
from trainer.recorder import RunState, StepRecorder, stop_on_signal
from trainer.schedule import lr_at
from trainer.step_config import OptimConfig, ScheduleConfig

NAMED_IMAGES = 5  # of the step whose loss went wrong

Loss = Callable[[nn.Module, Any], dict[str, Tensor]]
Evaluate = Callable[[nn.Module], dict[str, Any]]


class EpochData(Protocol):
    """Batches by epoch; the same (seed, epoch) always gives the same ones, in the same order."""

    @property
    def steps(self) -> int:
        """Batches of every epoch, each shared by all processes."""

    def batches(self, epoch: int, first: int) -> Iterable[Counted]:
        """This process's part of those of an epoch from number `first` on, without making the
        ones before it."""

    def names(self, epoch: int, number: int) -> list[str]:
        """Images of a batch, for people."""


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """A whole fine-tuning run; two with equal settings on equal data are equal.

    Attributes:
        precision: of the forward pass, `fp32` or `bf16` (autocast).
        clip_norm: largest norm of all gradients together; None clips nothing.
        task: all else that makes the run, as plain values: weights, data, network, crops.
    """

    epochs: int
    optim: OptimConfig
    schedule: ScheduleConfig
    precision: str = "fp32"
    clip_norm: float | None = None
    seed: int = 0
    task: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs is {self.epochs}; expected at least 1")
        require(
            self.precision in PRECISIONS,
            f"--precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"--clip-norm is {self.clip_norm}; expected a positive number",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class Tuned:
    """A finished run.

    Attributes:
        evaluations: all that `evaluate` gave, in order, each with its `epoch` (passes done).
        seconds: spent in training steps and on their batches, by all processes of the run.
    """

    evaluations: tuple[dict[str, Any], ...]
    seconds: float


class _TaskLearner(nn.Module):
    """Network and loss as the one module of `train_steps`."""

    def __init__(self, model: nn.Module, loss: Loss, dtype: torch.dtype | None, device: str):
        super().__init__()
        self.model = model
        self._loss, self._dtype, self._device = loss, dtype, device

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Named terms of a batch, weighted; their sum is the loss."""
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            return self._loss(self.model, batch)


def fine_tune(
    config: FineTuneConfig,
    model: nn.Module,
    groups: list[dict[str, Any]],
    data: EpochData,
    loss: Loss,
    out: Path,
    *,
    device: torch.device,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    world: World = World(),  # noqa: B008 - frozen
) -> Tuned:
    """Train a network on a task; the same call again goes on, or reports what is finished.

    Leaves `checkpoint.pt` and `metrics.jsonl` in `out`. On a CPU a run that was stopped gives the
    weights of one that was not, bit for bit, on as many processes.

    Args:
        model: built and seeded by the caller, alike in every process; moved to the device, in
            channels_last.
        groups: its parameters, by `trainer.optim.parameter_groups` (one call for each lr_factor).
        loss: terms of a batch on the device it chooses; called in autocast where asked for.
        out: an existing folder.
        evaluate: scores (plain values) of the network as it stands, after every `evaluate_every`
            epochs and the last; has to leave the network's mode as it was and draw nothing
            from torch's global random state.
        world: the processes that train together. Each calls this and gets the same; the first one
            evaluates and writes.
    Raises:
        TrainingError: a signal; a loss or weight that isn't finite (the last good checkpoint
            stays); a damaged checkpoint.
        StoreMismatch: `out` holds a run with other settings.
    """
    run = _FineTuning(config, model, groups, data, out, device, world)
    log = MetricsLog(out / METRICS_NAME, run.state.step) if world.is_first else None
    try:
        run.train(loss, log, evaluate, evaluate_every)
    finally:
        if log is not None:
            log.close()
    return world.first(lambda: Tuned(_evaluations(out), run.seconds))


def _evaluations(out: Path) -> tuple[dict[str, Any], ...]:
    return tuple(line for line in read_metrics(out / METRICS_NAME) if line["kind"] == "eval")


class _FineTuning:
    """A run between its checkpoints."""

    def __init__(
        self,
        config: FineTuneConfig,
        model: nn.Module,
        groups: list[dict[str, Any]],
        data: EpochData,
        out: Path,
        device: torch.device,
        world: World,
    ) -> None:
        self._config, self._data, self._out, self._device = config, data, out, device
        self._world = world
        self._model = model.to(device).to(memory_format=torch.channels_last)
        self._optimizer = optim.from_groups(config.optim, groups)
        self.state, self._seconds_before = RunState(), 0.0
        self._recorder: StepRecorder | None = None
        world.draw_apart(config.seed)
        path = out / checkpoint.CHECKPOINT_NAME
        if path.exists():
            self._load(path)

    @property
    def seconds(self) -> float:
        """Training time of this process and those before it."""
        here = self._recorder.seconds if self._recorder else 0.0
        return self._seconds_before + here

    def train(
        self, loss: Loss, log: MetricsLog | None, evaluate: Evaluate | None, evaluate_every: int
    ) -> None:
        """From the state to the end; an evaluation that a stopped process left out is made."""
        dtype = torch.bfloat16 if self._config.precision == "bf16" else None
        learner = _TaskLearner(self._model, loss, dtype, self._device.type)
        # layers that a decoder has no use for get no gradient, the same ones in every step
        shared = self._world.wrap(learner, self._device, static_graph=True)
        total = self._data.steps * self._config.epochs
        label = f"{self._out.parent.name} {self._out.name}"
        quiet = not self._world.is_first
        with Progress(total, "steps", label, done=self.state.step, quiet=quiet) as progress:
            self._recorder = StepRecorder(self.state, log, progress, total, self._save,
                                          self._describe, self._measures,
                                          self._world)  # fmt: skip
            with stop_on_signal(self._recorder):
                while True:
                    if evaluate is not None:
                        self._world.first(
                            functools.partial(self._judge, evaluate, evaluate_every, log)
                        )
                    self._recorder.check_stop()
                    if self.state.epoch == self._config.epochs:
                        return
                    self._train_epoch(shared, self._recorder)

    def _judge(self, evaluate: Evaluate, every: int, log: MetricsLog | None) -> None:
        """Evaluate and log, where that is due; the first process does."""
        if log is not None and self._is_due(every):
            scores = evaluate(self._model)
            log.write("eval", self.state.step, epoch=self.state.epoch, **scores)

    def _train_epoch(self, learner: nn.Module, recorder: StepRecorder) -> None:
        steps, epoch = self._data.steps, self.state.epoch
        with recorder.timed():
            train_steps(
                learner,
                self._optimizer,
                self._data.batches(epoch, self.state.step_in_epoch),
                lr_of_step=self._lr,
                first_step=self.state.step,
                on_step=recorder.on_step,
                clip_norm=self._config.clip_norm,
            )
        self.state.end_pass(Pass(epoch, 1, steps, epoch * steps))
        recorder.save()

    def _is_due(self, every: int) -> bool:
        """Whether the epoch that has just ended is to be evaluated and has not been."""
        epoch = self.state.epoch
        if not epoch or self.state.step_in_epoch:
            return False
        known = {line["epoch"] for line in _evaluations(self._out)}
        return epoch not in known and (epoch % every == 0 or epoch == self._config.epochs)

    @functools.cached_property
    def _lr(self) -> Callable[[int], float]:
        return functools.partial(
            lr_at,
            config=self._config.schedule,
            peak=self._config.optim.lr,
            epoch_steps=self._data.steps,
            epochs=self._config.epochs,
        )

    def _measures(self) -> dict[str, float]:
        return {"lr": self._lr(self.state.step - 1)}

    def _describe(self, step: int) -> str:
        epoch, number = divmod(step, self._data.steps)
        names = self._data.names(epoch, number)
        more = f" and {len(names) - NAMED_IMAGES} more" if len(names) > NAMED_IMAGES else ""
        return f"step {step} (epoch {epoch}, images {', '.join(names[:NAMED_IMAGES])}{more})"

    def _save(self, state: RunState) -> None:
        check_weights(self._model, f"step {state.step - 1}")
        values = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "run": asdict(state),
            "torch_rng": self._world.chances(),
            "seconds": self.seconds,
        }
        if self._world.is_first:
            path = self._out / checkpoint.CHECKPOINT_NAME
            checkpoint.save_checkpoint(path, self._config, values)

    def _load(self, path: Path) -> None:
        saved = checkpoint.load_checkpoint(path, self._config)
        self._world.resume_chances(saved["torch_rng"], path)
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.state = RunState(**saved["run"])
        self._seconds_before = float(saved["seconds"])
        if self.state.epoch < self._config.epochs and self._world.is_first:
            where = f"epoch {self.state.epoch}, step {self.state.step}"
            print(f"resuming {self._out} at {where}", file=sys.stderr)
