"""Ensembles: the mean of probabilities, members prepared each in its own way, refusals."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from labelling import NUM_CLASSES, SIZE, tiny_teacher, write_weights
from torch import nn

from labelgen.ensemble import MeanOfProbabilities, _Renormalise, join_specs
from labelgen.forward import Forward
from labelgen.grammar import parse_teacher
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import TeacherSpec, resolve
from storage.dictionary import default_codec
from storage.errors import UsageError
from storage.teacher_record import TeacherRecord

CLASSES = [f"class{i}" for i in range(NUM_CLASSES)]


def crops(count: int = 6, seed: int = 3) -> np.ndarray:
    """Random uint8 [count, SIZE, SIZE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def two_files(folder: Path, **second: object) -> tuple[Path, Path]:
    """Weights of two networks; the second described otherwise where asked."""
    one = write_weights(folder / "one.safetensors", seed=1)
    return one, write_weights(folder / "two.safetensors", seed=2, **second)


def pair(folder: Path, **second: object) -> Teacher:
    one, two = two_files(folder, **second)
    return load_teacher(f"ensemble:file:{one}+file:{two}", device="cpu")


def probabilities(teacher: Teacher, pixels: np.ndarray) -> np.ndarray:
    """Float64 softmax of one network's float32 logits, by the formula."""
    forward = Forward(teacher, 1)
    logits = forward.logits(forward.normalise(pixels)).numpy().astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]},
        {"channel_order": "bgr"},
        {"channel_order": "bgr", "mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]},
    ],
)
def test_an_ensemble_is_the_mean_of_probabilities_of_members_fed_alone(
    tmp_path: Path, second: dict[str, object]
) -> None:
    ensemble = pair(tmp_path, **second)
    pixels = crops()
    alone = [load_teacher(member.spec, device="cpu") for member in ensemble.members]
    expected = np.mean([probabilities(member, pixels) for member in alone], axis=0)
    forward = Forward(ensemble, 1)
    found = forward.log_probs(forward.normalise(pixels)).exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)


def test_members_prepared_alike_are_fed_the_same_bits(tmp_path: Path) -> None:
    ensemble = pair(tmp_path)
    forward = Forward(ensemble, 1)
    batch = forward.normalise(crops())
    alone = [torch.log_softmax(member.model(batch), dim=1) for member in ensemble.members]
    expected = torch.logsumexp(torch.stack(alone), dim=0) - math.log(2)
    assert torch.equal(ensemble.model(batch), expected)


def test_renormalising_follows_the_formula_in_float64(tmp_path: Path) -> None:
    ensemble = pair(tmp_path, mean=[0.9, 0.2, 0.3], std=[0.31, 0.2, 0.1], channel_order="bgr")
    first, other = (member.spec for member in ensemble.members)
    pixels = crops(2)
    x = Forward(ensemble, 1).normalise(pixels)
    scaled = pixels[..., ::-1].astype(np.float64) / 255
    expected = ((scaled - other.mean) / other.std).transpose(0, 3, 1, 2)
    found = _Renormalise(first, other)(x).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-6)


class Constant(nn.Module):
    """The same logits for every crop."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def test_improbable_classes_keep_finite_log_probabilities(tmp_path: Path) -> None:
    specs = [resolve(f"file:{path}") for path in two_files(tmp_path)]
    logits = [0.0, -200.0, -300.0, *[-150.0] * 4]  # e^-200 is 0 in float32
    model = MeanOfProbabilities([Constant(logits), Constant(logits)], specs)
    found = model(torch.zeros(1, 3, SIZE, SIZE))[0]
    assert torch.allclose(found, torch.tensor(logits), atol=1e-4)


def test_the_digest_is_of_the_members_digests_in_order(tmp_path: Path) -> None:
    one, two = two_files(tmp_path)
    forth = load_teacher(f"ensemble:file:{one}+file:{two}", device="cpu")
    back = load_teacher(f"ensemble:file:{two}+file:{one}", device="cpu")
    lines = "".join(f"{member.digest}\n" for member in forth.members)
    assert forth.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert back.digest != forth.digest
    assert forth.spec.canonical == (
        "ensemble:resnet8@file:one.safetensors+resnet8@file:two.safetensors"
    )
    assert back.spec.canonical.startswith("ensemble:resnet8@file:two")
    assert [member.spec.name for member in forth.members] == ["resnet8", "resnet8-2"]
    assert forth.spec.name == "resnet8+resnet8-2"


def test_one_network_has_no_members(tmp_path: Path) -> None:
    assert tiny_teacher(tmp_path).members == ()


def test_a_store_keeps_what_tells_the_members_apart(tmp_path: Path) -> None:
    teacher = pair(tmp_path, channel_order="bgr")
    record = teacher.record(codec=default_codec(NUM_CLASSES, 3, 1), batch_size=2)
    again = TeacherRecord.from_json(record.to_json(), {})
    assert again == record
    assert [m["digest"] for m in again.members] == [m.digest for m in teacher.members]
    assert [m["channel_order"] for m in again.members] == ["rgb", "bgr"]
    assert "members" not in tiny_teacher(tmp_path).record(
        codec=record.codec, batch_size=2
    ).to_json()  # fmt: skip


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"input_size": 24}, r"input size: .*one\.safetensors has 16, .*has 24; .*--size"),
        ({"interpolation": "bicubic"}, r"interpolation: .*has bilinear, .*has bicubic"),
        (
            {"classes": CLASSES[::-1]},
            r"class order \(its hash\): .*has [0-9a-f]{16}, .*has [0-9a-f]",
        ),
        ({"classes": None}, r"class order .*has no class names; name the classes"),
    ],
)
def test_members_that_do_not_go_together_are_refused_with_both_values(
    tmp_path: Path, second: dict[str, object], message: str
) -> None:
    one, two = two_files(tmp_path, **second)
    with pytest.raises(UsageError, match=message):
        resolve(f"ensemble:file:{one}+file:{two}")


def test_what_all_members_share_can_be_given_for_all(tmp_path: Path) -> None:
    one, two = two_files(tmp_path, input_size=24, interpolation="bicubic", classes=None)
    spec = resolve(
        f"ensemble:file:{one}+file:{two}", size=16, interpolation="bicubic", class_names=CLASSES
    )
    assert {(m.input_size, m.interpolation, m.classes) for m in spec.members} == {
        (16, "bicubic", tuple(CLASSES))
    }
    for setting in ({"mean": (0.0,) * 3}, {"weights": one}, {"class_offset": 1}):
        with pytest.raises(UsageError, match=r"belongs to one network, and .* is an ensemble"):
            resolve(f"ensemble:file:{one}+file:{two}", **setting)  # type: ignore[arg-type]


def test_members_of_different_libraries_are_both_named() -> None:
    spec = resolve("ensemble:r18+timm:resnet18.tv_in1k")
    assert spec.library == "torchvision+timm"
    assert spec.canonical == "ensemble:tv:resnet18@IMAGENET1K_V1+timm:resnet18.tv_in1k"
    assert spec.licence == "unknown; bsd-3-clause"


def test_a_long_name_becomes_a_short_one_that_can_name_a_folder(tmp_path: Path) -> None:
    spec = resolve(f"file:{write_weights(tmp_path / 'w.safetensors')}")
    members = [TeacherSpec(**{**vars(spec), "name": "n" * 60 + str(i)}) for i in range(3)]
    name = join_specs(members).name
    assert len(name) <= 100
    assert name == join_specs(members).name != join_specs(members[::-1]).name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ensemble:", "names nothing"),
        ("ensemble:r18", "two different teachers"),
        ("ensemble:r18+r18", "two different teachers"),
        ("ensemble:r18+tv:resnet18@IMAGENET1K_V1", "two different teachers"),
        ("ensemble:r18+", "names nothing"),
        ("ensemble:r18+ensemble:r50+r34", "holds an ensemble"),
    ],
)
def test_names_that_are_no_ensemble_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_teacher(text)
