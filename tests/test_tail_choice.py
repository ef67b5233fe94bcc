"""The tail that labels are read with: the one that the store measured to be nearer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_folder
from test_certificate import write
from training import make_store, request, write_teacher

from labelgen import generate, load_teacher, resolve
from labelgen.target_options import TargetOptions
from storage import LabelStore
from storage.codecs import TopKCodec
from storage.errors import StoreMismatch, UsageError
from storage.sealing import seal
from storage.select import Selection, subset
from storage.tail_choice import choose_tail
from trainer import fit
from trainer.config import TrainConfig, completed
from trainer.inputs import open_images
from trainer.request import configure


def stated(store, mean, even):
    """The store, its certificate saying these divergences at temperature 1."""
    kl = store.spec.teachers["toy"].measured["certificate"]["kl"]["1"]
    kl["mean"]["mean"], kl["even"]["mean"] = mean, even
    return store


def test_the_nearer_tail_by_the_stores_own_certificate_is_taken(tmp_path):
    seal(write(tmp_path / "s"))
    store = LabelStore.open(tmp_path / "s")
    kl = store.spec.teachers["toy"].measured["certificate"]["kl"]["1"]
    nearer = "mean" if kl["mean"]["mean"] < kl["even"]["mean"] else "even"
    assert choose_tail(store, "toy").tail == nearer
    assert choose_tail(stated(store, 0.1, 0.2), "toy").tail == "mean"
    choice = choose_tail(stated(store, 0.2, 0.1), "toy")
    assert choice.tail == "even"
    assert "KL 0.2000 with the image's mean tail, 0.1000 with an even one" in choice.why


def test_a_part_of_a_store_goes_by_its_ancestor_and_a_store_that_measured_nothing_is_even(tmp_path):
    seal(write(tmp_path / "s"))
    own = choose_tail(LabelStore.open(tmp_path / "s"), "toy")
    subset(tmp_path / "s", tmp_path / "part", Selection(views=(0, 4)))
    part = LabelStore.open(tmp_path / "part")
    found = choose_tail(part, "toy")
    assert found.tail == own.tail and "on its ancestors' sample" in found.why
    del part.attributes["origin"]
    assert choose_tail(part, "toy").tail == "even"
    seal(write(tmp_path / "plain", codec=TopKCodec(num_classes=7, top_k=3)))
    choice = choose_tail(LabelStore.open(tmp_path / "plain"), "toy")
    assert (choice.tail, choice.why) == ("even", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 images, a store whose labels keep one of three classes, and dense logits beside."""
    root = tmp_path_factory.mktemp("tails")
    folder = write_folder(root / "images", classes=3, per_class=8)
    path = write_teacher(root / "t.safetensors", scale=5.0)
    teacher = load_teacher(resolve(f"file:{path}"), "cpu", "fp32")
    generate(teacher, folder, root / "store.zarr", crops=8, top_k=1, workers=1, batch_size=16,
             teacher_check=False,
             targets=TargetOptions(dense="all", dense_encoding="fp32", dense_views=4))  # fmt: skip
    return root


def tail_of(run):
    return json.loads((run / "config.json").read_text())["labels"]["tail"]


def test_a_run_records_the_tail_and_says_why(world, tmp_path):
    labels = world / "store.zarr"
    choice = choose_tail(LabelStore.open(labels), "resnet8")
    result = fit(request(tmp_path / "a", labels=labels, epochs=1))
    assert tail_of(tmp_path / "a") == choice.tail and choice.why in result.notes
    other = {"mean": "even", "even": "mean"}[choice.tail]
    asked = fit(request(tmp_path / "b", labels=labels, epochs=1, label_tail=other))
    assert tail_of(tmp_path / "b") == other and choice.why not in asked.notes
    hard = fit(request(tmp_path / "c", labels=labels, epochs=1, label_type="hard"))
    assert tail_of(tmp_path / "c") == "even" and choice.why not in hard.notes
    with pytest.raises(StoreMismatch, match=f"labels.tail: '{choice.tail}', not '{other}'"):
        fit(request(tmp_path / "b", labels=labels, epochs=1))


def test_full_labels_are_read_from_dense_logits_of_the_views_that_have_them(world, tmp_path):
    labels = world / "store.zarr"
    result = fit(request(tmp_path / "full", labels=labels, label_type="full", epochs=None))
    assert result.epochs == 1, "four of eight views have logits, four a step"
    for method in ("ferkd", "meal"):
        fit(request(tmp_path / method, labels=labels, label_type="full", method=method, epochs=1))
    asked = request(tmp_path / "x", labels=labels, label_type="full")
    beton = open_images(world / "images", tmp_path / "b.beton", 1)
    config, _ = configure(asked, torch.device("cpu"), LabelStore.open(labels), beton)
    with pytest.raises(UsageError, match="--label-type full is for fkd, ferkd, meal"):
        replace(config, method="scalekd")
    with pytest.raises(UsageError, match=r"has dense all, not some: .* --set labels.target=NAME"):
        fit(request(tmp_path / "x", labels=labels, label_type="full",
                    settings={"labels.target": "some"}))  # fmt: skip
    make_store(world / "images", tmp_path / "s.zarr")
    with pytest.raises(UsageError, match=r"labelgen add .* --dense"):
        fit(request(tmp_path / "x", labels=tmp_path / "s.zarr", label_type="full"))


def test_the_config_of_an_older_release_is_completed_with_what_it_did(world, tmp_path):
    fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=1))
    new = json.loads((tmp_path / "run" / "config.json").read_text())
    old = {name: value for name, value in new.items() if name not in ("fkd_ssl", "kdep")}
    old["labels"] = {n: v for n, v in new["labels"].items() if n != "target"}
    assert json.loads(json.dumps(completed(old))) == new
    assert completed(old | {"labels": None})["labels"] is None
    assert {f for f in new if isinstance(new[f], dict)} <= set(TrainConfig.__dataclass_fields__)


def test_a_full_label_of_a_batch_is_the_teachers_answer(world):
    store = LabelStore.open(world / "store.zarr")
    values = store.read_target("dense/all", np.arange(3), slice(0, 2))["logits"]
    kept = store.read_plane(0, 2, "resnet8").index[:3, :, 0]
    assert np.array_equal(values.argmax(-1), kept)
    assert torch.from_numpy(values).softmax(-1).sum() == pytest.approx(6, abs=1e-5)
