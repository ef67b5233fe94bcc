"""Targets beside labels, from one command and one forward, against the live teacher."""

from __future__ import annotations

import copy
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelling import NUM_CLASSES, plain_crops, tiny_teacher
from torch import Tensor

import labelgen.run_targets
from labelgen.forward import Forward
from labelgen.run import generate
from labelgen.target_options import TargetOptions
from labelgen.teacher import Teacher
from storage.errors import StoreMismatch
from storage.images import ImageStatus
from storage.receipts import read_receipt
from storage.store import LabelStore
from storage.targets.heads import rotation_rows
from storage.targets.tokens import decode_tokens
from storage.verify import verify

CROPS, FEATURE_VIEWS, DENSE_VIEWS, TOKEN_VIEWS, HEAD_VIEWS = 6, 4, 6, 2, 1
EVERYTHING = TargetOptions(
    features="pooled", feature_views=FEATURE_VIEWS, feature_rank=12,
    dense="all", dense_views=DENSE_VIEWS, tokens="last", token_views=TOKEN_VIEWS, token_rank=16,
    heads="turned", head_views=HEAD_VIEWS, head_encoding="pooled-fp16",
)  # fmt: skip
PATHS = {"features/pooled", "dense/all", "tokens/last", "heads/turned"}
SETTINGS: dict[str, Any] = {"crops": CROPS, "batch_size": 8, "block_images": 5, "workers": 2}


def plain_network(teacher: Teacher) -> torch.nn.Module:
    """The same network without any hook."""
    network = copy.deepcopy(teacher.model)
    for module in network.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return network


@torch.inference_mode()
def live_outputs(network: torch.nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Written out for the CIFAR ResNet: what its forward computes, before and after its last ReLU.

    batch: normalised float32 [B, 3, S, S].
    """
    x = F.relu(network.bn1(network.conv1(batch)))
    x = network.layer2(network.layer1(x))
    last = network.layer3[-1]
    for block in network.layer3[:-1]:
        x = block(x)
    shortcut = x if last.downsample is None else last.downsample(x)
    inner = F.relu(last.bn1(last.conv1(x)))
    before = last.bn2(last.conv2(inner)) + shortcut
    after = F.relu(before)
    return {
        "feature": before.mean(dim=(2, 3)),
        "tokens": after.flatten(2).transpose(1, 2),
        "pooled": after.mean(dim=(2, 3)),
        "logits": network.fc(after.mean(dim=(2, 3))),
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelStore, Teacher, Path]:
    """A store with every target, its teacher and its images; one image is bad."""
    from conftest import write_folder

    folder = tmp_path_factory.mktemp("targets")
    images = write_folder(folder / "images", classes=3, per_class=4)
    (images / "class1" / "broken.jpg").write_bytes(b"no image")
    teacher = tiny_teacher(folder)
    generate(teacher, images, folder / "s", targets=EVERYTHING, **SETTINGS)
    return LabelStore.open(folder / "s"), teacher, images


@pytest.fixture(scope="module")
def live(labelled: tuple[LabelStore, Teacher, Path]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sound rows, and the live teacher's outputs [n, CROPS, ...] for their exact crops."""
    store, teacher, images = labelled
    sound = np.flatnonzero(store.read_status() == ImageStatus.OK)
    crops = np.concatenate([plain_crops(store, teacher, images, int(row)) for row in sound])
    forward, network = Forward(teacher, 1), plain_network(teacher)
    batch = forward.normalise(crops)
    outputs = live_outputs(network, batch)
    for turns in range(4):
        turned = torch.rot90(batch, turns, (2, 3))
        outputs[f"turned {turns}"] = live_outputs(network, turned)["pooled"]
    shape = (len(sound), CROPS)
    found = {name: v.numpy().reshape(*shape, *v.shape[1:]) for name, v in outputs.items()}
    return sound, found


def test_the_written_out_network_is_the_network(
    labelled: tuple[LabelStore, Teacher, Path],
) -> None:
    _, teacher, _ = labelled
    batch = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    network = plain_network(teacher)
    found = live_outputs(network, batch)["logits"]
    assert torch.allclose(found, network(batch), atol=1e-5)


def test_one_command_makes_every_target_and_verify_finds_nothing(
    labelled: tuple[LabelStore, Teacher, Path],
) -> None:
    store, _, _ = labelled
    assert set(store.spec.targets) == PATHS
    assert not verify(store.path, full=True).problems
    views = {path: record.views for path, record in store.spec.targets.items()}
    assert views == {
        "features/pooled": FEATURE_VIEWS, "dense/all": DENSE_VIEWS,
        "tokens/last": TOKEN_VIEWS, "heads/turned": HEAD_VIEWS,
    }  # fmt: skip


def test_features_are_the_projected_vectors_before_the_last_relu(
    labelled: tuple[LabelStore, Teacher, Path], live: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    store, (sound, outputs) = labelled[0], live
    basis, mean = (
        store.read_constant("features/pooled", name).astype(np.float64)
        for name in ("basis", "mean")
    )
    raw = outputs["feature"][:, :FEATURE_VIEWS]
    assert (raw < 0).any()
    expected = (raw.astype(np.float64) - mean) @ basis
    found = store.read_target("features/pooled", sound, None)["value"]
    # float16's rounding, and float32's over 64 products
    assert np.abs(found - expected).max() <= np.abs(expected).max() * (2**-11 + 1e-5)
    assert np.abs(basis.T @ basis - np.eye(12)).max() < 1e-5


def test_dense_logits_are_the_teachers(
    labelled: tuple[LabelStore, Teacher, Path], live: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    store, (sound, outputs) = labelled[0], live
    expected = outputs["logits"]
    found = store.read_target("dense/all", sound, None)["logits"]
    scale = (expected.max(-1) - expected.min(-1)) / 255
    error = np.abs(found - expected).max(-1)
    assert (error <= 0.5001 * scale + 1e-5 * np.abs(expected).max()).all()


def test_tokens_decode_to_the_teachers_within_what_the_basis_leaves(
    labelled: tuple[LabelStore, Teacher, Path], live: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    store, (sound, outputs) = labelled[0], live
    record = store.spec.targets["tokens/last"]
    basis = store.read_constant("tokens/last", "basis").astype(np.float64)
    tokens = outputs["tokens"][:, :TOKEN_VIEWS].astype(np.float64)
    mean = tokens.mean(axis=2, keepdims=True)
    kept = mean + (tokens - mean) @ basis @ basis.T  # what an exact codec would give back
    found = decode_tokens(record, store.read_target("tokens/last", sound, None), basis=basis)
    coordinates = (tokens - mean) @ basis
    steps = np.abs(coordinates).max(-1) / 127  # one scale a token
    # half a step in each of 16 orthonormal coordinates, and float16's rounding of the mean
    bound = 0.501 * steps * 16**0.5 + 2**-11 * np.abs(mean).max() * 64**0.5 + 1e-4
    assert (np.linalg.norm(found - kept, axis=-1) <= bound).all()


def test_heads_hold_what_the_class_head_reads_for_each_quarter_turn(
    labelled: tuple[LabelStore, Teacher, Path], live: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    store, (sound, outputs) = labelled[0], live
    found = store.read_target("heads/turned", sound, None)["class"]  # [n, 1, 4, 64]
    assert found.shape == (len(sound), HEAD_VIEWS, 4, 64)
    for turns in range(4):
        expected = outputs[f"turned {turns}"][:, :HEAD_VIEWS]
        assert np.abs(found[:, :, turns] - expected).max() <= 2**-10 * np.abs(expected).max()
    rows = rotation_rows(found[:, 0])
    assert np.array_equal(rows[4 * 2 + 3], found[2, 0, 3])


def test_masked_images_have_no_targets(labelled: tuple[LabelStore, Teacher, Path]) -> None:
    store = labelled[0]
    bad = np.flatnonzero(store.read_status() != ImageStatus.OK)
    assert len(bad) == 1
    for path in PATHS:
        assert all(np.isnan(v).all() for v in store.read_target(path, bad, None).values())


def test_labels_are_those_of_a_run_without_targets(
    labelled: tuple[LabelStore, Teacher, Path], tmp_path: Path
) -> None:
    store, teacher, images = labelled
    generate(teacher, images, tmp_path / "plain", **SETTINGS)
    plain = LabelStore.open(tmp_path / "plain").read_plane(0, CROPS, teacher.spec.name)
    ours = store.read_plane(0, CROPS, teacher.spec.name)
    assert np.array_equal(ours.box, plain.box) and np.array_equal(ours.flip, plain.flip)
    # batches are made up otherwise, which may move last bits: below 0.1 % of codes
    assert (ours.code != plain.code).mean() < 1e-3
    assert (ours.index != plain.index).mean() < 1e-3


def test_root_with_targets_depends_on_no_worker_and_no_restart(
    labelled: tuple[LabelStore, Teacher, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, teacher, images = labelled
    write_block = LabelStore.write_block

    def full_at_second_block(self: LabelStore, block: int, *args: Any, **more: Any) -> None:
        if block == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "x"))
        write_block(self, block, *args, **more)

    settings = SETTINGS | {"workers": 1, "targets": EVERYTHING}
    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "write_block", full_at_second_block)
        with pytest.raises(OSError, match="No space left"):
            generate(teacher, images, tmp_path / "s", **settings)

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("the basis was fitted again")

    monkeypatch.setattr("labelgen.target_specs.plan_targets", never)
    resumed = generate(teacher, images, tmp_path / "s", **settings)
    assert resumed.resumed > 0
    assert resumed.root == generate(teacher, images, store.path, **settings).root


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"feature_views": 3}, r"features/pooled\.views is 3, not 4"),
        ({"feature_rank": 5, "rotations": 1}, r"(?s)rank is 5, not 12.*rotations is 1, not 4"),
        ({"feature_space": "y"}, r"features/pooled\.space is \"y\", not \"z\""),
        ({"token_encoding": "fp16"}, r"tokens/last\.encoding is \"fp16\", not \"int8\""),
        ({"tail": False}, r"tokens/last\.tail is false, not true"),
        ({"dense_encoding": "fp16"}, r"dense/all\.encoding is \"fp16\", not \"affine8\""),
        ({"head_encoding": "dense-int8"}, r"heads/turned\.encoding\.class is \"dense-int8\""),
        ({"dense": None}, "targets are features/pooled, heads/turned, tokens/last, not dense/all"),
    ],
)
def test_other_targets_than_the_stores_are_named(
    labelled: tuple[LabelStore, Teacher, Path], changes: dict[str, Any], named: str
) -> None:
    from dataclasses import replace

    store, teacher, images = labelled
    with pytest.raises(StoreMismatch, match=named):
        generate(teacher, images, store.path, targets=replace(EVERYTHING, **changes), **SETTINGS)


def test_a_store_with_targets_asked_for_without_them_is_refused(
    labelled: tuple[LabelStore, Teacher, Path],
) -> None:
    store, teacher, images = labelled
    with pytest.raises(StoreMismatch, match="targets is null, not"):
        generate(teacher, images, store.path, **SETTINGS)


def test_a_block_of_masked_images_alone_is_written(tmp_path: Path, image_folder: Path) -> None:
    for path in sorted((image_folder / "class0").iterdir()):
        path.write_bytes(b"no image")
    options = TargetOptions(features="", feature_views=2, feature_rank=4)
    settings = {"crops": 3, "batch_size": 8, "block_images": 4, "workers": 1, "targets": options}
    result = generate(tiny_teacher(tmp_path), image_folder, tmp_path / "s", **settings)
    assert len(result.masked) == 4
    assert not verify(tmp_path / "s", full=True).problems


def test_blocks_of_large_targets_are_small_enough_for_memory(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.format.MOST_TARGET_BYTES", 4096)
    options = TargetOptions(dense="", dense_views=3, dense_encoding="fp32")
    generate(
        tiny_teacher(tmp_path), image_folder, tmp_path / "s", crops=3, workers=1, targets=options
    )
    store = LabelStore.open(tmp_path / "s")
    size = store.spec.block_images * 3 * NUM_CLASSES * 4
    assert size <= 4096 < 2 * size or store.spec.block_images == 12


def test_the_plan_knows_what_it_needs_before_any_image_is_labelled(
    labelled: tuple[LabelStore, Teacher, Path],
) -> None:
    store = labelled[0]
    plans = labelgen.run_targets.stored_plans(store, sorted(store.spec.targets))
    assert [plan.record for plan in plans] == [store.spec.targets[p] for p in sorted(PATHS)]
    receipt = read_receipt(store.path, 0)
    assert receipt is not None
    assert any(name.startswith("tokens/last/remainder/") for name in receipt.objects)
