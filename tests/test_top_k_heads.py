"""Heads of which the largest logits alone are kept: what is read back, and how wrong that is."""

import json
import re

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from conftest import write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from training import request

from labelgen.basis import CropSample
from labelgen.cli import cli
from labelgen.head_encodings import head_encoding, largest_logits, spread_variation
from labelgen.target_options import TargetOptions
from labelgen.target_specs import plan_targets
from storage import LabelStore
from storage.errors import CorruptStore, StoreMismatch, UsageError
from storage.images import scan_folder
from storage.targets.heads import HeadSpec, head_logits, head_record, head_settings
from storage.targets.top_k_heads import INDEX, LOGIT, TAIL, TEMPERATURES, TopK
from storage.targets.vectors import decode_vectors
from storage.verify import verify
from storage.views import CentreCrop
from tests.extraction import as_teacher, seeded
from trainer import fit
from trainer.methods.hsakd import StoredHeads
from trainer.models import create
from trainer.plan import plan_epoch
from trainer.targets import StoredTarget, read_target_plane

CLASSES, K = 30, 5


def softmax(logits, temperature):
    """float64, one row at a time."""
    found = np.empty(logits.shape)
    for place in np.ndindex(logits.shape[:-1]):
        z = np.exp((logits[place].astype(np.float64) - logits[place].max()) / temperature)
        found[place] = z / z.sum()
    return found


def one_head(k=K, classes=CLASSES):
    kept = TopK(k=k, temperatures=TEMPERATURES, variation=(0.0, 0.0), crops=1)
    spec = HeadSpec(name="a", width=8, classes=classes, encoding="top-k", stored="fp16", top_k=kept)
    return head_record(name="h", teacher="t", views=1, rotations=4, heads=[spec], weights={})


def stored(record, logits):
    """Decoded parts of float32 logits [n, 4, C], coded as a labelling run does it."""
    from labelgen.extract.vectors import encode_tensors

    (head,) = head_settings(record).heads
    vectors = {
        f"a_{name}": v for name, v in largest_logits(torch.tensor(logits), head.top_k).items()
    }
    arrays = {p.name: encode_tensors(p, vectors[p.name]) for p in record.parts}
    return {
        p.name: decode_vectors(p, {n: a.numpy() for n, a in arrays[p.name].items()})
        for p in record.parts
    }


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 2.0, 12.0]),
       k=st.integers(1, CLASSES - 1), temperature=st.sampled_from(TEMPERATURES))  # fmt: skip
def test_kept_classes_and_the_others_together_weigh_what_they_did(seed, spread, k, temperature):
    logits = np.random.default_rng(seed).normal(size=(2, 4, CLASSES)).astype(np.float32) * spread
    record = one_head(k)
    wanted = softmax(logits, temperature)
    found = softmax(head_logits(record, stored(record, logits), "a", temperature), temperature)
    order = np.argsort(-logits, axis=-1, kind="stable")
    kept, others = order[..., :k], order[..., k:]
    take = np.take_along_axis
    # a logit z is kept as z - m in float16, which errs by 2^-11 of itself, and so is the tail
    extent = max(float((logits.max(-1) - logits.min(-1)).max()), np.log(CLASSES))
    bound = 2 * np.expm1(2 * extent * 2.0**-11)
    np.testing.assert_allclose(take(found, kept, -1), take(wanted, kept, -1), rtol=bound)
    rest = take(wanted, others, -1)
    even = np.broadcast_to(rest.mean(-1, keepdims=True), rest.shape)
    np.testing.assert_allclose(take(found, others, -1), even, rtol=bound)
    misplaced = np.abs(found - wanted).sum(-1) / 2
    measured = spread_variation(torch.tensor(logits), k, temperature).numpy()
    np.testing.assert_allclose(measured, misplaced, atol=bound)


def test_a_student_is_given_what_the_store_reads_back():
    logits = np.random.default_rng(3).normal(size=(3, 4, CLASSES)).astype(np.float32) * 4
    record = one_head()
    values = stored(record, logits)
    for temperature in TEMPERATURES:
        heads = StoredHeads(StoredTarget(record, None, dict.get, dict.get), temperature)
        found = heads({name: torch.from_numpy(v) for name, v in values.items()})["a"].numpy()
        wanted = head_logits(record, values, "a", temperature).reshape(12, CLASSES)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_temperature_that_was_not_kept_is_refused_with_those_that_were():
    record = one_head()
    values = stored(record, np.zeros((1, 4, CLASSES), np.float32))
    with pytest.raises(UsageError, match=r"temperature 2 is none .* 1, 3: take one of these"):
        head_logits(record, values, "a", 2.0)
    with pytest.raises(StoreMismatch, match=r"head a .* temperature 2 is none .* 1, 3: take one"):
        StoredHeads(StoredTarget(record, None, dict.get, dict.get), 2.0)


def test_of_equal_logits_the_first_classes_are_kept():
    kept = TopK(k=2, temperatures=(1.0,), variation=(0.0,), crops=1)
    found = largest_logits(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), kept)
    assert found[INDEX].tolist() == [[1.0, 2.0]] and found[LOGIT].tolist() == [[0.0, 0.0]]
    assert found[TAIL][0, 0] == pytest.approx(np.log(1 + np.exp(-2)))


@pytest.mark.parametrize(("classes", "k"), [(400, 50), (400, 100), (100, 50), (100, 26), (100, 25)])
def test_largest_logits_are_kept_only_where_they_take_less_room_than_all(classes, k):
    options = TargetOptions(heads="", head_encoding="top-k", head_top_k=k)
    found = head_encoding(options, 64, classes)
    smaller = 4 * k + 4 < classes + 8  # a class and a logit in 2 bytes each; scale and offset
    assert (found.encoding == "top-k") == smaller
    assert str(found) == (f"top-k of {k}" if smaller else "dense-int8")


def test_the_recorded_loss_is_that_of_the_teachers_own_answers(tmp_path):
    folder = scan_folder(write_folder(tmp_path, classes=2, per_class=3))
    teacher = as_teacher(seeded(lambda: create("resnet8", 100)), "resnet8", 32, classes=100)
    sample = CropSample(folder=folder, sampler=CentreCrop(), seed=0, num_views=1, batch_size=4,
                        workers=1)  # fmt: skip
    options = TargetOptions(heads="", head_encoding="top-k", head_top_k=K)
    (plan,) = plan_targets(teacher, options, sample, 1)
    (head,) = head_settings(plan.record).heads
    pixels = np.concatenate([batch for batch, _ in sample.crops(teacher, 1)])
    images = torch.from_numpy((pixels / 255.0 - 0.5) / 0.25).float().permute(0, 3, 1, 2)
    turned = torch.stack([torch.rot90(images, r, (2, 3)) for r in range(4)], 1).flatten(0, 1)
    with torch.inference_mode():
        logits = teacher.model(turned).numpy()
    assert head.top_k.crops == 6 and head.top_k.k == K
    for temperature, measured in zip(TEMPERATURES, head.top_k.variation, strict=True):
        p = np.sort(softmax(logits, temperature), axis=-1)[:, ::-1]
        rest = p[:, K:]
        lost = np.abs(rest - rest.mean(-1, keepdims=True)).sum(-1).mean() / 2
        assert measured == pytest.approx(lost, abs=2e-5)
        assert lost > 0.01, "the comparison could fail"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images of 3 classes, a teacher with branches, and its store of 2 of 3 (12) logits."""
    root = tmp_path_factory.mktemp("top_k")
    folder = write_folder(root / "images", classes=3, per_class=6)
    fit(request(root / "teacher", method="hsakd-teacher", data=str(folder), epochs=1,
                views_per_image=2, batch_size=12))  # fmt: skip
    return root


def labelled(root, *more):
    weights = root / "teacher" / "student.safetensors"
    arguments = [
        "run", "--teacher", f"file:{weights}", "--data", root / "images", "--crops", 2, "--top-k",
        3, "--heads", "--head-encoding", "top-k", "--workers", 1, "--batch-size", 18, "--out",
        root / "store.zarr", "--no-teacher-check", *more,
    ]  # fmt: skip
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_run_prints_the_loss_and_a_student_learns_from_what_is_kept(world, tmp_path):
    done = labelled(world, "--head-top-k", 3)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"branch1 keeps 3 of 12 logits: .* % at T = 3 of the probability misplaced", done.output
    )
    record = LabelStore.open(world / "store.zarr").spec.targets["heads/hsakd-resnet8"]
    kept = {head.name: head.encoding for head in head_settings(record).heads}
    # 3 of 12 take 16 bytes a row of 20; all three classes take less than 3 of them
    assert kept == {"class": "dense", "branch1": "top-k", "branch2": "top-k", "branch3": "top-k"}
    result = fit(request(tmp_path / "run", labels=world / "store.zarr", method="hsakd", lr=0.05,
                         views_per_image=2, batch_size=12, epochs=1))  # fmt: skip
    assert (result.out / "student.safetensors").exists()
    again = labelled(world, "--head-top-k", 2)
    assert isinstance(again.exception, StoreMismatch)
    assert 'is "top-k of 2", not "top-k of 3"' in str(again.exception)


def test_classes_beyond_a_head_are_found_and_never_used_as_places(world):
    if not (world / "store.zarr").exists():
        labelled(world, "--head-top-k", 3)
    path = "heads/hsakd-resnet8/branch1_index"
    array = zarr.open_array(str(world / "store.zarr" / path), mode="r+")
    sound = array[...]
    try:
        for wrong, what in ((12, "beyond the head's 12"), (int(sound[4, 1, 2, 0]), "twice")):
            changed = sound.copy()
            changed[4, 1, 2, 1] = wrong
            array[...] = changed
            with pytest.raises(CorruptStore, match=what):
                LabelStore.open(world / "store.zarr").read_target(
                    "heads/hsakd-resnet8", slice(None)
                )
            store = LabelStore.open(world / "store.zarr")
            plan = plan_epoch(0, 0, num_images=18, stored_views=2, views_per_image=2)
            with pytest.raises(CorruptStore, match=f"image 4 has a class .*{what}"):
                read_target_plane(store, "heads/hsakd-resnet8", plan, np.arange(18))
            report = verify(world / "store.zarr", full=True)
            assert any("branch1_index" in str(problem) for problem in report.problems)
    finally:
        array[...] = sound


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match="--head-top-k is 9 with --head-encoding auto"):
        TargetOptions(heads="", head_top_k=9)
    with pytest.raises(UsageError, match="keeps 12 of 12 logits; expected fewer"):
        one_head(12, 12)


def test_settings_of_other_heads_are_those_of_earlier_releases():
    spec = HeadSpec(name="a", width=8, classes=9, encoding="dense", stored="fp16")
    record = head_record(name="h", teacher="t", views=1, rotations=4, heads=[spec], weights={})
    assert json.loads(json.dumps(record.settings))["heads"] == [
        {"name": "a", "width": 8, "classes": 9, "encoding": "dense", "stored": "fp16"}
    ]
