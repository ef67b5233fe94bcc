"""Teachers by name: the grammar, where settings come from, and weights that don't fit."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from labelling import DESCRIPTION, NUM_CLASSES, SIZE, tiny_teacher, write_weights
from safetensors.torch import load_file, save_file

from labelgen.grammar import ALIASES, TeacherName, parse_teacher
from labelgen.teacher import load_teacher
from labelgen.teachers import resolve
from labelgen.weights import read_weights, tensor_digest
from storage.errors import TeacherError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r152", TeacherName(source="tv", name="resnet152", weights="IMAGENET1K_V2")),
        ("tv:resnet18", TeacherName(source="tv", name="resnet18")),
        ("tv:vit_b_16@X", TeacherName(source="tv", name="vit_b_16", weights="X")),
        ("timm:resnet18.a1_in1k", TeacherName(source="timm", name="resnet18.a1_in1k")),
        ("timm/resnet18.a1_in1k", TeacherName(source="timm", name="resnet18.a1_in1k")),
        ("file:a/b.safetensors", TeacherName(source="file", name="a/b.safetensors")),
        ("resnet20", TeacherName(source="", name="resnet20")),
    ],
)
def test_names_are_taken_apart(text: str, expected: TeacherName) -> None:
    assert parse_teacher(text) == expected


@pytest.mark.parametrize("text", ["", "tv:", "timm:", "hub:x"])
def test_names_without_meaning_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_teacher(text)


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_alias_stands_for_published_weights(alias: str) -> None:
    spec = resolve(alias)
    assert spec.canonical == ALIASES[alias]
    assert (spec.num_classes, len(spec.classes or ())) == (1000, 1000)


def test_r152_is_the_second_imagenet_weights_of_torchvision() -> None:
    spec = resolve("r152")
    assert spec.canonical == "tv:resnet152@IMAGENET1K_V2"
    assert (spec.name, spec.library, spec.input_size) == ("resnet152", "torchvision", 224)
    assert spec.mean == IMAGENET_MEAN
    assert spec.interpolation == "bilinear"
    assert spec.classes is not None
    assert (spec.classes[0], spec.classes[-1]) == ("n01440764", "n15075141")


def test_timm_names_are_completed_with_their_tag_and_data_config() -> None:
    spec = resolve("timm:resnet18")
    assert spec.canonical == "timm:resnet18.a1_in1k"
    assert (spec.input_size, spec.interpolation) == (224, "bicubic")
    assert spec.licence == "apache-2.0"
    assert spec.classes is not None
    assert spec.classes[0] == "n01440764"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet50", "tv:resnet50"),
        ("rs152", "r152"),
        ("tv:resnet51", "resnet50"),
        ("tv:resnet50@IMAGENET1K_V3", "IMAGENET1K_V2"),
        ("timm:resnot18", "resnet18"),
        ("timm:resnet18.a1", "resnet18.a1_in1k"),
    ],
)
def test_unknown_teachers_are_answered_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="unknown") as caught:
        resolve(name)
    assert nearest in str(caught.value)


def test_file_of_a_student_needs_no_other_word(tmp_path: Path) -> None:
    spec = resolve(f"file:{write_weights(tmp_path / 'w.safetensors')}")
    assert spec.canonical == "resnet8@file:w.safetensors"
    assert (spec.num_classes, spec.input_size) == (NUM_CLASSES, SIZE)
    assert spec.std == (0.2, 0.3, 0.25)
    assert spec.classes == tuple(f"class{i}" for i in range(NUM_CLASSES))
    assert resolve(str(tmp_path / "w.safetensors")).canonical == spec.canonical


def test_flags_stand_above_what_the_file_says(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors")
    names = [f"n{i}" for i in range(NUM_CLASSES)]
    spec = resolve(
        f"file:{path}", size=40, mean=(0.1, 0.2, 0.3), interpolation="bicubic", class_names=names
    )
    assert (spec.input_size, spec.mean, spec.interpolation) == (40, (0.1, 0.2, 0.3), "bicubic")
    assert spec.classes == tuple(names)
    with pytest.raises(UsageError, match="6 class names for a teacher of 7"):
        resolve(f"file:{path}", class_names=names[1:])


def bare_weights(folder: Path) -> Path:
    """Weights that say nothing of themselves."""
    tensors = load_file(write_weights(folder / "described.safetensors"))
    save_file(tensors, folder / "bare.safetensors")
    return folder / "bare.safetensors"


def test_number_of_classes_is_read_off_the_weights(tmp_path: Path) -> None:
    path = bare_weights(tmp_path)
    spec = resolve("resnet8", weights=path, size=16, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert spec.num_classes == NUM_CLASSES
    assert load_teacher(spec, device="cpu").model.fc.out_features == NUM_CLASSES


@pytest.mark.parametrize("missing", ["size", "mean", "std"])
def test_settings_nobody_knows_must_be_given(tmp_path: Path, missing: str) -> None:
    given = {"size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    del given[missing]
    with pytest.raises(UsageError, match=f"is unknown.*--{missing}"):
        resolve("resnet8", weights=bare_weights(tmp_path), **given)  # type: ignore[arg-type]


def test_file_without_architecture_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arch"):
        resolve(f"file:{bare_weights(tmp_path)}")


def test_architecture_without_weights_asks_for_them() -> None:
    with pytest.raises(UsageError, match=r"resnet20 has no published weights.*--weights"):
        resolve("resnet20")


def test_weights_of_another_architecture_name_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    path = bare_weights(tmp_path)
    given = {"size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    deeper = resolve("resnet14", weights=path, **given)  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match=r"resnet14: tensor 'layer1\.1\.conv1\.weight' \[16, 16"):
        load_teacher(deeper, device="cpu")
    tensors = load_file(path)
    tensors["conv1.weight"] = torch.zeros(16, 3, 5, 5)
    save_file(tensors, path)
    with pytest.raises(
        TeacherError,
        match=r"'conv1\.weight' is \[16, 3, 5, 5\] in the file, \[16, 3, 3, 3\] in the model",
    ):
        load_teacher(resolve("resnet8", weights=path, **given), device="cpu")  # type: ignore[arg-type]
    with pytest.raises(
        TeacherError, match=r"does not fit tv:mobilenet_v2.*'classifier\.1\.weight'"
    ):
        resolve("tv:mobilenet_v2", weights=path)


class _Surprise:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_pickles_with_code_are_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": _Surprise()}, path)
    with pytest.raises(TeacherError, match="holds more than tensors and is never run"):
        read_weights(path)
    path.write_bytes(pickle.dumps(_Surprise()))
    with pytest.raises(TeacherError, match=r"never run|not a readable"):
        read_weights(path)
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_weights_are_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(TeacherError, match=r"not a readable|never run"):
        read_weights(tmp_path / name)
    with pytest.raises(UsageError, match="no weights file"):
        read_weights(tmp_path / f"missing-{name}")


def test_digest_is_the_same_for_pth_and_safetensors_and_sees_every_bit(tmp_path: Path) -> None:
    tensors = load_file(write_weights(tmp_path / "w.safetensors"))
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "w.pth")
    digest = tensor_digest(tensors)
    assert tensor_digest(read_weights(tmp_path / "w.pth").tensors) == digest
    last = tensors["fc.bias"].view(torch.int32)
    last[-1] ^= 1
    assert tensor_digest(tensors) != digest


def test_digest_follows_its_definition() -> None:
    tensor = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b"w\0float32\0[1, 2]\0" + tensor.numpy().tobytes()).hexdigest()
    assert tensor_digest({"w": tensor, "bn.num_batches_tracked": torch.tensor(3)}) == expected


def test_teacher_is_frozen_in_eval_mode(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert teacher.digest == tensor_digest(load_file(tmp_path / "tiny.safetensors"))


def test_input_size_the_network_cannot_take_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    from trainer.models import create

    save_file(create("timm:vit_tiny_patch16_224", 3).state_dict(), path)
    with pytest.raises(TeacherError, match=r"can't take 64x64 pixels.*--size"):
        load_teacher(resolve("timm:vit_tiny_patch16_224", weights=path, size=64), device="cpu")


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cuda:99", "fp32", "CUDA devices"),
        ("tpu", "fp32", "expected auto, cpu"),
        ("cpu", "fp16", "needs a GPU"),
        ("cpu", "fp64", "expected one of fp32"),
    ],
)
def test_unusable_device_or_precision_is_refused(
    tmp_path: Path, device: str, precision: str, message: str
) -> None:
    spec = resolve(f"file:{write_weights(tmp_path / 'w.safetensors')}")
    with pytest.raises(UsageError, match=message):
        load_teacher(spec, device=device, precision=precision)


@pytest.mark.parametrize("name", ["tv:mobilenet_v2", "timm:resnet18.a1_in1k"])
def test_weights_that_cannot_be_fetched_are_one_line_with_the_way_out(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(TeacherError, match=r"can't be fetched.*no route to host\).*--weights"):
        load_teacher(name, device="cpu")


def test_description_in_a_file_is_checked(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", std=[0.2, 0.0, 0.2])
    with pytest.raises(UsageError, match="std"):
        resolve(f"file:{path}")
    path = write_weights(tmp_path / "v.safetensors", interpolation="lanczos")
    with pytest.raises(UsageError, match="--interpolation"):
        resolve(f"file:{path}")
    save_file({"a": torch.zeros(1)}, path, {"teachonce": "[]"})
    with pytest.raises(TeacherError, match="not a JSON object"):
        resolve(f"file:{path}")
    assert DESCRIPTION["arch"] == "resnet8"
