"""`transfer probe`: features of one or several networks, judged on the same images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from storage.atomic import write_atomic
from storage.classes import map_classes
from storage.errors import UsageError
from trainer import models
from trainer.checkpoint import load_student
from trainer.config import StudentConfig
from trainer.models.device import resolve_device
from trainer.models.init import file_digest
from trainer.report import format_table
from transfer.features import Extraction, Features, cached_features
from transfer.images import LabelledImages, fingerprint, open_labelled
from transfer.probe import ProbeResult, ProbeSettings, probe

RESULTS_NAME = "probe.json"
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """What `transfer probe` was asked for.

    data, val: see `transfer.images.open_labelled`. compare: other student files, or `random`: the
    student's own network before any training. out: folder of the results and the features; None:
    `probe` beside the student.
    """

    student: Path
    data: str
    val: str
    out: Path | None = None
    compare: tuple[str, ...] = ()
    settings: ProbeSettings = field(default_factory=ProbeSettings)
    whole: bool = False
    device: str = "auto"
    batch_size: int = 128
    workers: int = 2
    overwrite: bool = False


@dataclass(frozen=True)
class Split:
    """Images of one side with what identifies them; labels: class numbers of the training side."""

    images: LabelledImages
    digest: str
    contents: frozenset[bytes]
    labels: np.ndarray


@dataclass(frozen=True)
class Report:
    """Results by network, and all that is written to probe.json."""

    path: Path
    results: dict[str, ProbeResult]
    notes: tuple[str, ...]
    values: dict[str, Any]


def run_probe(request: ProbeRequest) -> Report:
    """Extract features (or take the kept ones), judge them, write probe.json.

    Raises:
        UsageError: see `open_labelled`, `match_val`; or probe.json is there already.
    """
    out = request.out or request.student.parent / "probe"
    path = out / RESULTS_NAME
    if path.exists() and not request.overwrite:
        raise UsageError(f"{path} is there already: give another --out, or --overwrite")
    device = resolve_device(request.device)
    networks = load_networks(request)
    train, val = open_splits(request.data, request.val)
    extraction = Extraction(device, request.whole, request.batch_size, request.workers)
    results, notes = {}, list(split_notes(train, val))
    for name, (model, config, digest) in networks.items():
        pair = [_features(out, digest, model, config, side, extraction) for side in (train, val)]
        if name == next(iter(networks)):
            notes += image_notes(pair, config)
        results[name] = probe(pair[0], pair[1], len(train.images.classes), request.settings)
        if results[name].linear.note:
            notes.append(f"{name}: {results[name].linear.note}")
    values = _values(request, networks, train, val, results, notes)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())
    return Report(path, results, tuple(notes), values)


def load_networks(request: ProbeRequest) -> dict[str, tuple[nn.Module, StudentConfig, str]]:
    """Networks by name, each with how it is fed and what identifies its weights."""
    model, config = load_student(request.student)
    found = {"student": (model, config, file_digest(request.student))}
    for name in dict.fromkeys(request.compare):
        if name == RANDOM:
            seed = request.settings.seed
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = models.create(config.arch, config.num_classes)
            found[name] = fresh, config, f"random {seed} torch {torch.__version__}"
        else:
            other, other_config = load_student(Path(name))
            found[name] = other, other_config, file_digest(Path(name))
    return found


def open_splits(data: str, val: str) -> tuple[Split, Split]:
    """Training and validation images, their classes matched by name.

    Raises:
        UsageError: a class of the validation images that the training images lack, or fewer than
            two classes.
    """
    train_images, val_images = open_labelled(data, "train"), open_labelled(val, "test")
    classes = train_images.classes
    if len(classes) < 2:
        raise UsageError(f"{data} has one class ({classes[0]}): a probe needs at least two")
    mapping = map_classes(val_images.classes, classes)
    if mapping is None:
        lacking = [name for name in val_images.classes if name not in set(classes)]
        raise UsageError(
            f"{val} has {len(lacking)} classes that {data} lacks, such as "
            f"{(lacking or list(val_images.classes))[0]!r}: the class names must be the same"
        )
    return (
        Split(train_images, *fingerprint(train_images), np.arange(len(classes))),
        Split(val_images, *fingerprint(val_images), mapping),
    )


def split_notes(train: Split, val: Split) -> tuple[str, ...]:
    """What people should know about the two sides before they trust a number."""
    shared = len((train.contents & val.contents) - {_NOTHING})
    absent = len(train.images.classes) - len(val.images.classes)
    return (
        *((f"{shared} images are in both --data and --val: the results are too good",)
          * (shared > 0)),
        *((f"{absent} of {len(train.images.classes)} classes have no validation images",)
          * (absent > 0)),
    )  # fmt: skip


def image_notes(pair: list[Features], config: StudentConfig) -> list[str]:
    """Masked and enlarged images."""
    notes = []
    for side, features in zip(("--data", "--val"), pair, strict=True):
        if features.masked:
            names = ", ".join(features.masked[:3])
            notes.append(f"{len(features.masked)} images of {side} are masked: {names}")
        if features.enlarged:
            notes.append(
                f"{features.enlarged} images of {side} are smaller than the student's "
                f"{config.input_size} pixels and were enlarged"
            )
    return notes


def describe(report: Report) -> str:
    """Table for the terminal."""
    lines = []
    for name, result in report.results.items():
        linear = result.linear
        rows = [(f"linear ({report.values['settings']['fit']})",
                 f"{linear.top1:.2%}, weight decay {linear.decay:g}")]  # fmt: skip
        rows += [(f"k-NN, k = {k}", f"{value:.2%}") for k, value in result.knn.items()]
        rows += [
            (f"{few.shots} shots, {few.method}",
             f"{few.mean:.2%} ± {few.deviation:.2%} ({len(few.runs)} draws)")
            for few in result.few_shot
        ]  # fmt: skip
        lines.append(format_table(f"{name}: top-1 on {report.values['val']['images']} images of "
                                  f"{report.values['val']['location']}", rows))  # fmt: skip
    notes = [f"note: {note}" for note in report.notes]
    return "\n".join([*lines, CHOICE, *notes, f"written to {report.path}"])


CHOICE = "weight decay chosen on held-out training images; nothing was chosen on --val"
_NOTHING = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def _features(
    out: Path, digest: str, model: nn.Module, config: StudentConfig, side: Split,
    extraction: Extraction,
) -> Features:  # fmt: skip
    found = cached_features(out, (digest, side.digest), model, config, side.images, extraction)
    return replace(found, target=side.labels[found.target])


def _values(
    request: ProbeRequest,
    networks: dict[str, tuple[nn.Module, StudentConfig, str]],
    train: Split,
    val: Split,
    results: dict[str, ProbeResult],
    notes: list[str],
) -> dict[str, Any]:
    sides = {
        name: {
            "location": side.images.location,
            "images": len(side.images.targets),
            "classes": len(side.images.classes),
            "sha256": side.digest,
        }
        for name, side in (("train", train), ("val", val))
    }
    return {
        **sides,
        "crop": "whole" if request.whole else "centre",
        "settings": asdict(request.settings),
        "choice": CHOICE,
        "networks": {
            name: {"arch": config.arch, "identity": digest} | results[name].to_json()
            for name, (_, config, digest) in networks.items()
        },
        "notes": notes,
    }
