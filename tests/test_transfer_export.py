"""Exports load in the other library and give the same logits."""

import pytest
import torch
from click.testing import CliRunner

from storage.errors import UsageError
from trainer import models
from trainer.checkpoint import load_student, save_student
from trainer.config import StudentConfig
from transfer.cli import cli
from transfer.export import export, largest_difference


def write_student(path, arch, num_classes=6):
    torch.manual_seed(0)
    config = StudentConfig(
        arch=arch,
        num_classes=num_classes,
        input_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        classes=tuple(f"class{i}" for i in range(num_classes)),
    )
    save_student(path, models.create(arch, num_classes), config, {"method": "test"})
    return path


@pytest.mark.parametrize(
    ("arch", "target"), [("tv:mobilenet_v2", "torchvision"), ("timm:resnet10t", "timm")]
)
def test_an_export_loads_there_with_equal_logits(tmp_path, arch, target):
    checkpoint = write_student(tmp_path / "student.safetensors", arch)
    report = export(checkpoint, target, tmp_path / "out")
    assert report.max_difference == 0.0


def test_the_parity_check_sees_a_changed_weight(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "timm:resnet10t")
    student, _ = load_student(checkpoint)
    other, _ = load_student(checkpoint)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    assert largest_difference(student, other, 64) > 1e-3


def test_a_student_of_another_library_is_refused_with_the_way_out(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "timm:resnet10t")
    with pytest.raises(UsageError, match="use --to timm"):
        export(checkpoint, "torchvision", tmp_path / "out")


def test_nothing_is_overwritten_unasked(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "timm:resnet10t")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        export(checkpoint, "timm", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_command_prints_the_difference(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "tv:mobilenet_v2")
    result = CliRunner().invoke(
        cli, ["export", str(checkpoint), "--to", "torchvision", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "largest logit difference 0.0e+00" in result.output
