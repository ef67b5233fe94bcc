"""Exports load in the other library and give the same logits."""

import json
import sys

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from storage.errors import TeachonceError, UsageError
from trainer import models
from trainer.checkpoint import load_student, save_student
from trainer.config import StudentConfig
from transfer import export as exporting
from transfer.cli import cli
from transfer.commands.export import TARGETS as OFFERED
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
    ("arch", "target"),
    [
        ("tv:mobilenet_v2", "torchvision"),
        ("timm:resnet10t", "timm"),
        ("tv:resnet18", "timm"),  # one network in both libraries
        ("timm:resnet18", "torchvision"),
        ("timm:resnet50d", "timm"),  # ScaleKD's students, as MobileNetV1
        ("timm:mobilenetv1_100", "timm"),
        ("resnet8", "hub"),
        ("timm:resnet10t", "hub"),
        ("resnet8", "pt2"),
    ],
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


def test_timm_reads_how_to_feed_the_student_and_takes_another_head(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "timm:resnet10t")
    export(checkpoint, "timm", tmp_path / "out")
    name = f"local-dir:{tmp_path / 'out'}"
    network = timm.create_model(name, pretrained=True)
    data = timm.data.resolve_model_data_config(network)
    assert (list(data["mean"]), list(data["std"])) == ([0.5] * 3, [0.25] * 3)
    assert (list(data["input_size"]), data["interpolation"]) == ([3, 64, 64], "bilinear")
    assert network.pretrained_cfg["label_names"] == [f"class{i}" for i in range(6)]
    other = timm.create_model(name, pretrained=True, num_classes=2)
    assert other.num_classes == 2
    assert torch.equal(other.layer1[0].conv1.weight, network.layer1[0].conv1.weight)


def test_a_hub_folder_has_a_card_and_weights_that_the_trainer_reads(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")
    report = export(checkpoint, "hub", tmp_path / "out")
    assert set(report.files) == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: teachonce\n")
    assert "6: class0, class1" in card
    student, config = load_student(tmp_path / "out" / "model.safetensors")
    assert config.classes[0] == "class0"
    assert largest_difference(student, load_student(checkpoint)[0], 64) == 0.0


def test_an_onnx_file_gives_the_logits_for_any_batch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")
    report = export(checkpoint, "onnx", tmp_path / "out")
    assert report.max_difference <= 1e-5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.files)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_student(checkpoint)[0].eval()(images)
    (found,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "out" / "student.json").read_text())["mean"] == [0.5] * 3


def test_onnx_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")
    with pytest.raises(UsageError, match=r"\[onnx\]"):
        export(checkpoint, "onnx", tmp_path / "out")


def test_a_network_that_torch_cannot_follow_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")

    def fail(student, size, path):
        path.write_bytes(b"part")
        raise ValueError("a loop\nwith details")

    monkeypatch.setattr(exporting, "write_pt2", fail)
    with pytest.raises(TeachonceError, match=r"can't write resnet8 as model.pt2 \(a loop\)"):
        export(checkpoint, "pt2", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_export_with_other_logits_is_an_error(tmp_path, monkeypatch):
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")

    def wrong(student, order):
        return exporting.Written(lambda images: student(images) + 1e-3, "made up", ())

    monkeypatch.setitem(exporting.TARGETS, "hub", wrong)
    with pytest.raises(TeachonceError, match="logits up to 1"):
        export(checkpoint, "hub", tmp_path / "out")


def test_a_network_without_the_layout_is_refused_before_anything_is_written(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")
    with pytest.raises(UsageError, match="resnet18, 34, 50, 101 and 152 only"):
        export(checkpoint, "detectron2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pixels_are_not_for_libraries_that_take_the_students(tmp_path):
    checkpoint = write_student(tmp_path / "student.safetensors", "resnet8")
    with pytest.raises(UsageError, match="--pixel-order"):
        export(checkpoint, "hub", tmp_path / "out", pixel_order="bgr")


def test_what_is_no_student_is_refused_in_one_line(tmp_path):
    path = write_student(tmp_path / "student.safetensors", "resnet8")
    tensors = load_file(path)
    header = {"arch": "resnet8", "num_classes": 9, "input_size": 64, "mean": [0.5] * 3,
              "std": [0.25] * 3, "interpolation": "bilinear", "classes": None}  # fmt: skip
    for metadata, expected in (
        ({}, "does not say which network"),
        ({"teachonce": "[]"}, "does not describe a student"),
        ({"teachonce": json.dumps(header)}, "resnet8 with 9 classes, .*size mismatch for fc"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(UsageError, match=expected):
            export(path, "hub", tmp_path / "out")
    path.write_bytes(b"no safetensors")
    with pytest.raises(UsageError, match="can't be read"):
        export(path, "hub", tmp_path / "out")


def test_the_command_offers_every_target():
    assert set(OFFERED) == set(exporting.TARGETS)
