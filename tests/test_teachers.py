"""Teachers by name: the grammar, where settings come from, and weights that don't fit."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from labelling import DESCRIPTION, NUM_CLASSES, SIZE, tiny_teacher, write_weights
from safetensors.torch import load_file, save_file

from labelgen.cli import main
from labelgen.forward import Forward
from labelgen.grammar import ALIASES, TeacherName, parse_teacher
from labelgen.teacher import load_teacher
from labelgen.teachers import count_parameters, resolve
from labelgen.weights import read_weights, tensor_digest
from storage.dictionary import default_codec
from storage.errors import TeacherError, UsageError
from storage.teacher_record import TeacherRecord

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
        ("a/b.safetensors", TeacherName(source="file", name="a/b.safetensors")),
        ("hf-hub:o/r.t", TeacherName(source="hf-hub", name="o/r.t")),
        ("hf-hub:o/r.t@v2", TeacherName(source="hf-hub", name="o/r.t", weights="v2")),
        ("local-dir:/a/b@c", TeacherName(source="local-dir", name="/a/b@c")),
        ("resnet20", TeacherName(source="", name="resnet20")),
    ],
)
def test_names_are_taken_apart(text: str, expected: TeacherName) -> None:
    assert parse_teacher(text) == expected


@pytest.mark.parametrize("text", ["", "tv:", "timm:", "hub:x", "hf-hub:", "local-dir:"])
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


@pytest.mark.parametrize(("told", "are"), [("resnet20", "resnet8"), ("r18", "resnet8")])
def test_the_architecture_that_weights_fit_whole_is_named(
    tmp_path: Path, told: str, are: str
) -> None:
    given = {"size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(TeacherError, match=f"they fit {are}: say so with --arch {are}") as caught:
        load_teacher(resolve(told, weights=bare_weights(tmp_path), **given), device="cpu")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_at_most_three_tensors_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    path = bare_weights(tmp_path)
    tensors = load_file(path)
    missing = sorted(name for name in tensors if name.startswith("layer2"))
    save_file({name: tensors[name] for name in tensors if name not in missing}, path)
    given = {"size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(TeacherError, match="is missing from the file") as caught:
        load_teacher(resolve("resnet8", weights=path, **given), device="cpu")  # type: ignore[arg-type]
    counted = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert str(caught.value).count("is missing") == 3
    assert f"(and {len(counted) - 3} more)" in str(caught.value)


def test_regnets_which_need_storage_to_be_built_can_be_measured(tmp_path: Path) -> None:
    from trainer.models import create

    save_file(create("tv:regnet_y_400mf", 5).state_dict(), tmp_path / "w.safetensors")
    spec = resolve("tv:regnet_y_400mf", weights=tmp_path / "w.safetensors")
    assert spec.num_classes == 5
    assert count_parameters(spec) == sum(
        p.numel() for p in create("tv:regnet_y_400mf", 5).parameters()
    )


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


WRAPPED = {
    "plain": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": torch.tensor(3)},
    "model": lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1}},
    "ddp": lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    "compiled": lambda tensors: {
        "model": {f"module._orig_mod.{name}": value for name, value in tensors.items()}
    },
}


@pytest.mark.parametrize("form", WRAPPED)
def test_digest_is_the_same_however_the_tensors_were_saved(tmp_path: Path, form: str) -> None:
    path = write_weights(tmp_path / "w.safetensors")
    tensors = load_file(path)
    torch.save(WRAPPED[form](tensors), tmp_path / "w.pth")
    given = {"size": 16, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    pth = load_teacher(resolve("resnet8", weights=tmp_path / "w.pth", **given), device="cpu")  # type: ignore[arg-type]
    assert pth.digest == load_teacher(f"file:{path}", device="cpu").digest == tensor_digest(tensors)


def test_prefixes_are_taken_off_safetensors_too_but_only_off_all_names(tmp_path: Path) -> None:
    tensors = load_file(write_weights(tmp_path / "w.safetensors"))
    prefixed = {f"module.{name}": value for name, value in tensors.items()}
    save_file(prefixed, tmp_path / "p.safetensors")
    assert sorted(read_weights(tmp_path / "p.safetensors").tensors) == sorted(tensors)
    save_file(prefixed | {"other": torch.zeros(1)}, tmp_path / "q.safetensors")
    assert sorted(read_weights(tmp_path / "q.safetensors").tensors) == sorted([*prefixed, "other"])


def test_a_checkpoint_without_tensors_says_where_they_are_looked_for(tmp_path: Path) -> None:
    torch.save({"weights": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(
        TeacherError, match=r"no state dict \(found weights, epoch\): save .*state_d"
    ):
        read_weights(tmp_path / "w.pth")


def test_digest_sees_every_bit(tmp_path: Path) -> None:
    tensors = load_file(write_weights(tmp_path / "w.safetensors"))
    digest = tensor_digest(tensors)
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


def test_bgr_is_bit_for_bit_the_same_as_feeding_blue_first(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors")
    rgb = load_teacher(f"file:{path}", device="cpu")
    bgr = load_teacher(resolve(f"file:{path}", channel_order="bgr"), device="cpu")
    pixels = np.random.default_rng(5).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    turned = np.ascontiguousarray(pixels[..., ::-1])
    expected, found = Forward(rgb, 1).normalise(turned), Forward(bgr, 1).normalise(pixels)
    assert torch.equal(found, expected)
    assert torch.equal(Forward(bgr, 1).logits(found), Forward(rgb, 1).logits(expected))
    assert not torch.equal(Forward(rgb, 1).normalise(pixels), expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_channel_order_and_offset_of_a_file_are_its_own(tmp_path: Path) -> None:
    path = write_weights(
        tmp_path / "w.safetensors", channel_order="bgr", class_offset=2, num_classes=5,
        classes=list("abcde"),
    )  # fmt: skip
    spec = resolve(f"file:{path}")
    assert (spec.channel_order, spec.class_offset, spec.num_classes) == ("bgr", 2, 5)
    assert resolve(f"file:{path}", channel_order="rgb").channel_order == "rgb"
    with pytest.raises(UsageError, match="expected rgb or bgr"):
        resolve(f"file:{path}", channel_order="grb")


def test_dropped_classes_are_the_first_and_the_digest_is_of_all(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", classes=None)
    whole = load_teacher(f"file:{path}", device="cpu")
    cut = load_teacher(resolve(f"file:{path}", class_offset=2), device="cpu")
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut.model(x), whole.model(x)[:, 2:])
    assert (cut.spec.num_classes, cut.digest) == (NUM_CLASSES - 2, whole.digest)
    record = cut.record(codec=default_codec(NUM_CLASSES - 2, 3, 1), batch_size=2)
    assert record.class_offset == TeacherRecord.from_json(record.to_json(), {}).class_offset == 2
    with pytest.raises(UsageError, match="class offset is 7 for a teacher of 7 outputs"):
        resolve(f"file:{path}", class_offset=7)


def test_the_background_class_of_1001_is_dropped_unless_told_otherwise(tmp_path: Path) -> None:
    from trainer.models import create

    path = tmp_path / "w.safetensors"
    save_file(create("tv:squeezenet1_1", 1001).state_dict(), path)  # its head is a convolution
    spec = resolve("tv:squeezenet1_1", weights=path, size=64)
    assert (spec.class_offset, spec.num_classes) == (1, 1000)
    assert spec.classes == resolve("r18").classes
    assert load_teacher(spec, device="cpu").model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    kept = resolve("tv:squeezenet1_1", weights=path, class_offset=0)
    assert (kept.class_offset, kept.num_classes, kept.classes) == (0, 1001, None)


def timm_folder(folder: Path, outputs: int = 5, **config: object) -> Path:
    """A timm model as timm saves it: config.json and model.safetensors."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = timm.create_model("test_resnet", num_classes=outputs)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {
        "input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
        "interpolation": "bilinear", "license": "mit", "classifier": "fc", "first_conv": "conv1",
    }  # fmt: skip
    described = {
        "architecture": "test_resnet", "num_classes": outputs,
        "pretrained_cfg": pretrained | config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def test_a_folder_of_timm_brings_its_data_config_and_tensors(tmp_path: Path) -> None:
    import timm

    folder = timm_folder(tmp_path / "saved", label_names=list("abcde"))
    teacher = load_teacher(f"local-dir:{folder}", device="cpu")
    spec = teacher.spec
    assert (spec.canonical, spec.name, spec.arch) == (
        "local-dir:saved",
        "saved",
        "timm:test_resnet",
    )
    assert (spec.input_size, spec.mean, spec.std) == (64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (spec.licence, spec.classes) == ("mit", tuple("abcde"))
    assert str(tmp_path) not in str(teacher.record(codec=default_codec(5, 3, 1), batch_size=1))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.model(x), theirs(x))


def test_a_folders_label_offset_is_dropped_as_timm_drops_it(tmp_path: Path) -> None:
    import timm

    folder = timm_folder(tmp_path / "saved", label_offset=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_classes": 4}))
    teacher = load_teacher(f"local-dir:{folder}", device="cpu")
    assert (teacher.spec.class_offset, teacher.spec.num_classes) == (1, 4)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.model(x), theirs(x))


def test_a_folder_without_safetensors_or_configuration_is_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "saved")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"has no model\.safetensors; .*pickled weights are never"):
        resolve(f"local-dir:{folder}")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["ResNet"]}')
    with pytest.raises(TeacherError, match="is not a timm model's configuration"):
        resolve(f"local-dir:{folder}")
    (folder / "config.json").write_text('{"architecture": "resnot18"}')
    with pytest.raises(UsageError, match=r"unknown timm network .*'resnot18'; nearest: resnet18"):
        resolve(f"local-dir:{folder}")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        resolve(f"local-dir:{tmp_path}")
    with pytest.raises(UsageError, match="brings its own weights"):
        resolve(f"local-dir:{folder}", weights=folder / "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository in the Hub's cache on this machine, and no network; its commit."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--lab--teacher.v1"
    timm_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return commit


@pytest.mark.parametrize("revision", ["", "@main", "@{commit}"])
def test_a_hub_repository_is_pinned_to_its_commit(hub: str, revision: str) -> None:
    spec = resolve("hf-hub:lab/teacher.v1" + revision.format(commit=hub))
    assert spec.canonical == f"hf-hub:lab/teacher.v1@{hub}"
    assert (spec.revision, spec.name, spec.num_classes) == (hub, "teacher.v1", 5)
    teacher = load_teacher(spec, device="cpu")
    record = teacher.record(codec=default_codec(5, 3, 1), batch_size=1)
    assert TeacherRecord.from_json(record.to_json(), {}).revision == hub


def test_a_hub_repository_that_cannot_be_had_is_one_line(hub: str) -> None:
    for name in ("lab/other", "lab/teacher.v1@v2", "not a name"):
        with pytest.raises(TeacherError, match="can't be fetched") as caught:
            resolve(f"hf-hub:{name}")
        assert "\n" not in str(caught.value)


def test_a_hub_repositorys_background_class_is_dropped_once(hub: str, tmp_path: Path) -> None:
    config = next(tmp_path.rglob("config.json"))
    described = json.loads(config.read_text())
    described["pretrained_cfg"]["label_offset"] = 1
    config.write_text(json.dumps(described | {"num_classes": 4}))
    teacher = load_teacher("hf-hub:lab/teacher.v1", device="cpu")
    assert (teacher.spec.class_offset, teacher.spec.num_classes) == (1, 4)
    assert teacher.digest == tensor_digest(load_file(config.parent / "model.safetensors"))


def test_settings_that_came_later_leave_older_stores_settings_as_they_were(tmp_path: Path) -> None:
    codec = default_codec(NUM_CLASSES, 3, 1)
    settings = tiny_teacher(tmp_path).record(codec=codec, batch_size=1).to_json()
    assert not {"channel_order", "class_offset", "revision", "members"} & set(settings)
    assert TeacherRecord.from_json(settings, {}).channel_order == "rgb"


def test_one_teacher_is_described_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["labelgen", "teachers", "r18", "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    described = json.loads(capsys.readouterr().out)
    assert described["teacher"] == "tv:resnet18@IMAGENET1K_V1"
    assert described["parameters"] == 11_689_512  # He et al.; torchvision's documentation
    assert (described["input_size"], described["classes"]) == (224, 1000)
    assert "until" in described["digest"]


def test_the_list_can_be_cut_to_names_that_hold_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["labelgen", "teachers", "mobilenet", "--json"])
    with pytest.raises(SystemExit):
        main()
    rows = {row["alias"]: row for row in json.loads(capsys.readouterr().out)["teachers"]}
    assert sorted(rows) == ["mnv2", "mnv3"]
    assert rows["mnv2"]["parameters"] == 3_504_872
    assert set(rows["mnv2"]) >= {"library", "weights", "input_size", "licence"}
    monkeypatch.setattr(sys, "argv", ["labelgen", "teachers", "mobilnet"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "unknown teacher 'mobilnet'" in capsys.readouterr().err


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
