"""The check before a long run: every cause is named, and nothing is named without one.

Images of class k have the red level (k + 0.5) / K in all but their top left quarter, which is as
random as their green and blue. The teacher reads that level from one corner of what it is fed, so
that a wrong normalisation, channel order, class order, offset or input size leaves it guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from labelgen.run import generate
from labelgen.teacher import Teacher, wrap_model
from labelgen.teacher_check import (
    FEWEST_IMAGES,
    check_teacher,
    near_chance_limit,
    refuse,
)
from labelgen.teachers import TeacherSpec
from storage.errors import TeacherError
from storage.images import ImageFolder, scan_folder

NAMES = tuple("abcdefgh")
SIZE = 32
PLAIN = ((0.0,) * 3, (1.0,) * 3)
STRANGE = {"mean": (2.0,) * 3, "std": (1.0,) * 3}
SEEDS = range(4)


def write_levels(
    root: Path, names: Sequence[str] = NAMES, images: int = 128, seed: int = 0
) -> Path:
    """Losslessly coded images of the classes, the same number of each."""
    rng = np.random.default_rng([41, seed])
    for row in range(images):
        k = row % len(names)
        pixels = np.full((12, 12, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        pixels[..., 0] = round(255 * (k + 0.5) / len(names))
        pixels[:6, :6] = rng.integers(0, 256, 3)
        path = root / names[k] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


class LevelReader(nn.Module):
    """Logits [B, K] by the level of its first channel; `normalisation` is what it was made for."""

    def __init__(
        self, order: Sequence[int], normalisation: Any = PLAIN, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.outputs = outputs or len(order)
        self.order, (self.mean, self.std) = list(order), normalisation
        self.centres = (torch.arange(len(order)) + 0.5) / len(order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x[:, 0, SIZE - 8 : SIZE, SIZE - 8 : SIZE].mean(dim=(1, 2))
        level = (level * self.std[0] + self.mean[0]).clamp(0, 1)
        logits = torch.full((len(x), self.outputs), -1e3)
        logits[:, self.order] = -1e3 * (level[:, None] - self.centres) ** 2
        return logits


def teacher_of(model: nn.Module, names: Sequence[str] = NAMES, **changes: Any) -> Teacher:
    """A loaded teacher around a model, told what `changes` say."""
    settings: dict[str, Any] = {
        "name": "levels", "canonical": "levels", "library": "test", "version": "1",
        "arch": "levels", "weights": None, "file": None, "licence": "unknown",
        "input_size": SIZE, "mean": PLAIN[0], "std": PLAIN[1], "interpolation": "bilinear",
        "num_classes": len(names), "classes": tuple(names),
    }  # fmt: skip
    spec = TeacherSpec(**{**settings, **changes})
    return wrap_model(model, spec, torch.device("cpu"), "fp32", "0" * 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFolder]:
    root = tmp_path_factory.mktemp("levels")
    return [scan_folder(write_levels(root / str(seed), seed=seed)) for seed in SEEDS]


def assert_named(teacher: Teacher, folder: ImageFolder, kind: str, detail: str, way: str) -> None:
    """The teacher is refused, and one line names this cause."""
    for seed in SEEDS:
        check = check_teacher(teacher, folder, seed=seed)
        assert check.near_chance
        assert check.cause is not None
        assert check.cause.kind == kind
        assert detail in check.cause.detail
        assert check.cause.top1 > 0.9
    with pytest.raises(TeacherError) as caught:
        refuse(check, teacher)
    message = str(caught.value)
    assert "\n" not in message
    assert way in message
    assert f"likely {kind}" in message
    assert "--no-teacher-check" in message


def test_a_teacher_that_knows_the_classes_raises_no_alarm(folders: list[ImageFolder]) -> None:
    teacher = teacher_of(LevelReader(range(8)))
    for seed in SEEDS:
        check = check_teacher(teacher, folders[seed], seed=seed)
        refuse(check, teacher)
        assert (check.top1, check.images, check.chance) == (1.0, 128, 1 / 8)
        assert check.cause is check.warning is None
        assert check.tried == ()


@pytest.mark.parametrize(
    ("detail", "normalisation"),
    [
        ("0..1", PLAIN),
        ("-1..1", ((0.5,) * 3, (0.5,) * 3)),
        ("0..255", ((0.0,) * 3, (1 / 255,) * 3)),
        ("ImageNet's", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ],
)
def test_a_wrong_normalisation_is_named(
    folders: list[ImageFolder], detail: str, normalisation: Any
) -> None:
    teacher = teacher_of(LevelReader(range(8), normalisation), **STRANGE)
    mean, std = (f"{value[0]:.6g}" for value in normalisation)
    assert_named(teacher, folders[0], "normalisation", detail, f"--mean {mean} ")
    assert check_teacher(teacher_of(LevelReader(range(8), normalisation),
                                    mean=normalisation[0], std=normalisation[1]),
                         folders[0]).top1 == 1.0  # fmt: skip
    assert f"--std {std} " in check_teacher(teacher, folders[0]).cause.way_out  # type: ignore[union-attr]


def test_pixels_of_caffe_are_named_with_both_their_peculiarities(
    folders: list[ImageFolder],
) -> None:
    class Blue(LevelReader):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flip(1))

    normalisation = tuple(v / 255 for v in (123.68,) * 3), (1 / 255,) * 3
    teacher = teacher_of(Blue(range(8), normalisation), **STRANGE)
    assert_named(teacher, folders[0], "normalisation", "in the order BGR", "--channel-order bgr")


@pytest.mark.parametrize("told", ["bgr", "rgb"])
def test_swapped_channels_are_named(folders: list[ImageFolder], told: str) -> None:
    class Blue(LevelReader):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flip(1))

    model = Blue(range(8)) if told == "rgb" else LevelReader(range(8))
    right = {"rgb": "bgr", "bgr": "rgb"}[told]
    teacher = teacher_of(model, channel_order=told)
    assert_named(teacher, folders[0], "channel order", right, f"give --channel-order {right}")


def test_classes_sorted_as_text_in_place_of_numbers_are_named(tmp_path: Path) -> None:
    numbers = [str(i) for i in range(1, 13)]
    folder = scan_folder(write_levels(tmp_path / "n", numbers, images=192))
    by_number = LevelReader(range(12))
    teacher = teacher_of(by_number, sorted(numbers))
    assert_named(teacher, folder, "class order", "sorted as numbers", "--class-names")
    by_text = LevelReader([sorted(numbers).index(name) for name in numbers])
    teacher = teacher_of(by_text, numbers)
    assert_named(teacher, folder, "class order", "sorted as text", "--class-names")


def test_any_other_class_order_is_learnt_from_half_of_the_images(
    folders: list[ImageFolder],
) -> None:
    teacher = teacher_of(LevelReader([3, 6, 1, 0, 7, 2, 5, 4]))
    assert_named(teacher, folders[0], "class order", "learnt from half", "--class-names")


@pytest.mark.parametrize("step", [1, -1])
def test_outputs_shifted_by_one_are_named(folders: list[ImageFolder], step: int) -> None:
    order = [(k + step) % 9 for k in range(8)]
    names = ("x", *NAMES) if step == -1 else (*NAMES, "x")
    if step == -1:
        order = list(range(8))
    teacher = teacher_of(LevelReader(order, outputs=9), names)
    assert_named(teacher, folders[0], "class offset", f"{step:+d}", "--class-offset")


def test_a_wrong_input_size_is_named(folders: list[ImageFolder]) -> None:
    teacher = teacher_of(LevelReader(range(8)), input_size=128)
    assert_named(teacher, folders[0], "input size", "32 pixels", "give --size 32")


class Guesser(nn.Module):
    """Classes that have nothing to do with the image but through its noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x.double().mean(dim=(1, 2, 3))[:, None] * 1e6 * torch.arange(1, 9)).float()


def test_a_guessing_teacher_is_refused_without_a_cause(folders: list[ImageFolder]) -> None:
    teacher = teacher_of(Guesser())
    for folder in folders:
        check = check_teacher(teacher, folder)
        assert check.near_chance
        assert check.cause is None
        assert len(check.tried) > 10
        with pytest.raises(TeacherError, match="no cause found among normalisation, channel"):
            refuse(check, teacher)


class Careless(LevelReader):
    """Right for about two images in five, and a guess elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chance = x.double().mean(dim=(1, 2, 3)) * 1e5 % 1
        return torch.where((chance < 0.4)[:, None], super().forward(x), Guesser()(x))


def test_a_poor_teacher_above_chance_is_neither_refused_nor_warned_of(
    folders: list[ImageFolder],
) -> None:
    teacher = teacher_of(Careless(range(8)))
    for folder in folders:
        check = check_teacher(teacher, folder)
        assert check.top1 is not None
        assert 0.3 < check.top1 < 0.6
        assert not check.near_chance
        assert check.warning is None


def test_a_teacher_above_chance_that_would_be_better_otherwise_is_warned_of(
    folders: list[ImageFolder],
) -> None:
    teacher = teacher_of(LevelReader(range(8)), mean=(0.0,) * 3, std=(1.35,) * 3)
    check = check_teacher(teacher, folders[0])
    refuse(check, teacher)
    assert check.warning is not None
    assert "normalisation: with 0..1 it is 100.0 %" in check.warning


def test_a_single_output_is_no_order_of_classes(folders: list[ImageFolder]) -> None:
    teacher = teacher_of(LevelReader(range(8)), mean=(9.0,) * 3, std=(1e-3,) * 3)  # always class 0
    causes = check_teacher(teacher, folders[0]).tried
    assert not any(cause.explains for cause in causes if cause.kind.startswith("class"))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("p", *NAMES[1:]), "the folder's classes are not the teacher's by name"),
        (None, "the teacher's class names are unknown"),
    ],
)
def test_a_teacher_of_other_classes_is_not_checked_and_that_is_said(
    folders: list[ImageFolder], names: tuple[str, ...] | None, reason: str
) -> None:
    teacher = teacher_of(Guesser(), classes=names)
    check = check_teacher(teacher, folders[0])
    refuse(check, teacher)
    assert check.top1 is None
    assert reason in check.text()
    assert reason in check.to_json()["skipped"]


def test_few_images_cannot_refuse_a_teacher(tmp_path: Path) -> None:
    folder = scan_folder(write_levels(tmp_path / "few", images=FEWEST_IMAGES - 1))
    teacher = teacher_of(Guesser())
    check = check_teacher(teacher, folder)
    refuse(check, teacher)
    assert check.images == FEWEST_IMAGES - 1


def test_images_are_drawn_evenly_by_the_seed_and_bad_ones_left_out(tmp_path: Path) -> None:
    root = write_levels(tmp_path / "images", images=80)
    for row in (0, 8, 16):
        (root / "a" / f"{row}.png").write_bytes(b"x")
    folder = scan_folder(root)
    teacher = teacher_of(LevelReader(range(8)))
    assert check_teacher(teacher, folder).images == 77
    assert 13 <= check_teacher(teacher, folder, images=16).images <= 16


def test_the_limit_is_a_tenth_of_the_way_or_three_deviations() -> None:
    assert near_chance_limit(0.001, 256) == pytest.approx(0.001 + 0.0999)
    assert near_chance_limit(0.5, 64) == pytest.approx(0.5 + 3 * (0.25 / 64) ** 0.5)


def test_a_run_with_a_guessing_teacher_stops_before_it_writes(
    tmp_path: Path, folders: list[ImageFolder]
) -> None:
    store, teacher = tmp_path / "store.zarr", teacher_of(Guesser())
    with pytest.raises(TeacherError, match="near chance"):
        generate(teacher, folders[0].root, store, crops=1, workers=1)
    assert not store.exists()
    result = generate(
        teacher, folders[0].root, store, crops=1, workers=1, teacher_check=False
    )  # fmt: skip
    assert result.teacher_check.skipped == "not asked for"
    with pytest.raises(TeacherError, match="near chance"):  # and what exists is left alone
        generate(teacher, folders[0].root, store, crops=1, workers=1, overwrite=True)
    assert store.exists()
    result = generate(teacher, folders[0].root, store, crops=1, workers=1)
    assert "when the store was begun" in (result.teacher_check.skipped or "")


def test_a_run_reports_what_the_check_measured(tmp_path: Path, folders: list[ImageFolder]) -> None:
    teacher = teacher_of(LevelReader(range(8)))
    result = generate(teacher, folders[0].root, tmp_path / "s", crops=1, workers=1)
    assert result.teacher_check.to_json() == {"top1": 1.0, "images": 128, "chance": 0.125}
    assert '"teacher_check"' in (tmp_path / "s" / "local.json").read_text()
