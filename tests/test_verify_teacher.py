"""`labelgen verify`: labels that aren't the teacher's are found, other arithmetic is not."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling import tiny_teacher, write_weights
from test_labelgen_cli import run as labelgen

from labelgen.engine import block_data
from labelgen.run import generate
from labelgen.sequential import FEW, MANY, ShareTest, upper_bound
from labelgen.target_options import TargetOptions
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from labelgen.tolerance import label_fits
from labelgen.verify_labels import verify_labels
from labelgen.verify_report import VerifyReport
from storage.block import BlockData
from storage.codecs import TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec
from storage.errors import StoreMismatch, UsageError
from storage.store import LabelStore

SETTINGS: dict[str, Any] = {"crops": 10, "batch_size": 16, "block_images": 4, "workers": 1}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", per_class=8)


def labelled(
    monkeypatch: pytest.MonkeyPatch | None,
    teacher: Teacher,
    photos: Path,
    out: Path,
    change: Callable[[BlockData, range], BlockData] | None = None,
    **options: Any,
) -> LabelStore:
    """A sealed store of 24 images with 10 views; `change` is done to each block before it is
    written."""
    if monkeypatch is not None and change is not None:

        def changed(spec: Any, folder: Any, buffer: Any, dense: Any) -> BlockData:
            return change(block_data(spec, folder, buffer, dense), buffer.rows)

        monkeypatch.setattr("labelgen.engine.block_data", changed)
    generate(teacher, photos, out, **SETTINGS | options)
    return LabelStore.open(out)


def check(store: LabelStore, teacher: Teacher, photos: Path, **options: Any) -> VerifyReport:
    return verify_labels(store, teacher, photos, **options)


def turned(labels: TopKLabels, images: slice, by: int) -> TopKLabels:
    """Labels whose views of some images stand `by` places further on."""
    parts = []
    for values in (labels.index, labels.code, labels.tail):
        values = values.copy()
        values[images] = np.roll(values[images], by, axis=1)
        parts.append(values)
    return TopKLabels(*parts)


def with_labels(data: BlockData, labels: TopKLabels) -> BlockData:
    name = next(iter(data.labels))
    return dataclasses.replace(data, labels={name: labels})


def test_a_run_s_own_labels_are_right_on_every_crop(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    store = labelled(None, teacher, photos, tmp_path / "s")
    report = check(store, teacher, photos)
    assert (report.decision, report.wrong, report.exit_code) == (FEW, [], 0)
    assert report.every and report.looked == 240
    assert report.eps < 0.01  # fp32 on one device


def test_the_plain_top_k_codec_is_compared_too(tmp_path: Path, photos: Path) -> None:
    codec = TopKCodec(num_classes=7, top_k=3)
    log_probs = np.log(np.random.default_rng(1).dirichlet(np.ones(7), 50))
    labels = codec.encode(log_probs)
    for i in range(50):
        one = TopKLabels(labels.index[i], labels.code[i], labels.tail[i])
        assert label_fits(codec, log_probs[i], one, 1e-6) is None
        assert label_fits(codec, np.roll(log_probs[i], 1), one, 1e-6) is not None


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000), noise=st.floats(1e-6, 0.2), dictionary=st.booleans(),
    scale=st.floats(0.1, 20),
)  # fmt: skip
def test_noise_within_the_tolerance_is_never_called_wrong(
    seed: int, noise: float, dictionary: bool, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    codec = TopKCodec(num_classes=20, top_k=5)
    if dictionary:
        codec = DictionaryCodec(num_classes=20, top_k=5, spread_classes=0)
    logits = rng.normal(0, scale, 20)
    exact = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    moved = exact + rng.uniform(-noise, noise, 20)
    moved -= np.log(np.exp(moved).sum())
    eps = float(np.abs(moved - exact).max())
    assert label_fits(codec, exact, codec.encode(moved), eps + 1e-9) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda v: v.index.__setitem__(0, v.index[2]), "classes"),
        (lambda v: v.index.__setitem__(slice(None), v.index[::-1].copy()), "classes"),
        (lambda v: v.code.__setitem__(2, v.code[2] + 2), "values"),
        (lambda v: np.add(v.tail, 3, out=v.tail), "tail"),
    ],
)
def test_what_is_wrong_with_a_label_is_said(change: Callable[[TopKLabels], Any], why: str) -> None:
    codec = TopKCodec(num_classes=7, top_k=3, step=0.25)
    log_probs = np.log([0.4, 0.25, 0.15, 0.08, 0.06, 0.04, 0.02])
    labels = codec.encode(log_probs)
    labels = TopKLabels(labels.index.copy(), labels.code.copy(), np.array(labels.tail))
    assert label_fits(codec, log_probs, labels, 0.01) is None
    change(labels)
    assert label_fits(codec, log_probs, labels, 0.01) == why


def test_one_block_of_another_teacher_is_found_and_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, other = tiny_teacher(tmp_path), tiny_teacher(tmp_path, seed=9)
    foreign = labelled(None, other, photos, tmp_path / "other")
    name = other.spec.name
    plane = foreign.read_plane(0, 10, name)

    def change(data: BlockData, rows: range) -> BlockData:
        if rows.start != 8:
            return data
        part = slice(rows.start, rows.stop)
        assert plane.index is not None and plane.code is not None and plane.tail is not None
        return with_labels(data, TopKLabels(plane.index[part], plane.code[part], plane.tail[part]))

    store = labelled(monkeypatch, teacher, photos, tmp_path / "s", change)
    report = check(store, teacher, photos)
    assert report.decision == MANY and report.exit_code == 1
    assert {wrong.block for wrong in report.wrong} == {2} and report.looked < 240
    assert any("lie in block 2" in clue for clue in report.clues)


def test_views_that_are_shifted_are_found_and_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)

    def change(data: BlockData, rows: range) -> BlockData:
        (labels,) = data.labels.values()
        return with_labels(data, turned(labels, slice(None), 1))

    store = labelled(monkeypatch, teacher, photos, tmp_path / "s", change)
    report = check(store, teacher, photos)
    assert report.decision == MANY
    assert any("+1 views" in clue for clue in report.clues), report.clues


def test_images_that_were_swapped_before_labelling_are_found(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)

    def change(data: BlockData, rows: range) -> BlockData:
        (labels,) = data.labels.values()
        parts = (labels.index, labels.code, labels.tail)
        return with_labels(data, TopKLabels(*(values[[1, 0, 2, 3]] for values in parts)))

    store = labelled(monkeypatch, teacher, photos, tmp_path / "s", change)
    report = check(store, teacher, photos)
    assert report.decision == MANY and {wrong.row % 4 for wrong in report.wrong} <= {0, 1}


def test_image_files_that_were_swapped_afterwards_are_found(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    store = labelled(None, teacher, photos, tmp_path / "s")
    for folder in sorted(photos.iterdir()):
        one, other = sorted(folder.iterdir())[:2]
        one_data, other_data = one.read_bytes(), other.read_bytes()
        one.write_bytes(other_data)
        other.write_bytes(one_data)
    report = check(store, teacher, photos)
    assert report.decision == MANY and {wrong.why for wrong in report.wrong} == {"image"}
    assert any("labelgen doctor" in clue for clue in report.clues)


def test_labels_made_with_another_normalisation_are_found_and_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    imagenet = dataclasses.replace(
        teacher.spec, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    other = dataclasses.replace(teacher, spec=imagenet)
    foreign = labelled(None, other, photos, tmp_path / "other")
    plane = foreign.read_plane(0, 10, teacher.spec.name)

    def change(data: BlockData, rows: range) -> BlockData:
        part = slice(rows.start, rows.stop)
        assert plane.index is not None and plane.code is not None and plane.tail is not None
        return with_labels(data, TopKLabels(plane.index[part], plane.code[part], plane.tail[part]))

    store = labelled(monkeypatch, teacher, photos, tmp_path / "s", change)
    report = check(store, teacher, photos)
    assert report.decision == MANY
    assert any("normalisation" in clue for clue in report.clues), report.clues


def test_the_store_s_settings_must_be_the_teacher_s(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    store = labelled(None, teacher, photos, tmp_path / "s")
    with pytest.raises(StoreMismatch, match="digest"):
        check(store, tiny_teacher(tmp_path, seed=3), photos)
    darker = dataclasses.replace(teacher.spec, mean=(0.1, 0.1, 0.1))
    with pytest.raises(StoreMismatch, match="mean"):
        check(store, dataclasses.replace(teacher, spec=darker), photos)
    named = dataclasses.replace(teacher.spec, name="other")
    assert check(store, dataclasses.replace(teacher, spec=named), photos).decision == FEW
    foreign = dataclasses.replace(teacher, spec=named, digest="0" * 64)
    with pytest.raises(UsageError, match="no labels of teacher other"):
        check(store, foreign, photos)
    with pytest.raises(UsageError, match="not a folder"):
        check(store, teacher, tmp_path / "nowhere")


@pytest.mark.parametrize(("stored", "now"), [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "bf16")])
def test_another_precision_is_no_mistake(
    tmp_path: Path, photos: Path, stored: str, now: str
) -> None:
    write_weights(tmp_path / "w.safetensors")
    one, other = (
        load_teacher(resolve(f"file:{tmp_path / 'w.safetensors'}"), device="cpu", precision=name)
        for name in (stored, now)
    )
    store = labelled(None, one, photos, tmp_path / "s")
    report = check(store, other, photos)
    assert report.decision == FEW and report.wrong == []
    assert report.eps > 0.01


def test_a_run_on_a_gpu_s_tf32_can_be_checked_on_a_cpu(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    labelled(None, teacher, photos, tmp_path / "s")
    root = tmp_path / "s" / "zarr.json"
    root.write_text(root.read_text().replace('"precision": "fp32"', '"precision": "tf32"'))
    report = check(LabelStore.open(tmp_path / "s"), teacher, photos)
    assert report.decision == FEW and report.eps > 0.001


def test_targets_are_compared_and_a_wrong_one_is_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    targets = TargetOptions(features="pooled", feature_views=10, feature_rank=8)
    good = labelled(None, teacher, photos, tmp_path / "good", targets=targets)
    report = check(good, teacher, photos)
    assert report.decision == FEW and report.targets == ("features/pooled",)

    def change(data: BlockData, rows: range) -> BlockData:
        arrays = dict(data.targets["features/pooled"])
        arrays["value"] = np.roll(arrays["value"], 1, axis=1)
        return dataclasses.replace(data, targets={"features/pooled": arrays})

    bad = labelled(monkeypatch, teacher, photos, tmp_path / "bad", change, targets=targets)
    report = check(bad, teacher, photos)
    assert report.decision == MANY
    assert {wrong.why for wrong in report.wrong} == {"features/pooled"}


def test_the_same_seed_looks_at_the_same_crops(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    store = labelled(None, teacher, photos, tmp_path / "s")
    for path in sorted(photos.rglob("*.jpg"))[:3]:
        path.unlink()
    found = [
        [(w.row, w.view) for w in check(store, teacher, photos, seed=seed).wrong]
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


def test_too_few_crops_leave_it_undecided(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    store = labelled(None, teacher, photos, tmp_path / "s")
    report = check(store, teacher, photos, most=40)
    assert (report.decision, report.exit_code, report.looked) == (None, 3, 40)
    assert "undecided" in report.text()


def test_the_test_keeps_its_risks() -> None:
    test = ShareTest(h0=0.02, h1=0.1, alpha=0.05, beta=0.05)
    rng = np.random.default_rng(0)
    for share, least in ((0.02, 0.94), (0.1, 0.94)):
        right = 0
        for _ in range(600):
            wrong = looked = 0
            decision = None
            while decision is None:
                looked += 1
                wrong += int(rng.random() < share)
                decision = test.decide(looked, wrong)
            right += (decision == MANY) == (share > 0.05)
        assert right / 600 > least - 0.01
    assert test.power(0.02) == pytest.approx(0.05, abs=1e-6)
    assert test.power(0.1) == pytest.approx(0.95, abs=1e-6)
    powers = [test.power(share) for share in np.linspace(0.001, 0.5, 60)]
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(powers))


def test_default_risks_need_508_right_crops_and_two_wrong_ones_are_too_many() -> None:
    test = ShareTest()
    assert test.fewest == 508
    assert test.decide(508, 0) == FEW and test.decide(507, 0) is None
    assert test.decide(2, 2) == MANY and test.decide(1, 1) is None
    for bad in ({"h0": 0.1, "h1": 0.01}, {"alpha": 0.0}, {"beta": 0.7}):
        with pytest.raises(UsageError):
            ShareTest(**bad)


def test_the_upper_bound_is_clopper_pearson_s() -> None:
    assert upper_bound(300, 0, 0.05) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)
    assert upper_bound(20, 3, 0.025) == pytest.approx(0.3789, abs=1e-4)  # published tables
    assert upper_bound(5, 5, 0.05) == 1.0


def test_the_command_reports_and_ends_with_the_right_code(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    teacher = tiny_teacher(tmp_path)
    store = labelled(None, teacher, photos, tmp_path / "s")
    weights = f"file:{tmp_path / 'tiny.safetensors'}"
    arguments = ("verify", "--labels", store.path, "--device", "cpu")
    assert labelgen(monkeypatch, *arguments, "--teacher", weights, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["crops"] == 240 and found["power"]["0.01"] > 0.98
    assert labelgen(monkeypatch, *arguments) == 2  # a file has no name to be had by
    assert "--teacher" in capsys.readouterr().err
    for path in sorted(photos.rglob("*.jpg"))[:12]:
        path.unlink()
    assert labelgen(monkeypatch, *arguments, "--teacher", weights) == 1
    assert "NOT the teacher's" in capsys.readouterr().out
    write_weights(tmp_path / "tiny.safetensors", seed=4)
    assert labelgen(monkeypatch, *arguments, "--teacher", weights) == 1
    assert "digest" in capsys.readouterr().err
    assert torch.get_num_threads() > 0
