"""`transfer detect`: fine-tune detectors from several starts and seeds, and judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from storage.atomic import write_atomic
from trainer.checkpoint import save_network
from trainer.checks import require
from trainer.distributed import World, joined_world, local_device
from trainer.models.device import resolve_device
from trainer.norms import check_norm, with_norm
from trainer.optim import parameter_groups
from trainer.plan import images_per_step, pieces, steps_per_epoch
from transfer.detect.boxes import PhotoSet, count_boxes
from transfer.detect.data import DetectionBatch, TrainSamples, collate
from transfer.detect.evaluate import Found, average_precision, find
from transfer.detect.model import Detector, build_detector
from transfer.detect.overlay import write_overlay
from transfer.detect.settings import DetectOptions, DetectSettings, batch_of, resolve
from transfer.detect.sources import open_photos
from transfer.detect.voc import is_voc
from transfer.epochs import EpochBatches
from transfer.finetune import FineTuneConfig, fine_tune
from transfer.licence import licence_note
from transfer.options import TaskOptions
from transfer.results import OVERLAYS_NAME, RunScore, run_folder, run_once, write_results
from transfer.starts import Start, build, open_starts

TASK = "detect"
RESULTS_NAME = f"{TASK}.json"
LEFT_OUT_NAME = "left-out.txt"
NETWORK_NAME = "detector.safetensors"  # a finished run's weights, in its folder
NETWORK_KEY = "teachonce-detector"
HEADLINE = "AP"
CHOICE = "nothing was chosen on the photos judged on: the figures are the last epoch's"


@dataclass(frozen=True, kw_only=True)
class DetectRequest:
    """What `transfer detect` was asked for.

    data, val: see `open_photos`; without val, the list `val` of a VOC folder. images, val_images:
    folders of a COCO file's photos.
    """

    student: Path
    data: tuple[str, ...]
    val: tuple[str, ...] = ()
    images: Path | None = None
    val_images: Path | None = None
    task: TaskOptions = field(default_factory=TaskOptions)
    options: DetectOptions = field(default_factory=DetectOptions)


def run_detect(request: DetectRequest) -> dict[str, Any]:
    """Fine-tune every start with every seed; the values of detect.json.

    Under torchrun every process calls it; all get the same values, the first one writes.

    Raises:
        UsageError: see `open_starts`, `open_photos`, `resolve`, `build_detector`; or the folder is
            of other runs, or processes can't share a step.
        TrainingError: a run failed or was stopped; the same request goes on.
    """
    device = local_device(resolve_device(request.task.device))
    with joined_world(device, f"transfer.cli {TASK}") as world:
        return _run_detect(request, device, world)


def _run_detect(request: DetectRequest, device: torch.device, world: World) -> dict[str, Any]:
    task, options = request.task, request.options
    starts = open_starts(request.student, task.compare)
    require(
        bool(request.val) or all(is_voc(Path(location)) for location in request.data),
        "--data has no list of photos to judge on: give them with --val (a VOC folder alone has "
        "its list val)",
    )
    train, val = world.first(lambda: _open_both(request))
    size = images_per_step(batch_of(task), 1, len(train.photos))
    pieces(size, 1, world.size)  # refuses processes that can't share a step
    steps = steps_per_epoch(len(train.photos), size)
    settings = resolve(task, options, train.kind, steps, device.type == "cuda")
    out = task.folder(request.student, TASK)
    check_norm(settings.detector.norm, world, device)
    if world.is_first:
        write_atomic(out / LEFT_OUT_NAME, _left_out(train, val))
    runs = Runs(settings, task, options, train, val, out, device, world)
    scores = {s.name: (s, [runs.run(s, seed) for seed in task.all_seeds]) for s in starts}
    runs.note_use(starts[0])
    return write_results(
        out / RESULTS_NAME,
        TASK,
        HEADLINE,
        {"train": _described(train), "val": _described(val)},
        {**settings.to_json(), "preset": options.preset, **task.to_json()},
        scores,
        [*_notes(settings, starts, train, val), *runs.notes, CHOICE],
        world,
    )  # fmt: skip


def _open_both(request: DetectRequest) -> tuple[PhotoSet, PhotoSet]:
    train = open_photos(request.data, request.images, "train")
    val = open_photos(
        request.val or request.data, request.val_images or request.images, "val", train.classes
    )
    return train, val


class Runs:
    """Runs of one request.

    Attributes:
        notes: what the detectors take of the student.
    """

    def __init__(
        self,
        settings: DetectSettings,
        task: TaskOptions,
        options: DetectOptions,
        train: PhotoSet,
        val: PhotoSet,
        out: Path,
        device: torch.device,
        world: World,
    ) -> None:
        self._settings, self._task, self._options = settings, task, options
        self._world = world
        self._train, self._val, self._out, self._device = train, val, out, device
        self._identities = {"train": train.identity(), "val": val.identity()}
        self.notes: list[str] = []

    def run(self, start: Start, seed: int) -> RunScore:
        """A finished run's score, of a run before where there was one."""
        folder, identity = run_folder(self._out, start, seed), self._identity(start, seed)
        return run_once(
            folder,
            identity,
            lambda: self._run(start, seed, identity, folder),
            overwrite=self._task.overwrite,
            leaves=[NETWORK_NAME],
            world=self._world,
        )

    def note_use(self, start: Start) -> None:
        """Note what a detector takes of a start, if no run has."""
        if not self.notes:
            self._detector(start, self._task.seed)

    def _run(self, start: Start, seed: int, identity: dict[str, Any], folder: Path) -> RunScore:
        norm = self._settings.detector.norm
        model = with_norm(self._detector(start, seed).model, norm, self._world)
        found = self._fit(model, seed, identity, folder)
        if self._world.is_first:
            self._draw(model, folder / OVERLAYS_NAME)
            self._keep(model, start, folder)
        return found

    def _identity(self, start: Start, seed: int) -> dict[str, Any]:
        settings = self._settings.to_json()
        fed = start.config
        return {"start": start.identity, "arch": fed.arch, "mean": fed.mean, "std": fed.std,
                "seed": seed, **self._identities, **settings,
                "processes": self._world.size}  # fmt: skip

    def _detector(self, start: Start, seed: int) -> Detector:
        detector = build_detector(
            self._settings.detector,
            build(start, seed),
            start.config,
            len(self._train.classes),
            seed,
        )
        if not self.notes:
            self.notes.append(_use(detector))
        return detector

    def _fit(self, model: nn.Module, seed: int, identity: dict[str, Any], folder: Path) -> RunScore:
        settings = self._settings
        samples = TrainSamples(self._train, settings.sizes, settings.flip, settings.skip_ignored)
        batches = EpochBatches(
            samples,
            collate,
            seed=seed,
            batch_size=settings.batch_size,
            workers=self._task.readers,
            world=self._world,
        )
        config = FineTuneConfig(
            epochs=settings.epochs,
            optim=settings.optim,
            schedule=settings.schedule,
            precision=settings.precision,
            clip_norm=settings.clip_norm,
            seed=seed,
            task=identity,
        )
        tuned = fine_tune(
            config,
            model,
            parameter_groups(settings.optim, model),
            batches,
            detection_loss,
            folder,
            device=self._device,
            evaluate=self._evaluate,
            evaluate_every=settings.evaluate_every,
            world=self._world,
        )
        last = tuned.evaluations[-1]
        return RunScore(
            seed=seed,
            metrics={name: float(value) for name, value in last["figures"].items()},
            seconds=tuned.seconds,
            extra={
                "classes": last["classes"],
                "evaluations": [
                    {"epoch": one["epoch"], **one["figures"]} for one in tuned.evaluations
                ],
            },
        )

    def _keep(self, model: nn.Module, start: Start, folder: Path) -> None:
        header = {
            "student": start.config.to_json(),
            "detect": self._settings.to_json(),
            "classes": list(self._train.classes),
        }
        save_network(folder / NETWORK_NAME, model, NETWORK_KEY, header)

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        photos, classes = self._val.photos, self._val.classes
        found = self._find(model, list(range(len(photos))))
        precision = average_precision(photos, classes, found, voc=self._val.kind == "voc")
        return {"figures": precision.figures, "classes": precision.classes}

    def _draw(self, model: nn.Module, folder: Path) -> None:
        photos = self._val.photos
        count = min(self._options.overlays, len(photos))
        rows = [i * len(photos) // count for i in range(count)]
        for row, found in zip(rows, self._find(model, rows), strict=True):
            name = f"{photos[row].key.replace('/', '_')}.png"
            write_overlay(folder / name, photos[row], found, self._val.classes)

    def _find(self, model: nn.Module, rows: Sequence[int]) -> list[Found]:
        return find(
            model,
            [self._val.photos[row] for row in rows],
            self._settings.sizes,
            device=self._device,
            batch_size=self._settings.batch_size,
            workers=self._task.readers,
        )


def detection_loss(model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
    """The detector's own terms of a batch."""
    device = next(model.parameters()).device
    images = [image.to(device).float() / 255 for image in batch.images]
    targets = [{name: value.to(device) for name, value in t.items()} for t in batch.target]
    terms: dict[str, Tensor] = model(images, targets)
    return terms


def _use(detector: Detector) -> str:
    left_out = f"; left out: {', '.join(detector.left_out)}" if detector.left_out else ""
    return f"{len(detector.used)} of the student's tensors are in the detector{left_out}"


def _notes(
    settings: DetectSettings, starts: Sequence[Start], train: PhotoSet, val: PhotoSet
) -> list[str]:
    notes = ["photos are fed in RGB with each start's own mean and deviation"]
    for name, one in (("--data", train), ("--val", val)):
        counts = ", ".join(f"{count} {why}" for why, count in one.found.counts.items())
        notes += [f"{name}: {counts}; listed in {LEFT_OUT_NAME}"] if counts else []
        empty = sum(not len(photo.labels) for photo in one.photos)
        notes += [f"{name}: {empty} photos have no boxes: background alone"] if empty else []
    there = {photo.path.resolve() for photo in train.photos}
    both = sum(photo.path.resolve() in there for photo in val.photos)
    notes += [f"{both} photos are in both --data and --val: the figures flatter"] if both else []
    if settings.detector.norm == "frozen" and any(start.state is None for start in starts):
        notes.append("scratch: frozen batch norms of an untrained network normalise nothing")
    folders = dict.fromkeys([*train.folders, *val.folders])
    return notes + [note for folder in folders if (note := licence_note(folder)) is not None]


def _described(photos: PhotoSet) -> dict[str, Any]:
    return {
        "location": photos.location,
        "images": len(photos.photos),
        "boxes": count_boxes(photos.photos, photos.classes),
        "left_out": photos.found.counts,
        "digest": photos.identity(),
    }


def _left_out(*sets: PhotoSet) -> bytes:
    lines = [f"{one.location}: {line}\n" for one in sets for line in one.found.lines]
    return "".join(lines).encode()
