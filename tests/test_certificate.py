"""What a store states about its fidelity is what plain arithmetic finds, however it was written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import make_block, make_log_probs, make_spec, make_teacher

from storage.certificate import LabelSample, bytes_by_part, measure_sample, sample_positions
from storage.codecs import SoftLabels, TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec
from storage.errors import UsageError
from storage.info import info_text, store_info
from storage.inherited import inherited_certificates
from storage.label_arrays import to_arrays
from storage.lists import mean_tails
from storage.manifest import read_manifest
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore
from storage.temperature import soften, soften_dense, temperature_error
from storage.verify import verify

VIEWS, CLASSES = 6, 7


def divergence(p, q, temperature):
    p, q = (np.asarray(x, np.float64) ** (1 / temperature) for x in (p, q))
    p, q = p / p.sum(), q / q.sum()
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def make_sample(rows: range, num_images: int) -> LabelSample:
    image, view = sample_positions(num_images, VIEWS, rows)
    logs = [make_log_probs(rows[i], VIEWS, CLASSES)[v] for i, v in zip(image, view, strict=True)]
    dense = np.array(logs, np.float32).reshape(len(logs), CLASSES)
    return LabelSample(image, view, dense)


def write(path, order=None, codec=None):
    codec = codec or DictionaryCodec(num_classes=CLASSES, top_k=3, spread_classes=3)
    spec = make_spec(num_views=VIEWS, teachers=[make_teacher(codec=codec)])
    store = LabelStore.open_or_create(path, spec)
    for block in order or range(store.blocks):
        data = make_block(spec, block)
        data.samples["toy"] = make_sample(spec.block_rows(block), spec.num_images)
        store.write_block(block, data, "cpu")
    return store


def test_divergences_are_those_of_the_decoded_labels():
    codec = DictionaryCodec(num_classes=CLASSES, top_k=3, spread_classes=3)
    logs = np.stack([make_log_probs(row, VIEWS, CLASSES) for row in range(4)])
    labels = codec.encode(logs)
    mass = np.exp(logs)
    np.put_along_axis(mass, labels.index.astype(int), 0, axis=-1)
    arrays = to_arrays(codec, labels, np.ones(4, bool), mass.sum(axis=1))
    tails = mean_tails(codec, arrays["classes"], arrays["spread"])
    sample = make_sample(range(4), 4)
    found = measure_sample(codec, labels, tails, sample)
    assert sorted({name.split()[0] for name in found}) == ["even", "exact", "mean"]
    for at, (i, v) in enumerate(zip(sample.image, sample.view, strict=True)):
        p = np.exp(logs[i, v])
        top = np.argsort(-p)[:3]
        exact = np.full(CLASSES, (1 - p[top].sum()) / (CLASSES - 3))
        exact[top] = p[top]
        one = TopKLabels(labels.index[i, v], labels.code[i, v], labels.tail[i, v])
        decoded = {"exact": exact, "even": codec.dense(one),
                   "mean": codec.dense_with_tail(labels, tails)[i, v]}  # fmt: skip
        for name, q in decoded.items():
            for temperature in (1, 2, 4):
                expected = divergence(p, q, temperature)
                assert found[f"{name} {temperature}"][at] == pytest.approx(expected, abs=3e-6)


def test_the_sample_is_spread_over_images_and_views_and_split_by_blocks():
    spec = make_spec(num_images=1000, num_views=20, block_images=64)
    seen = set()
    for block in range(spec.num_blocks):
        rows = spec.block_rows(block)
        image, view = sample_positions(1000, 20, rows)
        assert (image < len(rows)).all()
        seen |= {(rows.start + i, v) for i, v in zip(image.tolist(), view.tolist(), strict=True)}
    assert len(seen) == 256 * 4
    images = np.unique([i for i, _ in seen])
    assert np.diff(images).max() <= 4 and {v for _, v in seen} == {0, 5, 10, 15}


def test_the_certificate_is_the_same_whatever_order_blocks_were_written_in(tmp_path):
    one, two = seal(write(tmp_path / "a")), seal(write(tmp_path / "b", order=[2, 0, 1, 0]))
    assert one.root == two.root
    assert verify(tmp_path / "a", full=True).problems == []
    store = LabelStore.open(tmp_path / "a")
    stated = store.spec.teachers["toy"].measured["certificate"]
    assert stated["crops"] == 10 * 4
    sizes = read_manifest(store.path).sizes()
    files = {n: s for n, s in sizes.items() if "/c/" in n and not n.startswith("images/")}
    assert sum(stated["bytes_per_crop"].values()) == pytest.approx(
        sum(files.values()) / 60, abs=0.01
    )
    assert sorted(stated["kl"]) == ["1", "2", "4"]
    text = info_text(store_info(store))
    assert "fidelity on 40 crops" in text and "T 4" in text and "mean excess" in text


def test_masked_images_and_stores_without_dense_outputs_leave_no_trace(tmp_path):
    spec = make_spec()
    store = LabelStore.create(tmp_path / "s", spec)
    for block in range(store.blocks):
        store.write_block(block, make_block(spec, block), "cpu")
    seal(store)
    measured = LabelStore.open(tmp_path / "s").spec.teachers["toy"].measured
    assert "certificate" not in measured and measured["labels"] == 60


def test_bytes_are_those_of_the_parts_files():
    sizes = {"labels/a/place/c/0/0/0": 10, "labels/a/classes/c/0/0": 5, "labels/a/fall/c/0/0/0": 4,
             "labels/a/spread/c/0/0": 2, "views/flip/c/0/0": 3, "views/crop/c/0/0": 1,
             "views/draw/c/0/0": 12, "features/f/value/c/0/0/0": 8, "tokens/t/tail.safetensors": 2,
             "zarr.json": 7}  # fmt: skip
    found = bytes_by_part(sizes, 2)
    assert found == {"ids": 7.5, "values": 2.0, "tail": 1.0, "boxes": 2.0, "draws": 6.0,
                     "targets": 5.0, "metadata": 3.5}  # fmt: skip


def info_lines(path):
    return info_text(store_info(LabelStore.open(path)))


def test_a_subset_says_whose_certificate_it_shows(tmp_path):
    root = seal(write(tmp_path / "s")).root
    subset(tmp_path / "s", tmp_path / "views", Selection(views=(0, 4)))
    subset(tmp_path / "views", tmp_path / "cut", Selection(top_k=2))
    subset(tmp_path / "cut", tmp_path / "last", Selection(views=(0, 2)))
    assert "measured" not in info_lines(tmp_path / "s").split("fidelity")[1]
    for name, cut in [("views", False), ("cut", True), ("last", True)]:
        store = LabelStore.open(tmp_path / name)
        teacher = store_info(store)["teachers"]["toy"]
        assert "certificate" not in teacher["measured"]
        (found,) = teacher["inherited"]
        stated = LabelStore.open(tmp_path / "s").spec.teachers["toy"].measured["certificate"]
        assert found == {"measured_on": root, "classes_cut_since": cut, **stated}
        text = info_lines(tmp_path / name)
        assert f"measured on its ancestor {root[:12]}" in text and "fidelity on 40 crops" in text
        assert ("keep more classes" in text) == cut


def test_an_unreadable_record_of_ancestors_shows_no_certificate(tmp_path):
    for origin in ("x", {"parents": 3}, {"parents": [{"root": 1, "certificates": {"toy": {}}}]}):
        assert inherited_certificates({"origin": origin}, "toy") == []


@st.composite
def softened(draw):
    num_classes = draw(st.integers(2, 30))
    top_k = draw(st.integers(1, num_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(0, draw(st.sampled_from([0.5, 2, 6])), (5, num_classes))
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    codec = DictionaryCodec(num_classes=num_classes, top_k=top_k, spread_classes=0)
    return codec, logs, draw(st.sampled_from([0.5, 1.0, 2.0, 4.0, 10.0]))


@given(softened())
@settings(max_examples=100)
def test_a_label_at_a_temperature_is_its_dense_form_at_that_temperature(case):
    codec, logs, temperature = case
    labels = codec.encode(logs)
    soft = soften(codec, labels, temperature)
    np.testing.assert_allclose(soft.probs.sum(axis=-1) + soft.rest, 1, atol=1e-5)
    dense = soften_dense(codec.dense(labels).astype(np.float64), temperature)
    np.testing.assert_allclose(codec.dense(soft), dense, atol=1e-5)


@given(softened())
@settings(max_examples=200)
def test_the_error_at_a_temperature_is_within_what_is_stated(case):
    codec, logs, temperature = case
    labels = codec.encode(logs)
    exact = soften_dense(np.exp(logs), temperature)
    kept = np.take_along_axis(exact, labels.index.astype(int), axis=-1)
    error = np.abs(soften(codec, labels, temperature).probs - kept).max(axis=-1)
    # rounding: half a value step; of the tail, half a log step or the angle's (less, above 0.01)
    rounding = np.tanh(codec.step / (4 * temperature)) + (0.25 + 2 * codec.step) / 4 / temperature
    stated = temperature_error(codec, labels, temperature)
    assert (error <= stated * 1.3 + rounding + 1e-5).all()


def test_a_temperature_must_be_positive():
    codec = TopKCodec(num_classes=5, top_k=2)
    labels = codec.encode(np.log(np.full((1, 5), 0.2)))
    for temperature in (0.0, -1.0, float("inf")):
        with pytest.raises(UsageError, match="temperature"):
            soften(codec, labels, temperature)
    assert isinstance(soften(codec, labels, 3.0), SoftLabels)
