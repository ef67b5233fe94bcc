"""`trainer fit`: from a label store and images to a trained student."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storage.allocator import keep_freed_memory
from storage.images import ImageFolder, scan_folder
from storage.progress import Progress
from storage.remote import is_remote
from trainer import checkpoint, methods, models, optim
from trainer.config import StudentConfig, TrainConfig
from trainer.data import BatchSource, TrainingData
from trainer.evaluate import Evaluation, evaluate, student_targets
from trainer.inputs import (
    create_loader,
    find_images,
    open_images,
    open_labels,
)
from trainer.loop import train_steps
from trainer.metrics import MetricsLog, read_metrics
from trainer.models.device import resolve_device
from trainer.plan import images_per_step, plan_epoch, steps_per_epoch
from trainer.recorder import RunState, StepRecorder, stop_on_signal
from trainer.replay.epoch import ReplayLoader
from trainer.report import plot_curves
from trainer.request import FitRequest, configure, default_out
from trainer.schedule import lr_at

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class FitResult:
    """A finished run."""

    out: Path
    student: StudentConfig
    parameters: int
    epochs: int
    steps: int
    crops: int
    seconds: float  # training in this process, evaluation and set-up not counted
    final_loss: float | None
    evaluation: Evaluation | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "out": str(self.out),
            "checkpoint": str(self.out / checkpoint.STUDENT_NAME),
            "student": self.student.arch,
            "parameters": self.parameters,
            "epochs": self.epochs,
            "steps": self.steps,
            "crops": self.crops,
            "seconds": round(self.seconds, 3),
            "final_loss": self.final_loss,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Networks:
    """What a run changes by learning."""

    student: nn.Module
    method: methods.Method
    optimizer: torch.optim.Optimizer


def fit(request: FitRequest) -> FitResult:
    """Train a student; the same request again resumes, or reports what is finished.

    Raises:
        TeachonceError: see the errors of the parts; a start that fails overwrites nothing.
    """
    keep_freed_memory()
    device = resolve_device(request.device)
    store = open_labels(request.labels) if request.labels else None
    images = find_images(request.data, store)
    val = scan_folder(request.val) if request.val else None
    out = request.out or default_out(request)
    out.mkdir(parents=True, exist_ok=True)
    beton = open_images(images, _beton_place(request, out), request.workers)
    config, data = configure(request, device, store, beton)
    if val is not None:
        student_targets(val, config.student)  # refuse other classes before training, not after
    if request.overwrite:
        for name in (checkpoint.CHECKPOINT_NAME, checkpoint.STUDENT_NAME, METRICS_NAME):
            (out / name).unlink(missing_ok=True)
    networks, state = _prepare(config, out, device)
    (out / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    return _train(config, data, val, out, networks, state, device, request)


def _beton_place(request: FitRequest, out: Path) -> Path:
    """Beside a local store, for all its students; else in the run's folder."""
    if request.labels is None or is_remote(str(request.labels)):
        return out / "train.beton"
    return Path(request.labels).with_suffix(".beton")


def _prepare(config: TrainConfig, out: Path, device: torch.device) -> tuple[Networks, RunState]:
    """Fresh networks, or those of the run's last checkpoint."""
    torch.manual_seed(config.seed)
    student = models.create(config.student.arch, config.student.num_classes)
    student = student.to(device, memory_format=torch.channels_last)
    method = methods.create(config).to(device)
    networks = Networks(student, method, optim.create(config.optim, student, method))
    path = out / checkpoint.CHECKPOINT_NAME
    if not path.exists():
        return networks, RunState()
    saved = checkpoint.load_checkpoint(path, config)
    for name in ("student", "method", "optimizer"):
        getattr(networks, name).load_state_dict(saved[name])
    torch.set_rng_state(saved["torch_rng"])
    state = RunState(**saved["run"])
    print(f"resuming {out} at epoch {state.epoch}, step {state.step}", file=sys.stderr)
    return networks, state


def _save(out: Path, config: TrainConfig, networks: Networks, state: RunState) -> None:
    values = {name: getattr(networks, name).state_dict() for name in ("student", "method",
                                                                      "optimizer")}  # fmt: skip
    values |= {"run": asdict(state), "torch_rng": torch.get_rng_state()}
    checkpoint.save_checkpoint(out / checkpoint.CHECKPOINT_NAME, config, values)


def _train(
    config: TrainConfig,
    data: TrainingData,
    val: ImageFolder | None,
    out: Path,
    networks: Networks,
    state: RunState,
    device: torch.device,
    request: FitRequest,
) -> FitResult:
    """All epochs from `state` on, then the student's file, the curves and the result."""
    step_images = images_per_step(config.batch_size, config.views_per_image, len(data.rows))
    epoch_steps = steps_per_epoch(len(data.rows), step_images)
    total_steps = epoch_steps * config.epochs
    source = BatchSource(data, config.student, config.labels, device)
    log = MetricsLog(out / METRICS_NAME, state.step)
    score = functools.partial(
        evaluate, networks.student, val, config.student, device=device, workers=request.workers
    )
    evaluation: Evaluation | None = None
    loader = create_loader(
        request.loader,
        data.beton,
        size=config.student.input_size,
        views=config.views_per_image,
        interpolation=data.interpolation,
        padding=data.padding,
        batch_images=step_images,
        workers=request.workers,
    )
    with Progress(total_steps, "steps", "training", done=state.step) as progress:
        recorder = StepRecorder(
            state, log, progress, total_steps, functools.partial(_save, out, config, networks)
        )
        with stop_on_signal(recorder):
            while state.epoch < config.epochs:
                _train_epoch(config, source, loader, networks, recorder, step_images)
                # Failed images can cost an epoch its last steps; the schedule goes by epochs.
                state.begin_epoch(state.epoch + 1, epoch_steps)
                recorder.save()
                if val is not None:
                    evaluation = score()
                    log.write("eval", state.step, epoch=state.epoch, **asdict(evaluation))
    provenance = {"data": config.data_identity, "method": config.method, "epochs": config.epochs}
    checkpoint.save_student(
        out / checkpoint.STUDENT_NAME, networks.student, config.student, provenance
    )
    if val is not None and evaluation is None:  # the run was finished before
        evaluation = score()
    metrics = read_metrics(out / METRICS_NAME)
    plot_curves(metrics, out / "curves.png", f"{config.method}: {config.student.arch}")
    losses = [line["loss"] for line in metrics if line["kind"] == "train"]
    return FitResult(
        out=out,
        student=config.student,
        parameters=sum(p.numel() for p in networks.student.parameters()),
        epochs=config.epochs,
        steps=state.step,
        crops=recorder.crops,
        seconds=recorder.seconds,
        final_loss=losses[-1] if losses else None,
        evaluation=evaluation,
        notes=(*data.notes, *source.failure_notes()),
    )


def _train_epoch(
    config: TrainConfig,
    source: BatchSource,
    loader: ReplayLoader,
    networks: Networks,
    recorder: StepRecorder,
    step_images: int,
) -> None:
    data, state = source.data, recorder.state
    epoch_steps = steps_per_epoch(len(data.rows), step_images)
    plan_of = functools.partial(
        plan_epoch,
        config.seed,
        num_images=len(data.rows),
        stored_views=data.stored_views,
        views_per_image=config.views_per_image,
    )
    plan = plan_of(state.epoch)
    lr_of_step = functools.partial(
        lr_at,
        peak=config.optim.lr,
        total_steps=epoch_steps * config.epochs,
        warmup_steps=round(config.optim.warmup_epochs * epoch_steps),
    )
    if state.epoch + 1 < config.epochs:
        data.prefetch(plan_of(state.epoch + 1))
    with recorder.timed():
        train_steps(
            networks.student,
            networks.method,
            networks.optimizer,
            source.epoch(loader, state.epoch, plan, step_images, state.step_in_epoch),
            lr_of_step=lr_of_step,
            first_step=state.step,
            autocast_dtype=torch.bfloat16 if config.precision == "bf16" else None,
            on_step=recorder.on_step,
        )
