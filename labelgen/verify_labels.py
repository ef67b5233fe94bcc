"""Whether a store's labels are its teacher's: crops drawn at random are labelled again.

What `labelgen verify` calls. A sequential test (labelgen.sequential) says when enough were looked
at; labelgen.tolerance says which differences arithmetic alone makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from labelgen.check_causes import other_pixels
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
from labelgen.verify_report import CLUE_SHARE, VerifyReport, WrongCrop
from storage.augment import replay_view
from storage.codecs import TopKLabels
from storage.errors import BadImage, StoreMismatch, UsageError
from storage.format import differences
from storage.images import ImageStatus, read_image
from storage.label_stream import row_labels
from storage.pixels import pad_image
from storage.store import LabelStore
from storage.teacher_record import TeacherRecord
from storage.views import Views

BATCH = 32  # crops forwarded together
MOST_CROPS = 5000

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Vectors = dict[str, dict[str, npt.NDArray[np.float32]]]  # by target path and part, [n, *shape]


@dataclass(frozen=True, eq=False)
class _Crop:
    """One crop drawn: its pixels, or None where its image isn't the labelled one."""

    row: int
    view: int
    pixels: Pixels | None
    labels: TopKLabels


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
    source, total = _Source(store, record, data), store.spec.num_views * _sound(store).size
    outputs = _Outputs(teacher, plans)
    tolerance: Tolerance | None = None
    for places in _drawn(store, min(most, total), seed):
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


def _sound(store: LabelStore) -> npt.NDArray[np.intp]:
    rows = np.flatnonzero(store.read_status() == ImageStatus.OK)
    if not rows.size:
        raise UsageError(f"{store.path} has no labelled image")
    return rows


def _drawn(store: LabelStore, count: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """`count` different crops in random order, BATCH at a time."""
    rows, views = _sound(store), store.spec.num_views
    total = rows.size * views
    rng = np.random.default_rng([seed, total])
    if total <= 1 << 20:
        numbers = rng.permutation(total)[:count].tolist()
    else:
        seen: dict[int, None] = {}
        while len(seen) < count:
            seen.update(dict.fromkeys(rng.integers(0, total, count - len(seen)).tolist()))
        numbers = list(seen)
    for first in range(0, count, BATCH):
        part = numbers[first : first + BATCH]
        yield [(int(rows[number // views]), number % views) for number in part]


class _Source:
    """Crops of a store, cut again from its images."""

    def __init__(self, store: LabelStore, record: TeacherRecord, data: Path) -> None:
        self._store, self._record, self._data = store, record, data
        self._table = store.read_images()
        size = record.input_size
        self.blank = np.zeros((size, size, 3), np.uint8)

    def crop(self, row: int, view: int) -> _Crop:
        """One crop with its stored label."""
        views, labels = row_labels(self._store, self._record.name, row, view + 1)
        picked = TopKLabels(labels.index[view], labels.code[view], labels.tail[view])
        return _Crop(row, view, self._pixels(row, views, view), picked)

    def wrong(self, crop: _Crop, why: str, logs: Floats, eps: float) -> WrongCrop:
        """What is known of a wrong crop."""
        spec = self._store.spec
        others: tuple[int, ...] = ()
        if why != "image":
            others = self._fitting(crop, logs, eps)
        return WrongCrop(
            row=crop.row, view=crop.view, key=self._table.key[crop.row],
            block=crop.row // spec.block_images, why=why, other_views=others,
        )  # fmt: skip

    def _fitting(self, crop: _Crop, logs: Floats, eps: float) -> tuple[int, ...]:
        """Other views of the image whose labels would be right for the crop."""
        codec, views = self._record.codec, self._store.spec.num_views
        _, labels = row_labels(self._store, self._record.name, crop.row, views)
        return tuple(
            v
            for v in range(views)
            if v != crop.view
            and label_fits(
                codec, logs, TopKLabels(labels.index[v], labels.code[v], labels.tail[v]), eps
            )
            is None
        )

    def _pixels(self, row: int, views: Views, view: int) -> Pixels | None:
        spec = self._store.spec
        try:
            found = read_image(self._data, self._table.key[row])
            if found.digest != self._table.digest[row].tobytes():
                return None
            image = pad_image(found.rgb(), spec.pixel.padding)
        except (OSError, BadImage):
            return None
        return replay_view(
            image, views.box[view], bool(views.flip[view]), self._record.input_size,
            spec.pixel.interpolation, spec.augment,
            None if views.draw is None else views.draw[view],
        )  # fmt: skip


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
    teacher: Teacher, record: TeacherRecord, wrong: Sequence[_Crop], eps: float
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
    store: LabelStore, record: TeacherRecord, plans: Sequence[TargetPlan], crop: _Crop,
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
