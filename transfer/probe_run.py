"""`transfer probe`: features of one or several networks, judged on the same images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storage.atomic import write_atomic
from storage.errors import UsageError
from trainer import models
from trainer.checkpoint import load_student
from trainer.config import StudentConfig
from trainer.models.device import resolve_device
from trainer.models.init import file_digest
from trainer.report import format_table
from transfer.features import Extraction, Features, cached_features
from transfer.probe import ProbeResult, ProbeSettings, probe
from transfer.splits import Split, open_splits, split_notes
from transfer.starts import SCRATCH, STUDENT

TASK, FORMAT = "probe", 1
RESULTS_NAME = f"{TASK}.json"
RANDOM = "random"  # in identities, before the seed, too


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """What `transfer probe` was asked for.

    data, val: see `transfer.splits.open_splits`. compare: other student files, as FILE or
    NAME=FILE, or `random` (also `scratch`): the student's own network before any training.
    out: folder of the results and the features; None: `probe` beside the student.
    """

    student: Path
    data: str
    val: str | None = None
    out: Path | None = None
    compare: tuple[str, ...] = ()
    settings: ProbeSettings = field(default_factory=ProbeSettings)
    whole: bool = False
    device: str = "auto"
    batch_size: int = 128
    workers: int = 2
    overwrite: bool = False


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
    found = {STUDENT: (model, config, file_digest(request.student))}
    for text in dict.fromkeys(request.compare):
        name, equals, file = text.partition("=")
        if name in found:
            raise UsageError(f"--compare names two networks {name!r}: name one otherwise")
        if text in (RANDOM, SCRATCH):
            seed = request.settings.seed
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = models.create(config.arch, config.num_classes)
            found[name] = fresh, config, f"random {seed} torch {torch.__version__}"
        else:
            path = Path(file if equals else text)
            other, other_config = load_student(path)
            found[name] = other, other_config, file_digest(path)
    return found


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
    return {
        "format": FORMAT,
        "task": TASK,
        "train": train.to_json(),
        "val": val.to_json(),
        "crop": "whole" if request.whole else "centre",
        "settings": asdict(request.settings),
        "choice": CHOICE,
        "networks": {
            name: {"arch": config.arch, "identity": digest} | results[name].to_json()
            for name, (_, config, digest) in networks.items()
        },
        "notes": notes,
    }
