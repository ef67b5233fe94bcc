"""From pixels that are wrong to the mistakes that made them.

Every known mistake is made on purpose and compared with what the path gave. Those that give its
very bytes are named; where none does, one much nearer than the right pixels is named as likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

from labelgen.doctor import decoding
from labelgen.doctor.crops import CanaryCrop
from labelgen.doctor.recipes import Hypothesis, Recipe, hypotheses, is_joint, make
from storage.canaries import crop_digest
from storage.errors import BadImage
from storage.pixels import pixel_digest

Pixels = npt.NDArray[np.uint8]
Made = Pixels | str  # a crop, or why there is none

LIKELY = 0.25  # of the right pixels' distance
ROUNDING = 0.15  # levels on average by which other arithmetic of one filter differs
MOST_PAIRED = 2  # crops that pairs of mistakes are tried on


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause, for people and programs.

    cause: short name. path: where it was seen ("pillow", "torch", "ffcv", "images", ...).
    crops: how many crops or files it explains. likely: named by likeness, not by equal bytes.
    """

    cause: str
    path: str
    text: str
    way_out: str
    crops: int = 0
    likely: bool = False

    @property
    def line(self) -> str:
        """One line."""
        return f"{self.path}: {self.text}: {self.way_out} [{self.cause}]"


def diagnose(path: str, crops: Sequence[CanaryCrop], made: Sequence[Made]) -> list[Finding]:
    """The causes of all crops that a path made otherwise than their canaries; [] where none did.

    Args:
        made: what the path gave for each crop.
    """
    found = _refused(path, crops, made)
    pairs = [(crop, p) for crop, p in zip(crops, made, strict=True) if not isinstance(p, str)]
    sized = [(crop, p) for crop, p in pairs if p.shape == (crop.size, crop.size, 3)]
    if len(sized) < len(pairs):
        crop, pixels = next((c, p) for c, p in pairs if p.shape != (c.size, c.size, 3))
        found.append(Finding(
            cause="size", path=path, crops=len(pairs) - len(sized),
            text=f"{crop.name} has the shape {list(pixels.shape)}, not "
            f"{[crop.size, crop.size, 3]}",
            way_out="replay at the size that the canary was noted at, which is the teacher's",
        ))  # fmt: skip
    right = [crop_digest(pixels) == crop.pixels for crop, pixels in sized]
    wrong = [pair for pair, fine in zip(sized, right, strict=True) if not fine]
    sound = [pair for pair, fine in zip(sized, right, strict=True) if fine]
    own, foreign = _split(wrong)
    found += _explain(path, own, sound)
    return found + _explain_store(path, foreign)


def _refused(path: str, crops: Sequence[CanaryCrop], made: Sequence[Made]) -> list[Finding]:
    refused = [(c, why) for c, why in zip(crops, made, strict=True) if isinstance(why, str)]
    if not refused:
        return []
    crop, why = refused[0]
    return [Finding(
        cause="refused", path=path, text=f"{len(refused)} crops were refused, first {crop.name} "
        f"({why})", way_out="these decode where they were labelled: see to the decoder",
        crops=len(refused),
    )]  # fmt: skip


def _split(
    wrong: list[tuple[CanaryCrop, Pixels]],
) -> tuple[list[tuple[CanaryCrop, Pixels]], list[tuple[CanaryCrop, Pixels]]]:
    """Crops that the path made wrong, and those that it made as the contract says although their
    canary is another."""
    own: list[tuple[CanaryCrop, Pixels]] = []
    foreign: list[tuple[CanaryCrop, Pixels]] = []
    for crop, pixels in wrong:
        reference = _make(crop, Recipe())
        follows = reference is not None and np.array_equal(reference, pixels)
        (foreign if follows else own).append((crop, pixels))
    return own, foreign


def _explain(
    path: str, wrong: list[tuple[CanaryCrop, Pixels]], sound: list[tuple[CanaryCrop, Pixels]]
) -> list[Finding]:
    found: list[Finding] = []
    for _ in range(len(wrong)):  # as often as there may be different causes
        if not wrong:
            break
        best = _best(hypotheses(), wrong, sound) or _best_pair(wrong, sound)
        if best is None:
            found.append(_likely(path, wrong))
            break
        hypothesis, exact = best
        # the same mistake in other arithmetic moves a level here and there
        explained = [
            i
            for i, (crop, pixels) in enumerate(wrong)
            if i in exact or _is_near(crop, hypothesis.recipe, pixels)
        ]
        found.append(Finding(
            cause=hypothesis.cause, path=path, way_out=hypothesis.way_out, crops=len(explained),
            text=f"{hypothesis.what} ({len(explained)} crops, first {wrong[explained[0]][0].name})",
        ))  # fmt: skip
        wrong = [pair for i, pair in enumerate(wrong) if i not in set(explained)]
    return found


def _best(
    known: Sequence[Hypothesis],
    wrong: list[tuple[CanaryCrop, Pixels]],
    sound: list[tuple[CanaryCrop, Pixels]],
) -> tuple[Hypothesis, list[int]] | None:
    """The mistake that explains the most crops; of equal ones the one that spoils the fewest of
    those that are right."""
    gives = [[_gives(crop, each.recipe, pixels) for each in known] for crop, pixels in wrong]
    scored = []
    for number, explained in enumerate(zip(*gives, strict=True)):
        if any(explained):
            spoilt = sum(_spoils(crop, known[number].recipe, pixels) for crop, pixels in sound)
            scored.append((-sum(explained), spoilt, number))
    if not scored:
        return None
    _, _, number = min(scored)
    return known[number], [i for i, given in enumerate(gives) if given[number]]


def _best_pair(
    wrong: list[tuple[CanaryCrop, Pixels]], sound: list[tuple[CanaryCrop, Pixels]]
) -> tuple[Hypothesis, list[int]] | None:
    """Two mistakes at once, found on a few crops and tried on all."""
    both = [
        Hypothesis(
            cause=f"{one.cause}+{other.cause}", what=f"{one.what}, and {other.what}",
            way_out=f"{one.way_out}; {other.way_out}", changes={**one.changes, **other.changes},
        )
        for one, other in combinations(hypotheses(), 2)
        if is_joint(one, other)
    ]  # fmt: skip
    found = _best(both, wrong[:MOST_PAIRED], [])
    return None if found is None else _best([found[0]], wrong, sound)


def _likely(path: str, wrong: list[tuple[CanaryCrop, Pixels]]) -> Finding:
    """What the pixels are most like, where nothing gives their very bytes."""
    crop, pixels = wrong[0]
    right = _distance(_make(crop, Recipe()), pixels)
    distances = [(_mean_distance(each, wrong), i) for i, each in enumerate(hypotheses())]
    nearest, number = min(distances)
    base = float(np.mean([_distance(_make(c, Recipe()), p) for c, p in wrong]))
    if nearest <= LIKELY * base:
        hypothesis = hypotheses()[number]
        return Finding(
            cause=hypothesis.cause, path=path, way_out=hypothesis.way_out, crops=len(wrong),
            text=f"{hypothesis.what}, by all likeness ({len(wrong)} crops, {nearest:.2f} levels "
            f"away on average, the right pixels {base:.2f})", likely=True,
        )  # fmt: skip
    return Finding(
        cause="unknown",
        path=path,
        crops=len(wrong),
        text=f"{len(wrong)} crops are not those that were labelled, first {crop.name} "
        f"({right:.2f} levels away on average), and no known mistake explains it",
        way_out="compare the path with docs/pixels.md step by step",
    )


def _explain_store(path: str, foreign: list[tuple[CanaryCrop, Pixels]]) -> list[Finding]:
    """Where the path keeps the contract, the canary's own maker did not."""
    if not foreign:
        return []
    crop = foreign[0][0]
    makers = (
        hypothesis
        for hypothesis in hypotheses()
        if (made := _make(crop, hypothesis.recipe)) is not None and crop_digest(made) == crop.pixels
    )
    maker = next(makers, None)
    what = "otherwise than the contract says"
    if maker is not None:
        what = f"with another path than the contract's: there {maker.what}"
    return [Finding(
        cause="store" if maker is None else f"store-{maker.cause}", path=path,
        text=f"this machine keeps the pixel contract, but {len(foreign)} crops were labelled "
        f"{what}", way_out="label again with this release's `labelgen run`", crops=len(foreign),
    )]  # fmt: skip


def decoder_findings(crops: Sequence[CanaryCrop]) -> list[Finding]:
    """Whether this machine's Pillow decodes the images to the pixels that were labelled."""
    differing = []
    for crop in {crop.data: crop for crop in crops}.values():
        try:
            pixels = decoding.decode(crop.data)
        except BadImage:
            differing.append(crop)
            continue
        assert pixels is not None
        if pixel_digest(Image.fromarray(pixels)).hex() != crop.image:
            differing.append(crop)
    if not differing:
        return []
    return [Finding(
        cause="decoder", path="pillow", crops=len(differing),
        text=f"this machine's decoder gives other pixels for {len(differing)} images, first "
        f"{differing[0].name}",
        way_out="install pillow-simd built on libjpeg-turbo (scripts/setup.sh)",
    )]  # fmt: skip


def _make(crop: CanaryCrop, recipe: Recipe) -> Pixels | None:
    try:
        return make(crop, recipe)
    except BadImage:
        return None


def _gives(crop: CanaryCrop, recipe: Recipe, pixels: Pixels) -> bool:
    made = _make(crop, recipe)
    return made is not None and np.array_equal(made, pixels)


def _is_near(crop: CanaryCrop, recipe: Recipe, pixels: Pixels) -> bool:
    right = _distance(_make(crop, Recipe()), pixels)
    away = _distance(_make(crop, recipe), pixels)
    return away < right and away <= max(LIKELY * right, ROUNDING)


def _spoils(crop: CanaryCrop, recipe: Recipe, pixels: Pixels) -> bool:
    made = _make(crop, recipe)
    return made is not None and not np.array_equal(made, pixels)


def _mean_distance(hypothesis: Hypothesis, wrong: list[tuple[CanaryCrop, Pixels]]) -> float:
    return float(np.mean([_distance(_make(c, hypothesis.recipe), p) for c, p in wrong]))


def _distance(made: Pixels | None, pixels: Pixels) -> float:
    """Mean difference in levels; a crop that can't be made is as far as can be."""
    if made is None:
        return 255.0
    return float(np.abs(made.astype(np.int16) - pixels).mean())
