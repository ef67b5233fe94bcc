"""Whether a store's labels are its teacher's: crops drawn at random are labelled again.

What `labelgen verify` calls. A sequential test (labelgen.sequential) says when enough were looked
at; labelgen.tolerance says which differences arithmetic alone makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from labelgen.check_causes import other_pixels
from labelgen.drawn_crops import (
    CropSource,
    DrawnCrop,
    Floats,
    Pixels,
    drawn_crops,
    labelled_rows,
)
from labelgen.extract.base import extractor_for
from labelgen.forward import Forward, matmul_precision
from labelgen.labelling import LOGITS
from labelgen.run_targets import stored_plans
from labelgen.sequential import FEW, MANY, ShareTest
from labelgen.target_plans import TargetPlan
from labelgen.teacher import Teacher
from labelgen.tolerance import (
    BF16_SHARE,
    SAFETY,
    Tolerance,
    label_fits,
    largest_difference,
    log_prob_tolerance,
    vectors_fit,
)
from labelgen.verify_report import CLUE_SHARE, VerifyReport
from storage.errors import StoreMismatch, UsageError
from storage.format import differences
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord

MOST_CROPS = 5000

Vectors = dict[str, dict[str, npt.NDArray[np.float32]]]  # by target path and part, [n, *shape]


def verify_labels(
    store: LabelStore,
    teacher: Teacher,
    data: Path,
    *,
    test: ShareTest | None = None,
    most: int = MOST_CROPS,
    seed: int = 0,
    on_crops: Callable[[int], None] = lambda crops: None,
) -> VerifyReport:
    """Label random crops again and compare, until it is clear whether the labels are right.

    Targets of this teacher are compared too where a crop's view has them.

    Args:
        data: folder of the labelled images, under the store's keys.
        most: crops to look at; where the store has fewer, all are looked at.
        on_crops: called with the crops just compared.
    Raises:
        StoreMismatch: the teacher isn't the one of the store; names every difference.
        UsageError: no such folder, or the store has no labels of it or no readable image.
    """
    if not data.exists():
        raise UsageError(f"{data} is not a folder: give the labelled images with --data")
    record = _check_teacher(store, teacher)
    test = test or ShareTest()
    plans = stored_plans(
        store, sorted(p for p, t in store.spec.targets.items() if t.teacher == record.name)
    )
    report = VerifyReport(
        teacher=record.name, precision=teacher.precision, test=test,
        targets=tuple(plan.record.path for plan in plans),
    )  # fmt: skip
    source = CropSource(store, record, data)
    total = store.spec.num_views * labelled_rows(store).size
    outputs = _Outputs(teacher, plans)
    tolerance: Tolerance | None = None
    for places in drawn_crops(store, min(most, total), seed):
        crops = [source.crop(row, view) for row, view in places]
        pixels = np.stack([source.blank if c.pixels is None else c.pixels for c in crops])
        logs, vectors = outputs(pixels)
        if tolerance is None:
            tolerance = _measure(teacher, record, plans, pixels, logs, vectors)
            report.eps = tolerance.eps
        wrong = []
        for i, crop in enumerate(crops):
            why = _compare(store, record, plans, crop, logs[i], vectors, i, tolerance)
            report.looked += 1
            if why is not None:
                wrong.append(crop)
                report.wrong.append(source.wrong(crop, why, logs[i], tolerance.eps))
            # the rest of the batch is there already: it shows what wrong crops have in common
            report.decision = report.decision or test.decide(report.looked, len(report.wrong))
            if report.decision == FEW:
                break
        on_crops(len(crops))
        if report.decision == MANY:
            report.settings_clue = _settings_clue(teacher, record, wrong, tolerance.eps)
        if report.decision is not None:
            return report
    report.every = report.looked == total
    if report.every:  # nothing is left to chance
        report.decision = FEW if len(report.wrong) <= test.h0 * total else MANY
    return report


def _check_teacher(store: LabelStore, teacher: Teacher) -> TeacherRecord:
    """The store's record of this very network.

    Raises:
        UsageError: the store has no labels of it. StoreMismatch: of another of its name.
    """
    name = teacher.spec.name
    records = store.spec.teachers
    if name not in records:
        same = [n for n, record in records.items() if record.digest == teacher.digest]
        if not same:
            raise UsageError(
                f"{store.path} has no labels of teacher {name}; it has "
                f"{', '.join(sorted(records)) or 'none'}: give that one with --teacher"
            )
        name = same[0]
    known = records[name]
    ours = teacher.record(codec=known.codec, batch_size=known.batch_size).to_json()
    theirs = known.to_json()
    for free in ("name", "spec", "library", "version", "licence", "precision", "compiled",
                 "revision", "interpolation", "members"):  # fmt: skip
        ours.pop(free, None)
        theirs.pop(free, None)
    if ours["digest"] != theirs["digest"]:
        raise StoreMismatch(
            f"{store.path} has labels of another {name}: the weights' digest is "
            f"{ours['digest'][:12]}..., not {theirs['digest'][:12]}...: give the weights that made "
            "them"
        )
    found = differences(ours, theirs)
    if found:
        raise StoreMismatch(
            f"{store.path} was labelled by {name} with other settings: {'; '.join(found)}. Give "
            "the store's"
        )
    return known


class _Outputs:
    """A teacher's log-probabilities and targets of a batch of crops."""

    def __init__(self, teacher: Teacher, plans: Sequence[TargetPlan]) -> None:
        self._teacher, self._plans = teacher, plans
        self._forward = Forward(teacher, 1)
        wanted = {name for plan in plans for name in plan.outputs_needed} - {LOGITS}
        self._extract = extractor_for(teacher, wanted) if wanted else None

    def __call__(self, pixels: Pixels) -> tuple[Floats, Vectors]:
        """float64 log-probabilities [n, C] and the targets' vectors of uint8 [n, S, S, 3]."""
        with torch.inference_mode(), matmul_precision(self._teacher.precision):
            batch = self._forward.normalise(pixels)
            if self._extract is None:
                outputs = {LOGITS: self._forward.logits(batch)}
            else:
                with self._forward.autocast():
                    outputs = self._extract(batch)
            logs = torch.log_softmax(outputs[LOGITS].double(), dim=1).cpu().numpy()
            vectors = {
                plan.record.path: {
                    name: values.float().cpu().numpy()
                    for name, values in plan.vectors(
                        {name: outputs[name] for name in plan.outputs_needed}
                    ).items()
                }
                for plan in self._plans
            }
        return logs, vectors


def _measure(
    teacher: Teacher, record: TeacherRecord, plans: Sequence[TargetPlan], pixels: Pixels,
    logs: Floats, vectors: Vectors,
) -> Tolerance:  # fmt: skip
    """The tolerance of docs/trust.md, from a first batch."""
    runs: dict[str, tuple[Floats, Vectors]] = {teacher.precision: (logs, vectors)}

    def run(precision: str) -> tuple[Floats, Vectors]:
        if precision not in runs:
            other = dataclasses.replace(teacher, precision=precision)
            runs[precision] = _Outputs(other, plans)(pixels)
        return runs[precision]

    exact_logs, exact_vectors = run("fp32")
    away: dict[str, float] = {}
    vectors_away = {path: dict.fromkeys(parts, 0.0) for path, parts in exact_vectors.items()}
    for number, precision in enumerate((teacher.precision, record.precision)):
        if precision == "fp32":
            continue
        share, measured = 1.0, precision
        if teacher.device.type == "cpu" and precision in ("tf32", "fp16"):
            share, measured = BF16_SHARE, "bf16"
        other_logs, other_vectors = run(measured)
        name = f"{number} {precision}"
        away[name] = share * largest_difference(exact_logs, other_logs, record.codec.top_k)
        for path, parts in exact_vectors.items():
            for part, values in parts.items():
                largest = np.abs(values - other_vectors[path][part]).max(initial=0)
                vectors_away[path][part] += SAFETY * share * float(largest)
    return Tolerance(eps=log_prob_tolerance(exact_logs, away), vectors=vectors_away)


def _settings_clue(
    teacher: Teacher, record: TeacherRecord, wrong: Sequence[DrawnCrop], eps: float
) -> str | None:
    """Other settings of the teacher under which nearly all of these labels would be right."""
    cut = [(crop.pixels, crop.labels) for crop in wrong if crop.pixels is not None]
    if not cut:
        return None
    pixels = np.stack([each for each, _ in cut])
    for kind, detail, _, spec in other_pixels(teacher.spec):
        if spec.input_size != teacher.spec.input_size:
            continue
        logs, _ = _Outputs(dataclasses.replace(teacher, spec=spec), ())(pixels)
        fits = [label_fits(record.codec, logs[i], cut[i][1], eps) is None for i in range(len(cut))]
        if sum(fits) >= CLUE_SHARE * len(wrong):
            return f"the labels are those of another {kind} ({detail}) than the store says"
    return None


def _compare(
    store: LabelStore, record: TeacherRecord, plans: Sequence[TargetPlan], crop: DrawnCrop,
    logs: Floats, vectors: Mapping[str, Mapping[str, npt.NDArray[np.float32]]], i: int,
    tolerance: Tolerance,
) -> str | None:  # fmt: skip
    """What is wrong with a crop; None where nothing is."""
    if crop.pixels is None:
        return "image"
    why = label_fits(record.codec, logs, crop.labels, tolerance.eps)
    if why is not None:
        return why
    for plan in plans:
        path = plan.record.path
        if crop.view >= plan.views:
            continue
        stored = store.read_target(path, slice(crop.row, crop.row + 1),
                                   slice(crop.view, crop.view + 1))  # fmt: skip
        for part in plan.record.parts:
            eps = tolerance.vectors[path][part.name]
            if not vectors_fit(part, vectors[path][part.name][i], stored[part.name][0, 0], eps):
                return path
    return None
