"""`transfer segment`: fine-tune on masks, from several starts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storage.allocator import keep_freed_memory
from storage.errors import UsageError
from trainer.distributed import World, joined_world, local_device
from trainer.models.device import resolve_device
from trainer.norms import check_norm, with_norm
from trainer.optim import parameter_groups
from trainer.plan import images_per_step, pieces
from trainer.step_config import BATCH, SYNC, OptimConfig, ScheduleConfig
from transfer.epochs import EpochBatches
from transfer.finetune import FineTuneConfig, Tuned, fine_tune
from transfer.libraries import segmentation_metrics, segmentation_models
from transfer.licence import licence_note
from transfer.options import TaskOptions
from transfer.results import (
    CHOICE,
    OVERLAYS_NAME,
    RunScore,
    run_folder,
    run_once,
    write_results,
)
from transfer.segment.augment import SegmentSamples, collate
from transfer.segment.data import SegmentData, Split, notes_on, open_data, scan
from transfer.segment.evaluate import Predictor, judge, predictions
from transfer.segment.keep import NETWORK_NAME, save_segmenter
from transfer.segment.loss import PixelLoss
from transfer.segment.model import Segmenter, build_segmenter, check_start
from transfer.segment.overlay import segment_overlay
from transfer.segment.settings import SegmentSettings, resolve
from transfer.starts import Start, open_starts

TASK = "segment"
RESULTS_NAME = f"{TASK}.json"


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What `transfer segment` was asked for.

    Attributes:
        data: see `transfer.segment.data.open_data`.
        changes: settings by name, over the data set's own; None leaves one as it is.
        overlays: validation images of every run that are drawn with their prediction.
    """

    student: Path
    data: str
    task: TaskOptions = field(default_factory=TaskOptions)
    changes: Mapping[str, Any] = field(default_factory=dict)
    overlays: int = 8


def run_segment(request: SegmentRequest) -> dict[str, Any]:
    """Fine-tune every start with every seed; the values of segment.json.

    Under torchrun every process calls it; all get the same values, the first one writes.

    Raises:
        UsageError: see `open_starts`, `open_data`, `resolve`, `check_start`; or the folder is
            of other runs, or processes can't share a step.
        TrainingError: a run failed or was stopped; the same request goes on.
    """
    keep_freed_memory()
    segmentation_models()
    segmentation_metrics()
    device = local_device(resolve_device(request.task.device))
    with joined_world(device, f"transfer.cli {TASK}") as world:
        return _run_segment(request, device, world)


def _run_segment(request: SegmentRequest, device: torch.device, world: World) -> dict[str, Any]:
    task = request.task
    starts = open_starts(request.student, task.compare)
    data = open_data(request.data)
    asked = {"epochs": task.epochs, "batch_size": task.batch_size, "lr": task.lr}
    settings = resolve(data.layout, starts[0].config.arch, {**asked, **request.changes})
    check_norm(settings.norm, world, device)
    for start in starts:  # before the images are read
        check_start(start, settings, len(data.table.names))
    train, val = world.first(
        lambda: (
            scan(data.train, data.table, "training", task.workers),
            scan(data.val, data.table, "validation", task.workers),
        )
    )
    _check_share(data.location, len(train.pairs), settings, world)
    runs = _Runs(request, settings, data, train, val, device, world)
    scores = {
        start.name: (start, [runs.score(start, seed) for seed in task.all_seeds])
        for start in starts
    }
    return write_results(
        task.folder(request.student, TASK) / RESULTS_NAME,
        TASK,
        "miou",
        {
            "layout": data.layout,
            "classes": list(data.table.names),
            "train": _described(data, "training", train),
            "val": _described(data, "validation", val),
        },
        {**settings.to_json(), "precision": runs.precision, **task.to_json()},
        scores,
        [note for note in (*data.notes, *notes_on(data.table, train, val),
                           licence_note(data.root), CHOICE) if note],
        world,
    )  # fmt: skip


def _check_share(location: str, images: int, settings: SegmentSettings, world: World) -> None:
    """Batch norms of pooled maps have one value an image and channel: they need two images."""
    if images < 2:
        raise UsageError(f"{location} has one training image: batch norms need two or more")
    share = pieces(images_per_step(settings.batch_size, 1, images), 1, world.size)
    if share < 2 and settings.norm == BATCH:
        raise UsageError(
            f"{world.size} processes have {share} image each of a step's {share * world.size}, and "
            f"batch norms need two or more: give --norm {SYNC} (on GPUs) or a larger --batch-size"
        )


def _described(data: SegmentData, name: str, split: Split) -> dict[str, Any]:
    return {
        "location": f"{data.location} ({name})",
        "images": len(split.pairs),
        "left_out": list(split.bad),
        "digest": split.digest,
    }


class _Runs:
    """Runs of one request."""

    def __init__(
        self,
        request: SegmentRequest,
        settings: SegmentSettings,
        data: SegmentData,
        train: Split,
        val: Split,
        device: torch.device,
        world: World,
    ) -> None:
        self._request, self._settings, self._data = request, settings, data
        self._world = world
        self._train, self._val, self._device = train, val, device
        self.precision = request.task.precision_on(device.type == "cuda")
        self._workers = request.task.readers

    def score(self, start: Start, seed: int) -> RunScore:
        """A run's score, of a run before where it was finished."""
        task = self._request.task
        folder = run_folder(task.folder(self._request.student, TASK), start, seed)
        config = self._config(start, seed)
        return run_once(
            folder,
            config.to_json(),
            lambda: self._run(start, seed, folder, config),
            overwrite=task.overwrite,
            leaves=[NETWORK_NAME],
            world=self._world,
        )

    def _config(self, start: Start, seed: int) -> FineTuneConfig:
        settings = self._settings
        return FineTuneConfig(
            epochs=settings.epochs,
            optim=OptimConfig(name=settings.optimizer, lr=settings.lr, momentum=settings.momentum,
                              nesterov=False, weight_decay=settings.weight_decay,
                              decay_vectors=settings.optimizer == "sgd"),
            schedule=ScheduleConfig(kind="poly", power=settings.power,
                                    warmup_epochs=settings.warmup_epochs),
            precision=self.precision,
            clip_norm=settings.clip_norm,
            seed=seed,
            task={
                "start": start.identity,
                "student": start.config.to_json(),
                "train": self._train.digest,
                "val": self._val.digest,
                "classes": list(self._data.table.names),
                "ids": list(self._data.table.ids),
                "segment": settings.to_json(),
                "processes": self._world.size,
            },
        )  # fmt: skip

    def _run(self, start: Start, seed: int, folder: Path, config: FineTuneConfig) -> RunScore:
        settings, table = self._settings, self._data.table
        model = build_segmenter(start, settings, len(table.names), seed)
        with_norm(model, settings.norm, self._world)
        groups = [
            *parameter_groups(config.optim, model.network.get_submodule("encoder")),
            *parameter_groups(config.optim, *model.heads(), lr_factor=settings.head_factor),
        ]
        predictor = Predictor(model, start.config, settings, self._device)

        def evaluate(network: nn.Module) -> dict[str, Any]:
            return judge(predictor, network, self._val.pairs, table, self._workers).to_json()

        tuned = fine_tune(
            config,
            model,
            groups,
            EpochBatches(
                SegmentSamples(self._train.pairs, table, settings, start.config.mean),
                collate,
                seed=seed,
                batch_size=settings.batch_size,
                workers=self._workers,
                world=self._world,
            ),
            PixelLoss(start.config, settings.aux_weight, self._device, self._world),
            folder,
            device=self._device,
            evaluate=evaluate,
            evaluate_every=settings.evaluate_every or settings.epochs,
            world=self._world,
        )
        if self._world.is_first:
            save_segmenter(folder / NETWORK_NAME, model, start.config, settings, table.names)
            self._draw(folder / OVERLAYS_NAME, predictor, model)
        return _score(seed, tuned, table.names)

    def _draw(self, folder: Path, predictor: Predictor, model: Segmenter) -> None:
        pairs, wanted = self._val.pairs, min(self._request.overlays, len(self._val.pairs))
        if not wanted:
            return
        folder.mkdir(exist_ok=True)
        chosen = tuple(pairs[i * len(pairs) // wanted] for i in range(wanted))
        was_training = model.training
        model.eval()
        found = predictions(predictor, chosen, self._data.table)
        for pair, (pixels, predicted, target) in zip(chosen, found, strict=True):
            path = folder / f"{pair.image.stem}.png"
            segment_overlay(path, pixels, predicted, target, self._data.table.names)
        model.train(was_training)


def _score(seed: int, tuned: Tuned, names: tuple[str, ...]) -> RunScore:
    by_epoch = {line["epoch"]: line for line in tuned.evaluations}
    last = by_epoch[max(by_epoch)]
    best = max(by_epoch.values(), key=lambda line: (line["miou"], -line["epoch"]))
    return RunScore(
        seed=seed,
        metrics={
            "miou": last["miou"],
            "pixel_accuracy": last["pixel_accuracy"],
            "best_miou": best["miou"],
        },
        seconds=tuned.seconds,
        extra={
            "last_epoch": last["epoch"],
            "best_epoch": best["epoch"],
            "ious": dict(zip(names, last["ious"], strict=True)),
        },
    )
