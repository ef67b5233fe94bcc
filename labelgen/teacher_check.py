"""Whether a teacher knows the classes of the folder it is to label, asked before a long run.

    check = check_teacher(teacher, folder, seed=seed)   # seconds; only looks
    refuse(check, teacher)                              # raises TeacherError near chance
    check.to_json(), check.text()                       # for the report and local.json

`check_before_run` is what labelgen.run.generate calls.

Centre crops of at most `images` images, the same number of every class as far as they go, drawn by
the seed, are shown to the teacher as a run would show them. Where the folder's classes can't be
found among the teacher's by name (storage.classes), or are none, nothing is measured and `skipped`
says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from labelgen.check_causes import Cause, Evidence, likely_cause, try_causes
from storage.classes import map_classes
from storage.errors import BadImage, TeacherError
from storage.images import ImageFolder
from storage.pixels import cut_view

if TYPE_CHECKING:
    from labelgen.teacher import Teacher
    from labelgen.teachers import TeacherSpec

MOST_IMAGES = 256
FEWEST_IMAGES = 64  # fewer can't tell a poor teacher from one at chance
_IMAGES_TRIED = 96  # of those, on which causes are tried
_FEWEST_RESIZED = 32
_DOUBTFUL = 0.5  # below this a teacher above chance has its causes tried too, to warn
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """What a teacher got right.

    Attributes:
        top1: share of images whose own class comes first; None where it was not measured.
        images: how many were shown. chance: of a guess among all classes of the teacher.
        skipped: why nothing was measured, else None.
        tried: causes that were tried, with their own shares; cause: the one that explains it.
        members: an ensemble's teachers, each on its own.
    """

    top1: float | None = None
    images: int = 0
    chance: float = 0.0
    skipped: str | None = None
    tried: tuple[Cause, ...] = ()
    cause: Cause | None = None
    members: tuple[TeacherCheck, ...] = ()

    @property
    def near_chance(self) -> bool:
        """A tenth of the way from chance to perfect is not reached, nor three deviations."""
        return (
            self.top1 is not None
            and self.images >= FEWEST_IMAGES
            and self.top1 < near_chance_limit(self.chance, self.images)
        )

    @property
    def warning(self) -> str | None:
        """One line where the teacher is not at chance but something makes it clearly better."""
        if self.cause is None or self.top1 is None or self.near_chance:
            return None
        return (
            f"the teacher has the right class first for {_percent(self.top1)} of {self.images} "
            f"labelled images; {_describe(self.cause)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        if self.skipped:
            return {"skipped": self.skipped}
        report: dict[str, Any] = {
            "top1": round(self.top1 or 0.0, 6), "images": self.images, "chance": self.chance,
        }  # fmt: skip
        if self.cause:
            report["likely_cause"] = f"{self.cause.kind}: {self.cause.detail}"
        if self.members:
            report["members"] = [member.to_json() for member in self.members]
        return report

    def text(self) -> str:
        """The same in words, for people."""
        if self.top1 is None:
            return f"not measured: {self.skipped}"
        return f"{_percent(self.top1)} of {self.images} labelled images (centre crops)"


def near_chance_limit(chance: float, images: int) -> float:
    """Share of images below which a teacher is held to be guessing."""
    noise = 3 * (chance * (1 - chance) / images) ** 0.5
    return chance + max(0.1 * (1 - chance), float(noise))


def check_teacher(
    teacher: Teacher, folder: ImageFolder, *, images: int = MOST_IMAGES, seed: int = 0
) -> TeacherCheck:
    """Measure a teacher on labelled images, and look for the cause where it is poor.

    Costs one forward of at most `images` crops; a poor teacher some tens of forwards of fewer.
    """
    mapping = map_classes(folder.classes, teacher.spec.classes)
    if mapping is None:
        return TeacherCheck(skipped=_why_not(teacher.spec, folder))
    rows = _sample(np.array(folder.targets, dtype=np.int64), images, seed)
    crops, rows = _centre_crops(folder, rows, teacher.spec)
    if not len(rows):
        return TeacherCheck(skipped="none of the sampled images can be decoded")
    target = np.array(folder.targets, dtype=np.int64)[rows]
    predicted = _predict(teacher, crops)
    check = TeacherCheck(
        top1=float((predicted == mapping[target]).mean()),
        images=len(rows),
        chance=1 / teacher.spec.num_classes,
    )
    if teacher.members:
        members = (check_teacher(each, folder, images=images, seed=seed)
                   for each in teacher.members)  # fmt: skip
        return replace(check, members=tuple(members))
    if len(rows) < FEWEST_IMAGES or (check.top1 or 0.0) >= _DOUBTFUL:
        return check
    tried = slice(_IMAGES_TRIED)
    evidence = Evidence(
        spec=teacher.spec,
        predict=_predictor(teacher, folder, rows[tried], crops[tried]),
        predicted=predicted,
        target=target,
        folder_classes=folder.classes,
        mapping=mapping,
    )
    causes = try_causes(evidence)
    return replace(check, tried=tuple(causes), cause=likely_cause(causes))


def refuse(check: TeacherCheck, teacher: Teacher) -> None:
    """Stop a run whose teacher guesses, or has a member that does.

    Raises:
        TeacherError: with the share it has right and the likely cause.
    """
    for found, member in zip(check.members, teacher.members, strict=False):  # none when skipped
        refuse(found, member)
    if not check.near_chance or check.top1 is None:
        return
    reason = (
        f"likely {_describe(check.cause)}"
        if check.cause
        else "no cause found among normalisation, channel order, class order, class offset and "
        "input size: are these its weights, and the folder's labels right?"
    )
    raise TeacherError(
        f"teacher {teacher.spec.canonical} has the right class first for {_percent(check.top1)} "
        f"of {check.images} labelled images, which is near chance ({_percent(check.chance)}); "
        f"{reason}; or label all the same with --no-teacher-check"
    )


def _describe(cause: Cause) -> str:
    return (
        f"{cause.kind}: with {cause.detail} it is {_percent(cause.top1)} instead of "
        f"{_percent(cause.before)}; {cause.way_out}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _why_not(spec: TeacherSpec, folder: ImageFolder) -> str:
    if not folder.classes:
        return "the folder has no classes"
    if not spec.classes:
        return "the teacher's class names are unknown (name them with --class-names)"
    return "the folder's classes are not the teacher's by name"


def _sample(targets: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    """Rows of at most `most` images: the first of every class, then the second and so on."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(targets))
    rows = order[np.argsort(targets[order], kind="stable")]
    turn = np.arange(len(rows)) - np.searchsorted(targets[rows], targets[rows])
    return rows[np.lexsort((random.permutation(len(rows)), turn))][:most]


def _centre_crops(
    folder: ImageFolder, rows: npt.NDArray[np.int64], spec: TeacherSpec
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """uint8 [n, S, S, 3] of the rows that can be decoded, and those rows."""
    crops, sound = [], []
    for row in rows.tolist():
        try:
            image = folder.read(row).rgb()
        except (BadImage, OSError):  # the run masks and lists them
            continue
        side = min(image.height, image.width)
        box = (image.height - side) // 2, (image.width - side) // 2, side, side
        crops.append(cut_view(image, box, False, spec.input_size, spec.interpolation))
        sound.append(row)
    empty = np.zeros((0, spec.input_size, spec.input_size, 3), dtype=np.uint8)
    return np.stack(crops) if crops else empty, np.array(sound, dtype=np.int64)


def _predict(teacher: Teacher, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Most probable class of each crop, int64 [n]."""
    from labelgen.forward import Forward, matmul_precision

    forward = Forward(teacher, 1)
    with matmul_precision(teacher.precision):
        found = [
            forward(crops[first : first + _BATCH])[1][:, 0]
            for first in range(0, len(crops), _BATCH)
        ]
    return np.concatenate(found)


def _predictor(
    teacher: Teacher,
    folder: ImageFolder,
    rows: npt.NDArray[np.int64],
    crops: npt.NDArray[np.uint8],
) -> Callable[[TeacherSpec], npt.NDArray[np.int64] | None]:
    """The same images under other settings; they are cut anew for another input size, and fewer of
    them for a larger one, whose forward takes longer by its area."""

    def predict(spec: TeacherSpec) -> npt.NDArray[np.int64] | None:
        shown = crops
        if spec.input_size != teacher.spec.input_size:
            share = (teacher.spec.input_size / spec.input_size) ** 2
            count = max(_FEWEST_RESIZED, min(len(rows), int(share * len(rows))))
            shown = _centre_crops(folder, rows[:count], spec)[0]
        try:
            return _predict(replace(teacher, spec=spec), shown)
        except (RuntimeError, AssertionError, ValueError):  # a network of one input size only
            return None

    return predict


def check_before_run(
    teacher: Teacher, folder: ImageFolder, out: Path, *, overwrite: bool, seed: int
) -> TeacherCheck:
    """Check a teacher where a store is begun, not where one is gone on with.

    Says on stderr what was found in doubt; leaves `out` as it is.

    Raises:
        TeacherError: the teacher is near chance.
    """
    from storage.store import ROOT_METADATA

    if (out / ROOT_METADATA).is_file() and not overwrite:
        return TeacherCheck(skipped="the teacher was checked when the store was begun")
    check = check_teacher(teacher, folder, seed=seed)
    refuse(check, teacher)
    for line in filter(None, (each.warning for each in (check, *check.members))):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    return check
