"""FerKD as a step from a store to a store: what becomes of every label, and what is proven."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_folder
from safetensors.torch import load_file
from store_helpers import CLASSES, fill_store, make_spec, make_teacher
from training import make_store, request, write_teacher

from labelgen import load_teacher, resolve
from labelgen.verify_labels import verify_labels
from storage.archives.rows import store_rows
from storage.archives.tables_export import export_parquet
from storage.cli import cli
from storage.codecs import TopKCodec, TopKLabels
from storage.commands.reuse_text import diff_text
from storage.compare import diff
from storage.dictionary import DictionaryCodec
from storage.errors import IncompleteStore, StoreError, StoreMismatch, UsageError
from storage.ferkd import ferkd
from storage.info import info_text, store_info
from storage.origin import check_origin
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore
from storage.thresholds import Thresholds, stored_thresholds
from storage.verify import verify
from trainer import fit
from trainer.batch import Batch, TopKTarget
from trainer.labels import decode_topk, within
from trainer.method_config import FerkdConfig
from trainer.methods import FKD, FerKD

C = 7
CODECS = {
    "top-k": TopKCodec(num_classes=C, top_k=3),
    "dictionary": DictionaryCodec(num_classes=C, top_k=3, spread_classes=3),
    "all classes": DictionaryCodec(num_classes=C, top_k=C, spread_classes=0),
    "one class": TopKCodec(num_classes=C, top_k=1),
}
THRESHOLDS = Thresholds(low=0.35, middle=0.6, top=0.97, epsilon=0.2)


def sealed(path, codec, masked=(4,), **changes):
    spec = make_spec(teachers=[make_teacher(codec=codec, **changes)], block_images=5)
    store = fill_store(path, spec, masked)
    seal(store)
    return store


def decoded(store):
    """Dense labels with an even tail, float64 [N, M, C], and the largest probability [N, M]."""
    plane = store.read_plane(0, store.spec.num_views, "toy")
    codec = store.spec.teachers["toy"].codec
    labels = TopKLabels(plane.index, plane.code, plane.tail)
    return codec.dense(labels).astype(np.float64), codec.decode(labels)[0][..., 0]


@pytest.mark.parametrize("name", CODECS)
def test_every_label_becomes_what_the_formula_says_and_all_else_stays(tmp_path, name):
    codec = CODECS[name]
    parent = sealed(tmp_path / "a", codec)
    ferkd(tmp_path / "a", tmp_path / "b", THRESHOLDS)
    store = LabelStore.open(tmp_path / "b")
    assert verify(store.path, full=True).problems == []
    before, sure = decoded(parent)
    after, now = decoded(store)
    images = parent.read_images()
    own = np.array([make_teacher().classes.index(CLASSES[t]) for t in images.target])
    counts = {"softened": 0, "left_out": 0, "kept": 0}
    for row in range(10):
        for view in range(6):
            s = sure[row, view]
            if images.status[row]:
                assert np.isnan(after[row, view]).all()
            elif 0.35 <= s < 0.6:
                counts["softened"] += 1
                wanted = np.full(C, 0.2 / 6)
                wanted[own[row]] = 0.8
                error = np.abs(after[row, view] - wanted).max()
                assert error <= codec.max_error
                assert 0.35 <= now[row, view] <= 0.97
            else:
                counts["left_out" if s < 0.35 or s > 0.97 else "kept"] += 1
                np.testing.assert_array_equal(after[row, view], before[row, view])
    assert min(counts.values()) > 0 and sum(counts.values()) == 9 * 6
    origin = store.attributes["origin"]
    assert origin["kind"] == "ferkd" and origin["adapted"]["toy"]["counts"] == counts
    report = check_origin(store)
    assert not report.problems and set(report.proven) == {origin["parents"][0]["root"]}
    for other in ("images/digest", "images/target"):
        np.testing.assert_array_equal(
            parent.read_array(other, slice(None)), store.read_array(other, slice(None))
        )
    assert not any(n.startswith("labels/") for _, n, _ in origin["ancestors"][0]["objects"]
                   if not n.endswith("zarr.json"))  # fmt: skip


def test_only_leaving_out_copies_every_file_of_labels(tmp_path):
    parent = sealed(tmp_path / "a", CODECS["dictionary"])
    ferkd(tmp_path / "a", tmp_path / "b", Thresholds(low=0.4, middle=0.4, top=0.9))
    store = LabelStore.open(tmp_path / "b")
    assert store.spec.teachers["toy"].codec == parent.spec.teachers["toy"].codec
    for block in range(store.blocks):
        for name in store.block_objects(block):
            assert (store.path / name).read_bytes() == (parent.path / name).read_bytes()


def test_card_info_and_diff_say_what_was_done_and_no_certificate_is_passed_on(tmp_path):
    sealed(tmp_path / "a", CODECS["dictionary"])
    ferkd(tmp_path / "a", tmp_path / "b", THRESHOLDS)
    store = LabelStore.open(tmp_path / "b")
    info = store_info(store)
    assert info["teachers"]["toy"]["inherited"] == []
    shown = info_text(info).split("adapted: ")[1].splitlines()[0]
    assert sorted(shown.split(", ")) == ["epsilon 0.2", "low 0.35", "method ferkd", "middle 0.6",
                                         "top 0.97"]  # fmt: skip
    report = diff(LabelStore.open(tmp_path / "a"), store)
    assert not report.equal
    text = diff_text("a", "b", report.to_json(3))
    assert "toy.adapted" in text and "common labels differ" in text
    subset(store, tmp_path / "c", Selection(views=(0, 4)))
    cut = LabelStore.open(tmp_path / "c").spec.teachers["toy"]
    assert stored_thresholds(cut.adapted) == THRESHOLDS


def test_what_can_not_be_adapted_is_refused_and_nothing_is_written(tmp_path):
    path, out = tmp_path / "a", tmp_path / "b"
    sealed(path, CODECS["dictionary"])
    other = tmp_path / "other"
    sealed(other, CODECS["dictionary"], classes=tuple("tuvwxyz"))
    nameless = tmp_path / "nameless"
    sealed(nameless, CODECS["dictionary"], classes=None)
    cases = [
        (path, Thresholds(), None, UsageError, "change nothing"),
        (path, Thresholds(middle=0.5, top=0.85, epsilon=0.2), None, UsageError, "left out"),
        (path, THRESHOLDS, "else", UsageError, "no labels of else: choose with --labels toy"),
        (other, THRESHOLDS, None, StoreMismatch, r"none of the 7 of toy .*'t'.* more of 3"),
        (nameless, THRESHOLDS, None, StoreMismatch, "images: 3 classes, and toy has 7"),
    ]
    for store, thresholds, teacher, error, message in cases:
        with pytest.raises(error, match=message):
            ferkd(store, out, thresholds, teacher)
    fill_store(tmp_path / "open")
    with pytest.raises(IncompleteStore):
        ferkd(tmp_path / "open", out, THRESHOLDS)
    assert not out.exists()
    ferkd(path, out, THRESHOLDS)
    with pytest.raises(StoreMismatch, match="were adapted before"):
        ferkd(out, tmp_path / "twice", THRESHOLDS)
    with pytest.raises(StoreError, match="exists"):
        ferkd(path, out, THRESHOLDS)


def test_the_command_takes_the_same_thresholds_and_middle_is_low_unless_given(tmp_path):
    sealed(tmp_path / "a", CODECS["dictionary"])
    words = ["ferkd", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--low", "0.35", "--json"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    adapted = LabelStore.open(tmp_path / "b").spec.teachers["toy"].adapted
    assert stored_thresholds(adapted) == Thresholds(low=0.35, middle=0.35)
    assert json.loads(done.stdout)["origin"]["adapted"]["toy"]["low"] == 0.35


@pytest.mark.parametrize(
    "adapted",
    [{"method": "other", "low": 0.1}, {"low": 0.1}, {"method": "ferkd", "sure": 1},
     {"method": "ferkd", "low": "much"}, {"method": "ferkd", "low": 0.9, "middle": 0.1}],
)  # fmt: skip
def test_an_adaptation_that_is_not_known_is_refused(adapted):
    with pytest.raises(UsageError):
        make_teacher(adapted=adapted)


def test_the_loss_of_the_new_store_is_that_of_ferkd_on_the_fly(tmp_path):
    parent = sealed(tmp_path / "a", CODECS["dictionary"], masked=())
    ferkd(tmp_path / "a", tmp_path / "b", THRESHOLDS)
    store = LabelStore.open(tmp_path / "b")
    own = torch.tensor([make_teacher().classes.index(CLASSES[t])
                        for t in parent.read_images().target]).repeat_interleave(6)  # fmt: skip
    logits = torch.tensor(np.random.default_rng(4).normal(0, 2, (60, C)))

    def batch(store, low, top):
        plane, codec = store.read_plane(0, 6, "toy"), store.spec.teachers["toy"].codec
        probs, tail = decode_topk(
            torch.tensor(plane.code.reshape(60, 3)), torch.tensor(plane.tail.reshape(60)),
            codec.step, torch.from_numpy(codec.tail_table()),
        )  # fmt: skip
        index = torch.tensor(plane.index.reshape(60, 3).astype(np.int64))
        counts = within(probs[:, 0], low, top)
        return Batch(torch.zeros(60, 3, 4, 4), own, TopKTarget(index, probs, tail, counts=counts))

    config = FerkdConfig(low=0.35, middle=0.6, top=0.97, epsilon=0.2)
    live = FerKD(config).loss(logits, batch(parent, 0, 1))["soft_ce"]
    stored = FKD().loss(logits, batch(store, 0.35, 0.97))["soft_ce"]
    # equal but for the rounding of softened labels, here 30 % of them
    error = store.spec.teachers["toy"].codec.max_error
    spread = float(
        (logits.log_softmax(-1).max(-1).values - logits.log_softmax(-1).min(-1).values).mean()
    )
    assert 0 < abs(float(live - stored)) < error * spread
    plain = FKD().loss(logits, batch(parent, 0, 1))["soft_ce"]
    assert abs(float(live - stored)) < 0.02 * abs(float(live - plain))


def test_students_of_the_new_store_are_those_of_ferkd_on_the_fly_to_the_bit(tmp_path):
    folder = write_folder(tmp_path / "images", classes=3, per_class=6)
    make_store(folder, tmp_path / "store.zarr")
    thresholds = {"low": 0.5, "middle": 0.5, "top": 0.99}
    ferkd(tmp_path / "store.zarr", tmp_path / "sure.zarr", Thresholds(**thresholds))
    live = fit(request(tmp_path / "live", labels=tmp_path / "store.zarr", method="ferkd", epochs=1,
                       settings={f"ferkd.{n}": v for n, v in thresholds.items()}))  # fmt: skip
    stored = fit(request(tmp_path / "stored", labels=tmp_path / "sure.zarr", epochs=1))
    plain = fit(request(tmp_path / "plain", labels=tmp_path / "store.zarr", epochs=1))
    a, b, c = (load_file(r.out / "student.safetensors") for r in (live, stored, plain))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    teacher = load_teacher(resolve(f"file:{write_teacher(tmp_path / 't.safetensors')}"), "cpu")
    with pytest.raises(StoreMismatch, match="adapted"):
        verify_labels(LabelStore.open(tmp_path / "sure.zarr"), teacher, folder)


def test_exports_leave_out_what_does_not_count(tmp_path):
    parent = sealed(tmp_path / "a", CODECS["dictionary"])
    ferkd(tmp_path / "a", tmp_path / "b", THRESHOLDS)
    _, sure = decoded(parent)
    keep = (sure >= 0.35) & (sure <= 0.97)
    rows = list(store_rows(LabelStore.open(tmp_path / "b"), "toy"))
    assert [0 if row.labels is None else len(row.labels.rest) for row in rows] == keep.sum(
        1
    ).tolist()
    whole = list(store_rows(parent, "toy"))
    for before, after, kept in zip(whole, rows, keep, strict=True):
        np.testing.assert_array_equal(before.box[kept], after.box)
        np.testing.assert_array_equal(before.flip[kept], after.flip)
    pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match="leave views out"):
        export_parquet(LabelStore.open(tmp_path / "b"), tmp_path / "out")
