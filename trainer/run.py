"""`trainer fit`: from a label store and images to a trained student."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from storage.allocator import keep_freed_memory
from storage.images import ImageFolder, scan_folder
from storage.remote import is_remote
from trainer import checkpoint
from trainer.config import StudentConfig, TrainConfig
from trainer.distributed import World, joined_world, local_device
from trainer.evaluate import Evaluation, student_targets
from trainer.inputs import find_images, open_images, open_labels
from trainer.metrics import METRICS_NAME, MetricsLog, read_metrics
from trainer.models.device import resolve_device
from trainer.networks import EMA_NAME, prepare, save_students
from trainer.passes import Evaluations, Passes
from trainer.replay.beton import Beton
from trainer.report import plot_curves
from trainer.report_facts import (
    RUN_NAME,
    environment_facts,
    label_facts,
    read_facts,
    write_facts,
)
from trainer.report_page import CONFIG_NAME, REPORT_NAME, write_report
from trainer.request import FitRequest, configure, default_out
from trainer.trackers import WANDB_ID, check_trackers, open_trackers

# What --overwrite takes away: all that would be read again, or would show another run.
RUN_FILES = (checkpoint.CHECKPOINT_NAME, checkpoint.STUDENT_NAME, EMA_NAME, METRICS_NAME, RUN_NAME,
             REPORT_NAME, "curves.png", WANDB_ID)  # fmt: skip


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
    ema_evaluation: Evaluation | None  # of the moving average, where one is kept
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
            "evaluation": _plain(self.evaluation),
            "ema_evaluation": _plain(self.ema_evaluation),
            "notes": list(self.notes),
        }


def _plain(scores: Evaluation | None) -> dict[str, Any] | None:
    return None if scores is None else scores.to_json()


def fit(request: FitRequest) -> FitResult:
    """Train a student; the same request again resumes, or reports what is finished.

    Under torchrun every process calls it; all get the same result.

    Raises:
        TeachonceError: see the errors of the parts; a start that fails overwrites nothing.
    """
    keep_freed_memory()
    check_trackers(request.log)
    device = local_device(resolve_device(request.device))
    with joined_world(device) as world:
        return _fit(request, device, world)


def _fit(request: FitRequest, device: torch.device, world: World) -> FitResult:
    store = open_labels(request.labels) if request.labels else None
    images = find_images(request.data, store)
    val = request.val
    if val is not None and not isinstance(val, ImageFolder):
        val = scan_folder(val)
    out = request.out or default_out(request)
    out.mkdir(parents=True, exist_ok=True)
    beton = _beton(images, _beton_place(request, out), request.workers, world)
    config, data = configure(request, device, store, beton)
    if val is not None:
        student_targets(val, config.student)  # refuse other classes before training, not after
    if request.overwrite and world.is_first:
        for name in RUN_FILES:
            (out / name).unlink(missing_ok=True)
    world.wait()
    init = request.chosen().get("student.init")
    networks, state = prepare(config, out, device, init, data.features, world)
    if world.is_first:
        (out / CONFIG_NAME).write_text(json.dumps(config.to_json(), indent=2) + "\n")
        if state.step == 0:
            for note in data.notes:
                print(f"note: {note}", file=sys.stderr)
    log = _open_log(request, config, out, state.step) if world.is_first else None
    passes = Passes(config, data, val, out, networks, state, log, device, world,
                    loader_kind=request.loader, workers=request.workers)  # fmt: skip
    if world.is_first and not passes.finished:
        teacher = config.labels.teacher if config.labels else None
        target = None if data.features is None else data.features.record
        write_facts(out, {
            "labels": label_facts(store, teacher, target),
            "environment": environment_facts(device, world, request.loader, request.workers),
        })  # fmt: skip
    evaluation, ema_evaluation = _run(passes, log)
    if world.is_first:
        save_students(out, config, networks)
    world.wait()
    result = FitResult(
        out=out,
        student=config.student,
        parameters=sum(p.numel() for p in networks.student.parameters()),
        epochs=config.epochs,
        steps=state.step,
        crops=passes.recorder.crops,
        seconds=passes.recorder.seconds,
        final_loss=_last_loss(out),
        evaluation=evaluation,
        ema_evaluation=ema_evaluation,
        notes=(*data.notes, *passes.source.failure_notes()),
    )
    if world.is_first:
        _report(config, result)
    return result


def _open_log(request: FitRequest, config: TrainConfig, out: Path, step: int) -> MetricsLog:
    trackers = open_trackers(request.log, out, config.to_json(), step)
    return MetricsLog(out / METRICS_NAME, step, trackers)


def _run(passes: Passes, log: MetricsLog | None) -> Evaluations:
    """Train to the end; the last scores."""
    try:
        passes.run()
        known = passes.evaluations[0] is not None  # not in a run that was finished before
        return passes.evaluations if known else passes.evaluate()
    finally:
        if log is not None:
            log.close()


def _last_loss(out: Path) -> float | None:
    """The last loss that was logged, None where none was."""
    losses = [line["loss"] for line in read_metrics(out / METRICS_NAME) if line["kind"] == "train"]
    return losses[-1] if losses else None


def _report(config: TrainConfig, result: FitResult) -> None:
    """Draw the run's curves and its page; a run that had nothing left to train keeps its facts."""
    out, facts = result.out, read_facts(result.out)
    if result.crops or "result" not in facts:
        write_facts(out, facts | {"result": result.to_json(), "notes": list(result.notes)})
    metrics = read_metrics(out / METRICS_NAME)
    plot_curves(metrics, out / "curves.png", f"{config.method}: {config.student.arch}")
    write_report(out)


def _beton(images: Path, place: Path, workers: int, world: World) -> Beton:
    """The images' beton; the first process packs it, should there be none."""
    if not world.is_first:
        world.wait()
    beton = open_images(images, place, workers)
    if world.is_first:
        world.wait()
    return beton


def _beton_place(request: FitRequest, out: Path) -> Path:
    """Beside a local store, for all its students; else in the run's folder."""
    if request.labels is None or is_remote(str(request.labels)):
        return out / "train.beton"
    return Path(request.labels).with_suffix(".beton")
