"""`transfer classify`: fine-tune a network on another data set, from several starts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.images import ImageFolder, ImageStatus
from trainer.checkpoint import save_student
from trainer.distributed import processes_started
from trainer.inputs import pack_with_progress
from trainer.metrics import METRICS_NAME, read_metrics
from trainer.models.device import resolve_device
from trainer.replay.beton import Beton
from trainer.report_facts import read_facts
from trainer.request import FitRequest
from trainer.run import fit
from transfer.classify_settings import ClassifyOptions, ClassifySettings, resolve
from transfer.images import as_folder
from transfer.options import TaskOptions
from transfer.probe import split_rows
from transfer.results import CHOICE, RunScore, run_folder, run_once, write_results
from transfer.splits import Split, open_splits, split_notes
from transfer.starts import Start, build, open_starts

TASK = "classify"
RESULTS_NAME = f"{TASK}.json"
INIT_NAME = "init-{}-{}.safetensors"  # where a run's weights begin; gone once it is finished
DATA_NAME = "_data"  # below --out: no start has such a name
SWEEP_NAME = "sweep"  # below a start's folder
SCORES = ("top1", "class_mean", "top5")


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """What `transfer classify` was asked for; data, val: see `transfer.splits.open_splits`."""

    student: Path
    data: str
    val: str | None = None
    task: TaskOptions = field(default_factory=TaskOptions)
    options: ClassifyOptions = field(default_factory=ClassifyOptions)


@dataclass(frozen=True)
class Side:
    """Packed images to learn from, and image files to judge on."""

    beton: Path
    val: ImageFolder
    identity: dict[str, Any]  # of both, for finished runs


def run_classify(request: ClassifyRequest) -> dict[str, Any]:
    """Fine-tune every start with every seed; the values of classify.json.

    Raises:
        UsageError: see `open_starts`, `open_splits`, `resolve`; or the folder is of other runs; or
            one of several processes asks.
        TrainingError: a run failed or was stopped; the same request goes on.
    """
    if processes_started() > 1:
        raise UsageError(
            "`transfer classify` runs in one process: start it without torchrun, which is for "
            "segment and detect"
        )
    task = request.task
    device = resolve_device(task.device)
    starts = open_starts(request.student, task.compare)
    train, val = open_splits(request.data, request.val)
    settings = resolve(request.data, starts[0].config, task, request.options,
                       cuda=device.type == "cuda")  # fmt: skip
    out = task.folder(request.student, TASK)
    fitted = Fitter(request, settings, out, train, val)
    scores: dict[str, tuple[Start, list[RunScore]]] = {}
    notes = [*split_notes(train, val), CHOICE]
    for start in starts:
        chosen = fitted.choose_rate(start)
        runs = [fitted.run(start, seed, chosen.settings) for seed in task.all_seeds]
        scores[start.name] = start, runs
        notes += chosen.notes
    notes += [*fitted.image_notes(), *_unread(scores)]
    return write_results(
        out / RESULTS_NAME,
        TASK,
        settings.metric,
        {"train": train.to_json(), "val": val.to_json()},
        {**settings.to_json(), "data": request.data, **task.to_json(),
         "loader": request.options.loader},
        scores,
        list(dict.fromkeys(notes)),
    )  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """Settings with the learning rate that held-out training images like best."""

    settings: ClassifySettings
    notes: tuple[str, ...] = ()


class Fitter:
    """Runs of one request; images are packed when they are first needed."""

    def __init__(
        self, request: ClassifyRequest, settings: ClassifySettings, out: Path, train: Split,
        val: Split,
    ) -> None:  # fmt: skip
        self._request, self._settings, self._out = request, settings, out
        self._train, self._val = train, val
        self._sides: dict[str, Side] = {}

    def run(self, start: Start, seed: int, settings: ClassifySettings) -> RunScore:
        """A finished run's score, of a run before where there was one."""
        return self._score(self._whole(), start, seed, settings, run_folder(self._out, start, seed))

    def choose_rate(self, start: Start) -> Chosen:
        """The learning rate by short runs with a fifth of every class held out."""
        settings = self._settings
        if not settings.sweep:
            return Chosen(settings)
        side, seed, found = self._held_out(), self._request.task.seed, {}
        for rate in sorted(settings.sweep):
            tried = replace(settings, lr=rate, epochs=settings.sweep_epochs, sweep=(),
                            step_epochs=settings.step_epochs * settings.sweep_epochs
                            / settings.epochs)  # fmt: skip
            folder = self._out / start.name / SWEEP_NAME / f"lr{rate:g}"
            found[rate] = self._score(side, start, seed, tried, folder).metrics[settings.metric]
        best = max(found, key=lambda rate: (found[rate], -rate))
        listed = ", ".join(f"{rate:g}: {100 * value:.2f} %" for rate, value in found.items())
        note = (
            f"{start.name}: learning rate {best:g} chosen on a held-out fifth of the training "
            f"images, seed {seed} ({settings.metric} by rate {listed})"
        )
        edge = best in (min(found), max(found))
        more = f"{start.name}: learning rate {best:g} is at the edge of those swept"
        chosen = replace(settings, lr=best, sweep=())
        return Chosen(chosen, (note, more) if edge else (note,))

    def image_notes(self) -> list[str]:
        """Images that could not be read, or are smaller than the network's input."""
        beton, size = Beton.open(self._whole().beton), self._settings.size
        readable = beton.status == ImageStatus.OK
        small = int((beton.sizes[readable].min(axis=1) < size).sum())
        masked = [key for key, _ in beton.masked]
        return [
            *([f"{len(masked)} training images can't be decoded, left out: "
               f"{', '.join(masked[:3])}"] if masked else []),
            *([f"{small} training images are smaller than the {size} pixels of the input and are "
               "enlarged"] if small else []),
        ]  # fmt: skip

    def _whole(self) -> Side:
        if "whole" not in self._sides:
            folder = self._folder(self._train)
            self._sides["whole"] = self._side(
                folder, self._folder(self._val), self._train.digest, self._val.digest
            )
        return self._sides["whole"]

    def _held_out(self) -> Side:
        if "held-out" not in self._sides:
            folder, seed = self._folder(self._train), self._request.task.seed
            kept, held = split_rows(np.array(folder.targets), seed)
            if not len(held):
                raise UsageError(
                    f"--sweep holds out a fifth of every class, and {self._train.images.location} "
                    "has one image a class: give --lr alone"
                )
            digest = self._train.digest
            self._sides["held-out"] = self._side(
                _rows(folder, kept), _rows(folder, held), f"{digest} kept {seed}", f"{digest} held"
            )
        return self._sides["held-out"]

    def _folder(self, split: Split) -> ImageFolder:
        return as_folder(split.images, self._out / DATA_NAME / split.digest[:16])

    def _side(self, train: ImageFolder, val: ImageFolder, digest: str, val_digest: str) -> Side:
        name = digest[:16] + digest[64:].replace(" ", "-")
        beton = self._out / DATA_NAME / f"{name}.beton"
        if not beton.exists():
            pack_with_progress(train, beton, self._request.task.workers, overwrite=False)
        return Side(beton, val, {"train": digest, "val": val_digest})

    def _score(
        self, side: Side, start: Start, seed: int, settings: ClassifySettings, folder: Path
    ) -> RunScore:
        identity = {
            "start": start.identity,
            "arch": start.config.arch,
            **side.identity,
            "seed": seed,
            **{k: v for k, v in settings.to_json().items() if not k.startswith("sweep")},
        }
        found = run_once(
            folder,
            identity,
            lambda: self._fit(side, start, seed, settings, folder),
            overwrite=self._request.task.overwrite,
        )
        for init in folder.glob(INIT_NAME.format("*", "*")):
            init.unlink()
        return found

    def _fit(
        self, side: Side, start: Start, seed: int, settings: ClassifySettings, folder: Path
    ) -> RunScore:
        task = self._request.task
        classes = self._train.images.classes
        fed = replace(start.config, num_classes=len(classes), classes=classes)
        init = folder / INIT_NAME.format(start.identity[:16], len(classes))
        if task.overwrite or not init.exists():  # a stopped run goes on from the very file
            save_student(init, build(start, seed, len(classes)), fed, {"start": start.identity})
        fit(
            FitRequest(
                data=str(side.beton),
                val=side.val,
                out=folder,
                init=str(init),
                sampler=settings.sampler,
                settings=settings.fit_settings(fed),
                seed=seed,
                device=task.device,
                workers=task.workers,
                loader=self._request.options.loader,
                overwrite=task.overwrite,
            )
        )
        readable = int((Beton.open(side.beton).status == ImageStatus.OK).sum())
        return read_score(folder, seed, settings, min(settings.batch_size, readable))


def read_score(folder: Path, seed: int, settings: ClassifySettings, step_images: int) -> RunScore:
    """The score of a run's folder: the last epoch's, and apart from it the best epoch's."""
    lines = [line for line in read_metrics(folder / METRICS_NAME) if line["kind"] == "eval"]
    by_epoch = {line["epoch"]: line for line in lines}  # of two of an epoch the later one holds
    last = by_epoch[max(by_epoch)]
    best = max(by_epoch.values(), key=lambda line: (line[settings.metric], -line["epoch"]))
    metrics = {name: float(last[name]) for name in SCORES}
    result = read_facts(folder)["result"]
    crops = result["steps"] * step_images
    return RunScore(
        seed=seed,
        metrics=metrics | {f"best_{settings.metric}": float(best[settings.metric])},
        # of a run in two sittings: the last sitting's rate for all of it
        seconds=result["seconds"] * max(1.0, crops / max(1, result["crops"])),
        extra={
            "lr": settings.lr,
            "steps": result["steps"],
            "last_epoch": _scores(last),
            "best_epoch": _scores(best),
            "notes": result["notes"],
        },
    )


def _unread(scores: Mapping[str, tuple[Start, Sequence[RunScore]]]) -> list[str]:
    """Images judged on that could not be decoded; the same in every run."""
    runs = [run for _, of_start in scores.values() for run in of_start]
    count = max(run.extra["last_epoch"]["masked"] for run in runs)
    return [f"{count} images of --val can't be decoded: not counted"] if count else []


def _scores(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("epoch", *SCORES, "loss", "num_images", "masked")}


def _rows(folder: ImageFolder, rows: npt.NDArray[np.int64]) -> ImageFolder:
    """Some images of a folder, classes as they were."""
    return replace(
        folder,
        keys=tuple(folder.keys[row] for row in rows),
        targets=tuple(folder.targets[row] for row in rows),
    )
