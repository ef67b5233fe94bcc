"""What may be wrong with a teacher that knows none of a folder's classes, found by trying.

A cause is named where undoing it gets clearly more of the same images right (McNemar's test,
Psychometrika 12, 1947: of the images on which the two disagree, z standard deviations).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from storage.classes import map_classes

if TYPE_CHECKING:
    from labelgen.teachers import TeacherSpec

Predict = Callable[["TeacherSpec"], npt.NDArray[np.int64] | None]
Right = npt.NDArray[np.bool_]

CLEARLY = 4.0  # standard deviations; some twenty causes are tried, so 3 would err too often
_LEARNT_LESS = 0.1  # by how much such an order must be better than what explains it otherwise
CLUSTERED = 0.5  # least accuracy of an order of classes that was learnt from the images
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BYTE = 1 / 255
_NORMALISATIONS: dict[str, dict[str, object]] = {
    "0..1": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "-1..1": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "0..255": {"mean": (0.0,) * 3, "std": (_BYTE,) * 3},
    "ImageNet's mean and deviation": dict(zip(("mean", "std"), _IMAGENET, strict=True)),
    "0..255 less the mean, in the order BGR": {
        "mean": tuple(value * _BYTE for value in (103.939, 116.779, 123.68)),
        "std": (_BYTE,) * 3,
        "channel_order": "bgr",
    },
}
_SIZES = (32, 64, 128, 224, 299, 384)


@dataclass(frozen=True)
class Cause:
    """One thing that may be wrong.

    Attributes:
        kind: normalisation, channel order, class offset, class order or input size.
        detail: what was tried. way_out: what to do about it, for a message.
        top1: share of images right when it is undone; before: without that, on the same images.
        z: McNemar's statistic of the difference.
    """

    kind: str
    detail: str
    way_out: str
    top1: float
    before: float
    z: float

    @property
    def explains(self) -> bool:
        """Whether undoing it gets clearly more images right."""
        return self.z > CLEARLY


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What causes are tried on.

    Attributes:
        spec: the teacher's own settings.
        predict: most probable class of the first m of the images, int64 [m], under other settings,
            or None where the network can't take them.
        predicted: int64 [n], under its own. target: int64 [n], rows of `folder_classes`.
    """

    spec: TeacherSpec
    predict: Predict
    predicted: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    folder_classes: Sequence[str]
    mapping: npt.NDArray[np.int64]

    @property
    def right(self) -> Right:
        """bool [n]: images whose own class comes first."""
        right: Right = self.predicted == self.mapping[self.target]
        return right

    def cause(self, kind: str, detail: str, way_out: str, right: Right) -> Cause:
        """How much better `right` [m] is than what the teacher gets right of the first m now."""
        before = self.right[: len(right)]
        gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
        z = (gained - lost) / max(gained + lost, 1) ** 0.5
        return Cause(kind, detail, way_out, float(right.mean()), float(before.mean()), float(z))


def try_causes(evidence: Evidence) -> list[Cause]:
    """Every cause with what undoing it gives; the order of classes learnt from the images comes
    last, for it can stand in for several of the others."""
    return [
        *_pixel_causes(evidence),
        *_offset_causes(evidence),
        *_known_orders(evidence),
        *_learnt_order(evidence),
    ]


def likely_cause(causes: Sequence[Cause]) -> Cause | None:
    """The cause that explains most; an order learnt from the images only where it explains clearly
    more than any other, since swapped channels, say, look like another order too."""
    explaining = [cause for cause in causes if cause.explains]
    return max(
        explaining,
        key=lambda cause: cause.top1 - (_LEARNT_LESS if cause.detail == _LEARNT else 0.0),
        default=None,
    )


def _pixel_causes(evidence: Evidence) -> Iterator[Cause]:
    for kind, detail, way_out, changed in other_pixels(evidence.spec):
        predicted = evidence.predict(changed)
        if predicted is not None:
            truth = evidence.mapping[evidence.target[: len(predicted)]]
            yield evidence.cause(kind, detail, way_out, predicted == truth)


def other_pixels(spec: TeacherSpec) -> Iterator[tuple[str, str, str, TeacherSpec]]:
    """Settings that a teacher's may be mistaken for: (kind, detail, way out, settings)."""
    turned = "rgb" if spec.channel_order == "bgr" else "bgr"
    yield (
        "channel order", turned, f"give --channel-order {turned}",
        replace(spec, channel_order=turned),
    )  # fmt: skip
    for detail, settings in _NORMALISATIONS.items():
        changed = replace(spec, **settings)  # type: ignore[arg-type]
        if changed != spec:
            yield "normalisation", detail, f"give {_flags(changed)}", changed
    for size in _SIZES:
        if size != spec.input_size:
            changed = replace(spec, input_size=size)
            yield "input size", f"{size} pixels", f"give --size {size}", changed


def _flags(spec: TeacherSpec) -> str:
    mean, std = (" ".join(f"{value:.6g}" for value in v) for v in (spec.mean, spec.std))
    return f"--mean {mean} --std {std} --channel-order {spec.channel_order}"


def _offset_causes(evidence: Evidence) -> Iterator[Cause]:
    truth = evidence.mapping[evidence.target]
    ways_out = {
        1: "if its head begins with a background class give --class-offset 1, else name the "
        "classes in its own order with --class-names",
        -1: "name the classes in its own order with --class-names, or give a smaller "
        "--class-offset",
    }
    for step, way_out in ways_out.items():
        right = evidence.predicted == truth + step
        yield evidence.cause("class offset", f"outputs lie {step:+d} from the classes", way_out,
                             right)  # fmt: skip


def _known_orders(evidence: Evidence) -> Iterator[Cause]:
    """Orders that class folders come in: as text (1, 10, 2), as numbers, without regard to case."""
    names = evidence.spec.classes or ()
    orders = {
        "sorted as text (1, 10, 2)": sorted(names),
        "sorted as numbers (1, 2, 10)": sorted(names, key=_natural),
        "sorted without regard to case": sorted(names, key=str.casefold),
    }
    for detail, order in orders.items():
        mapping = map_classes(evidence.folder_classes, order)
        if tuple(order) != tuple(names) and mapping is not None:
            right = evidence.predicted == mapping[evidence.target]
            yield evidence.cause("class order", f"its classes are {detail}", _NAME_THEM, right)


_NAME_THEM = "name its classes in their own order with --class-names"
_LEARNT = "another order, learnt from half of the images, fits the other half"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Key by which 2 comes before 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part)
            for part in re.split(r"(\d+)", name) if part]  # fmt: skip


def _learnt_order(evidence: Evidence) -> Iterator[Cause]:
    """Each half of the images says which output goes with which class; the other half tests it."""
    target, predicted = evidence.target, evidence.predicted
    half = _alternating(target)
    right = np.zeros(len(target), dtype=np.bool_)
    for learn, test in ((half, ~half), (~half, half)):
        pairs = _match(target[learn], predicted[learn])
        right[test] = [pairs.get(int(t)) == p for t, p in zip(target[test], predicted[test],
                                                              strict=True)]  # fmt: skip
    cause = evidence.cause("class order", _LEARNT, _NAME_THEM, right)
    if cause.top1 >= CLUSTERED:
        yield cause


def _alternating(target: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool [n]: every other image of each class."""
    seen: dict[int, int] = {}
    half = np.zeros(len(target), dtype=np.bool_)
    for row, name in enumerate(target.tolist()):
        seen[name] = seen.get(name, 0) + 1
        half[row] = seen[name] % 2 == 1
    return half


def _match(target: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> dict[int, int]:
    """Output of each class, the most frequent pairs first; no output goes with two classes."""
    pairs, counts = np.unique(np.stack([target, predicted], axis=1), axis=0, return_counts=True)
    matched: dict[int, int] = {}
    for row in np.argsort(-counts, kind="stable"):
        name, output = (int(value) for value in pairs[row])
        if name not in matched and output not in matched.values():
            matched[name] = output
    return matched
