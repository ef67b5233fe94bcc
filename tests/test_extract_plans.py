"""Plans of targets: what is asked for, fitted, coded, and read back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelgen.basis import CropSample
from labelgen.extract import extractor_for
from labelgen.extract.vectors import encode_tensors
from labelgen.target_options import (
    DENSE_ENCODINGS,
    FULL_RANK,
    SPACES,
    TargetOptions,
    default_token_rank,
    options_from_cli,
    target_options,
)
from labelgen.target_plans import TargetPlan
from labelgen.target_specs import plan_targets
from labelgen.target_text import describe
from labelgen.teacher import Teacher
from storage.errors import TeacherError, UsageError
from storage.images import scan_folder
from storage.targets import dense, features, heads, kinds, tokens
from storage.targets.record import ENCODINGS, VectorPart
from storage.targets.vectors import decode_vectors, encode_vectors
from storage.views import RandomResizedCrop
from tests.extraction import CLASSES, as_teacher, crops, seeded, tiny_timm_resnet
from tests.labelling import jpeg_bytes
from trainer.models import create
from trainer.models.tails import load_tail


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1), encoding=st.sampled_from(ENCODINGS),
    exponent=st.integers(-140, 120), width=st.integers(1, 9), special=st.integers(0, 3),
)  # fmt: skip
def test_the_devices_codes_are_those_of_storage_bit_for_bit(
    seed: int, encoding: str, exponent: int, width: int, special: int
) -> None:
    rng = np.random.default_rng(seed)
    if encoding == "fp16":
        exponent = min(exponent, 12)
    values = np.ldexp(rng.normal(size=(4, 3, width)), exponent).astype(np.float32)
    values[0] = 0.0
    if special == 1:
        values[1] = values[1, 0, 0]
    if special == 2:  # halves: ties of the rounding
        values[2] = np.float32(2.0) ** exponent * rng.integers(-8, 9, (3, width)) / 2
    if special == 3:
        values[3, :, 0] = 1.0
    if encoding == "uint16":
        values = rng.integers(0, 65_535, values.shape).astype(np.float32)
    part = VectorPart(name="value", shape=(3, width), encoding=encoding)
    expected = encode_vectors(part, values)
    found = {k: v.numpy() for k, v in encode_tensors(part, torch.from_numpy(values)).items()}
    assert found.keys() == expected.keys() == part.arrays().keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert (found[name] + 0 == array + 0).all()
        if name != "value_offset":  # the least of 0.0 and -0.0 may be either
            assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("encoding", "value"),
    [("fp16", 65_520.0), ("int8", 2.0**127), ("affine8", -(2.0**127)), ("fp32", float("nan")),
     ("int8", float("inf"))],
)  # fmt: skip
def test_values_that_an_encoding_cannot_hold_are_refused_by_both(
    encoding: str, value: float
) -> None:
    part = VectorPart(name="value", shape=(2,), encoding=encoding)
    values = np.array([[0.0, value]], np.float32)
    with pytest.raises(UsageError, match="value has"):
        encode_vectors(part, values)
    with pytest.raises(UsageError, match="value has a value of size"):
        encode_tensors(part, torch.from_numpy(values))
    with pytest.raises(UsageError, match=r"expected float32 \[..., 2\]"):
        encode_tensors(part, torch.zeros(1, 3))


@pytest.mark.parametrize("value", [0.5, -1.0, 65_535.0, float("nan"), float("inf")])
def test_what_is_no_whole_number_below_65535_is_refused_by_both(value: float) -> None:
    part = VectorPart(name="value", shape=(2,), encoding="uint16")
    values = np.array([[65_534.0, value]], np.float32)
    for encode, given_values in ((encode_vectors, values), (encode_tensors, torch.tensor(values))):
        with pytest.raises(UsageError, match="value has values"):
            encode(part, given_values)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return as_teacher(seeded(lambda: create("resnet8", CLASSES)), "resnet8", 32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for i in range(6):
        pixels = rng.integers(0, 255, (40, 50 + i, 3), dtype=np.uint8)
        (folder / f"{i}.jpg").write_bytes(jpeg_bytes(pixels))
    return folder


def planned(teacher: Teacher, photos: Path, num_views: int = 12, **options: object) -> TargetPlan:
    sample = CropSample(
        folder=scan_folder(photos), sampler=RandomResizedCrop(), seed=0, num_views=num_views,
        batch_size=16, workers=1,
    )  # fmt: skip
    wanted = TargetOptions(**options)  # type: ignore[arg-type]
    (plan,) = plan_targets(teacher, wanted, sample, num_views)
    kinds.check_target(plan.record)
    for name, constant in plan.record.constants.items():
        assert constant.holds(np.asarray(plan.constants[name]))
    return plan


def looked_at(plan: TargetPlan, teacher: Teacher, batch: Tensor) -> dict[str, Tensor]:
    return extractor_for(teacher, plan.outputs_needed)(batch)


def read_back(plan: TargetPlan, outputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Decoded parts and constants, after a look that storage codes the same vectors so."""
    arrays = plan.encode(outputs)
    assert arrays.keys() == plan.record.arrays().keys()
    values = {}
    for part in plan.record.parts:
        expected = encode_vectors(part, plan.vectors(outputs)[part.name].numpy())
        for name, array in expected.items():
            assert arrays[name].dtype == array.dtype
            assert arrays[name].tobytes() == array.tobytes()
        values[part.name] = decode_vectors(part, arrays)
    return values | {name: np.asarray(array) for name, array in plan.constants.items()}


def test_features_are_projected_by_the_stored_basis(teacher: Teacher, photos: Path) -> None:
    plan = planned(teacher, photos, features="", feature_rank=24)
    assert (plan.record.path, plan.record.teacher) == ("features/made", "made")
    assert plan.record.parts == (VectorPart(name="value", shape=(24,), encoding="fp16"),)
    batch = crops(5, 32)
    outputs = looked_at(plan, teacher, batch)
    values = read_back(plan, outputs)
    exact = outputs["feature"].double().numpy() - values["mean"]
    z = exact @ values["basis"].astype(np.float64)
    np.testing.assert_allclose(plan.vectors(outputs)["value"], z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        features.decode_features(plan.record, values), z, rtol=1e-3, atol=1e-4
    )
    found = features.feature_settings(plan.record)
    # 128 crops are two for each of 64 dimensions: 6 images of at most 12 views
    assert (found.basis_images, found.basis_views, found.basis_seed) == (6, 12, 0)
    assert found.layer == "mean before layer3.0.relu (ReLU)" and 0.5 < found.energy <= 1
    assert "24 components" in describe(plan.record) and "72 crops" in describe(plan.record)


def test_y_is_storages_power_scaling_of_z_and_can_be_retargeted(
    teacher: Teacher, photos: Path
) -> None:
    asked = {"features": "kdep", "feature_rank": 24, "power_temperature": 0.2, "power": 2.0}
    plan = planned(teacher, photos, feature_space="y", **asked)
    plain = planned(teacher, photos, **asked)
    assert plan.record.path == "features/kdep"
    assert plan.record.parts[0].encoding == "int8"
    outputs = looked_at(plan, teacher, crops(5, 32))
    z = plain.vectors(outputs)["value"].numpy()
    y = plan.vectors(outputs)["value"].numpy()
    np.testing.assert_allclose(y, features.power_scale(z, 0.2, 2.0), rtol=1e-6, atol=1e-7)
    stored = features.decode_features(plan.record, read_back(plan, outputs))
    bound = np.abs(y).max(axis=-1, keepdims=True) / 127
    assert (np.abs(stored - y) <= 0.5001 * bound).all()


def test_a_record_constants_and_files_are_all_that_resuming_needs(
    teacher: Teacher, photos: Path
) -> None:
    first = planned(teacher, photos, features="", feature_rank=8)
    again = TargetPlan(first.record, first.constants, first.files)
    outputs = looked_at(first, teacher, crops(3, 32))
    for name, array in first.encode(outputs).items():
        assert array.tobytes() == again.encode(outputs)[name].tobytes()


@pytest.mark.parametrize(
    ("encoding", "bound"),
    [("pooled-int8", 0.02), ("pooled-fp16", 1e-3), ("pooled-fp32", 1e-5), ("dense-int8", 0.02),
     ("dense-fp32", 1e-6)],
)  # fmt: skip
def test_head_logits_of_every_rotation_come_back(
    teacher: Teacher, photos: Path, encoding: str, bound: float
) -> None:
    plan = planned(teacher, photos, heads="", head_encoding=encoding)
    batch = crops(4, 32)
    values = read_back(plan, looked_at(plan, teacher, batch))
    logits = heads.head_logits(plan.record, values, "class")
    assert logits.shape == (4, 4, CLASSES)
    for r in range(4):
        turned = torch.from_numpy(np.rot90(batch.numpy(), r, axes=(2, 3)).copy())
        with torch.inference_mode():
            expected = teacher.model(turned).numpy()
        spread = expected.max() - expected.min()
        assert np.abs(logits[:, r] - expected).max() < bound * spread


def test_auto_keeps_whichever_of_input_and_logits_is_smaller(photos: Path) -> None:
    narrow = as_teacher(create("resnet8", 100), "resnet8", 32, classes=100)  # 64 + 4 < 100 + 8
    wide = as_teacher(create("resnet8", 20), "resnet8", 32, classes=20)  # 64 + 4 > 20 + 8
    for teacher, kept in ((narrow, "pooled"), (wide, "dense")):
        plan = planned(teacher, photos, heads="", rotations=1)
        (head,) = heads.head_settings(plan.record).heads
        assert head.encoding == kept
        explicit = [
            planned(teacher, photos, heads="", rotations=1, head_encoding=e).record.view_bytes
            for e in ("pooled-int8", "dense-int8")
        ]
        assert plan.record.view_bytes == min(explicit)
        assert set(plan.constants) == (
            {"class_weight", "class_bias"} if kept == "pooled" else set()
        )


def test_dense_logits_need_nothing_but_the_logits(teacher: Teacher, photos: Path) -> None:
    plan = planned(teacher, photos, dense="all", dense_encoding="fp32")
    assert plan.outputs_needed == ("logits",) and not plan.constants
    batch = crops(3, 32)
    outputs = looked_at(plan, teacher, batch)
    found = dense.dense_logits(plan.record, read_back(plan, outputs))
    with torch.inference_mode():
        assert np.array_equal(found, teacher.model(batch).numpy())


def test_tokens_come_back_with_a_tail_that_fits_them(teacher: Teacher, photos: Path) -> None:
    plan = planned(teacher, photos, tokens="", token_rank=FULL_RANK)
    outputs = looked_at(plan, teacher, crops(3, 32))
    values = read_back(plan, outputs)
    exact = outputs["tokens"].numpy()
    found = tokens.decode_tokens(plan.record, values)
    assert found.shape == exact.shape == (3, 64, 64)
    step = np.abs(exact - exact.mean(axis=1, keepdims=True)).max() / 127
    assert np.abs(found - exact).max() <= 0.51 * step + 1e-3 * np.abs(exact).max()
    split = tokens.split_tokens(exact)
    np.testing.assert_allclose(plan.vectors(outputs)["mean"], split["mean"], atol=1e-6)
    np.testing.assert_allclose(plan.vectors(outputs)["remainder"], split["remainder"], atol=1e-5)
    described = tokens.token_settings(plan.record)
    assert described.logits == tokens.AFFINE and described.tail_settings is not None
    data = plan.files["tail.safetensors"]
    assert plan.record.files == {"tail.safetensors": hashlib.sha256(data).hexdigest()}
    assert load_tail(described.tail_settings, data).settings.teacher == teacher.digest


def test_projected_tokens_lose_what_their_spectrum_says(teacher: Teacher, photos: Path) -> None:
    plan = planned(teacher, photos, tokens="", token_rank=40, tail=False)
    assert not plan.files and plan.record.part("remainder").shape == (64, 40)
    described = tokens.token_settings(plan.record)
    assert described.basis_images == 6 and described.tail_settings is None
    outputs = looked_at(plan, teacher, crops(4, 32))
    values = {name: v.numpy() for name, v in plan.vectors(outputs).items()}
    back = tokens.decode_tokens(plan.record, values, np.asarray(plan.constants["basis"]))
    exact = outputs["tokens"].numpy()
    rest = exact - exact.mean(axis=1, keepdims=True)
    kept = 1 - ((back - exact) ** 2).sum() / (rest**2).sum()
    assert abs(kept - described.energy) < 0.1 and described.energy < 1


def test_each_kind_has_its_own_views_and_no_more_than_there_are(
    teacher: Teacher, photos: Path
) -> None:
    assert planned(teacher, photos, dense="").views == 8
    assert planned(teacher, photos, num_views=3, dense="").views == 3
    assert planned(teacher, photos, dense="", dense_views=11).views == 11
    with pytest.raises(UsageError, match="--dense-views is 13, but an image has 12 views"):
        planned(teacher, photos, dense="", dense_views=13)
    with pytest.raises(UsageError, match="--feature-views is 13"):
        planned(teacher, photos, features="", feature_views=13)


def test_ranks_default_to_the_width_and_larger_ones_are_refused(
    teacher: Teacher, photos: Path
) -> None:
    assert planned(teacher, photos, features="").record.parts[0].shape == (64,)
    full = planned(teacher, photos, tokens="", tail=False)
    assert full.record.part("remainder").shape == (64, 64) and not full.constants
    with pytest.raises(UsageError, match="--feature-rank is 65, but teacher resnet8 has 64"):
        planned(teacher, photos, features="", feature_rank=65)
    with pytest.raises(UsageError, match="--token-rank is 65, but teacher resnet8 has 64"):
        planned(teacher, photos, tokens="", token_rank=65)


def test_all_targets_come_from_one_plan(photos: Path) -> None:
    teacher = as_teacher(seeded(tiny_timm_resnet), "made", 64)
    sample = CropSample(
        folder=scan_folder(photos), sampler=RandomResizedCrop(), seed=0, num_views=2,
        batch_size=4, workers=1,
    )  # fmt: skip
    wanted = TargetOptions(features="", heads="h", tokens="", dense="", tail=False, token_rank=16)
    plans = plan_targets(teacher, wanted, sample, 2)
    assert [plan.record.path for plan in plans] == [
        "features/made", "heads/h", "tokens/made", "dense/made",
    ]  # fmt: skip
    outputs = extractor_for(teacher, {n for p in plans for n in p.outputs_needed})(crops(2, 64))
    for plan in plans:
        read_back(plan, outputs)


def test_a_teacher_that_has_no_tail_is_refused_before_anything_is_written(photos: Path) -> None:
    from torchvision import models

    model = seeded(lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.35))
    teacher = as_teacher(model, "tv:mobilenet_v2", 64)
    with pytest.raises(TeacherError, match="give --no-tail"):
        planned(teacher, photos, tokens="", token_rank=FULL_RANK)


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"feature_space": "w"}, "--feature-space is 'w'"), ({"rotations": 2}, "--rotations is 2"),
     ({"head_encoding": "int4"}, "--head-encoding"), ({"dense_encoding": "int8"}, "--dense-enc"),
     ({"feature_rank": 0}, "--feature-rank is 0"), ({"token_rank": -1}, "--token-rank is -1"),
     ({"basis_images": 0}, "--basis-images is 0"), ({"power": 0.0}, "--power 0.0"),
     ({"power_temperature": float("nan")}, "--power-temperature nan"),
     ({"head_views": 0}, "--head-views is 0")],
)  # fmt: skip
def test_options_that_make_no_sense_are_named(bad: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TargetOptions(**bad)  # type: ignore[arg-type]


def parsed(*arguments: str) -> tuple[TargetOptions | None, dict[str, object]]:
    caught = []

    @click.command()
    @click.option("--crops", type=int, default=500)
    @target_options
    def command(**values: object) -> None:
        caught.append((options_from_cli(values), values))

    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if result.exception:
        raise result.exception
    return caught[0]


def test_the_command_lines_defaults_are_those_of_the_dataclass() -> None:
    assert parsed() == (None, {"crops": 500})
    assert parsed("--features") == (TargetOptions(features=""), {"crops": 500})
    assert parsed("--dense", "all", "--crops", "9") == (TargetOptions(dense="all"), {"crops": 9})


def test_the_command_line_says_all_that_the_dataclass_can() -> None:
    options, _ = parsed(
        "--features", "f", "--feature-views", "3", "--feature-rank", "5", "--feature-space", "y",
        "--power-temperature", "0.2", "--power", "2", "--heads", "--head-views", "2",
        "--rotations", "1", "--head-encoding", "dense-int8", "--tokens", "--token-views", "1",
        "--token-rank", "full", "--token-encoding", "fp32", "--no-tail", "--dense",
        "--dense-views", "4", "--dense-encoding", "fp16", "--basis-images", "7",
    )  # fmt: skip
    assert options == TargetOptions(
        features="f", feature_views=3, feature_rank=5, feature_space="y", power_temperature=0.2,
        power=2.0, heads="", head_views=2, rotations=1, head_encoding="dense-int8", tokens="",
        token_views=1, token_rank=FULL_RANK, token_encoding="fp32", tail=False, dense="",
        dense_views=4, dense_encoding="fp16", basis_images=7,
    )  # fmt: skip
    assert options is not None and options.wanted == ("features", "heads", "tokens", "dense")
    for bad in (["--rotations", "2"], ["--token-rank", "0"], ["--feature-rank", "none"]):
        with pytest.raises(click.BadParameter):
            parsed(*bad)


@pytest.mark.parametrize(
    ("width", "rank"), [(64, 64), (256, 256), (384, 256), (768, 256), (1024, 342), (1536, 512)]
)
def test_a_third_of_a_token_is_kept_but_not_less_than_256(width: int, rank: int) -> None:
    assert default_token_rank(width) == rank


def test_the_options_know_what_storage_knows() -> None:
    assert tuple(features.SPACES) == SPACES
    assert dense.ENCODINGS == DENSE_ENCODINGS
    assert TargetOptions().power_temperature == features.DEFAULT_TEMPERATURE
    assert TargetOptions().power == features.DEFAULT_POWER
