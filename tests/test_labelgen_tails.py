"""What a run keeps of the dense outputs: mean tails and the certificate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelling import NUM_CLASSES, plain_outputs, tiny_teacher
from PIL import Image

from labelgen.run import generate
from storage.dictionary import DictionaryCodec
from storage.lists import SPREAD_STEP
from storage.store import LabelStore


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng([7, 21])
    for i in range(11):
        pixels = rng.integers(0, 256, (40 + i, 50, 3)).astype(np.uint8)
        path = tmp_path / "photos" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((64, 48)).save(path)
    (tmp_path / "photos" / "class1" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.mark.parametrize(("crops", "batch_size"), [(12, 8), (6, 16)])
def test_mean_tails_and_certificate_are_those_of_a_plain_loop(
    tmp_path: Path, photos: Path, crops: int, batch_size: int
) -> None:
    teacher = tiny_teacher(tmp_path)
    options = {"crops": crops, "top_k": 2, "batch_size": batch_size, "workers": 2}
    (photos / "class1" / "broken.png").unlink()
    generate(teacher, photos, tmp_path / "s", block_images=4, **options)
    store = LabelStore.open(tmp_path / "s")
    name = teacher.spec.name
    codec = store.spec.teachers[name].codec
    assert isinstance(codec, DictionaryCodec) and codec.spread_classes == crops // 2
    _, log_probs = plain_outputs(store, teacher, photos)
    tails = store.read_image_tails(name)
    assert tails is not None
    for row, views in enumerate(np.exp(log_probs.astype(np.float64))):
        mass = np.zeros(NUM_CLASSES)
        for probs in views:
            kept = np.argsort(-probs)[:2]
            mass += [0 if c in kept else p for c, p in enumerate(probs)]
        used = tails.share[row] > 0
        largest = set(np.argsort(-mass)[: codec.spread_classes].tolist())
        assert set(tails.index[row][used].tolist()) == largest & set(np.flatnonzero(mass).tolist())
        share = mass[tails.index[row][used]] / mass[list(largest)].sum()
        ratio = np.log(tails.share[row][used] / share)
        assert np.abs(ratio).max() <= SPREAD_STEP + 1e-4  # its own half step, and the sum's
    certificate = store.spec.teachers[name].measured["certificate"]
    plane = store.read_plane(0, crops, name)
    views = np.arange(4) * crops // 4
    dense = np.exp(log_probs[:, views].astype(np.float64))
    index = plane.index[:, views].astype(int)
    kept = np.take_along_axis(dense, index, -1)
    exact = np.repeat((1 - kept.sum(-1, keepdims=True)) / (NUM_CLASSES - 2), NUM_CLASSES, -1)
    np.put_along_axis(exact, index, kept, -1)
    divergence = (dense * np.log(dense / exact)).sum(-1)
    stated = certificate["kl"]["1"]["exact"]
    assert certificate["crops"] == divergence.size == 44
    assert stated["mean"] == pytest.approx(divergence.mean(), abs=1e-5)
    assert stated["max"] == pytest.approx(divergence.max(), abs=1e-5)


def test_masked_images_are_in_no_certificate_and_have_no_tail(tmp_path: Path, photos: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    generate(teacher, photos, tmp_path / "s", crops=6, top_k=2, batch_size=8, block_images=4)
    store = LabelStore.open(tmp_path / "s")
    name = teacher.spec.name
    assert store.spec.teachers[name].measured["certificate"]["crops"] == 11 * 4
    tails = store.read_image_tails(name)
    assert tails is not None
    assert np.array_equal(tails.share.sum(axis=1) > 0, store.read_status() == 0)


def test_the_certificate_does_not_depend_on_what_was_labelled_when(
    tmp_path: Path, photos: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    options = {"crops": 6, "top_k": 2, "batch_size": 8, "block_images": 4}
    whole = generate(teacher, photos, tmp_path / "a", **options)
    generate(teacher, photos, tmp_path / "b", **options)
    (tmp_path / "b" / "manifest.json").unlink()
    (tmp_path / "b" / "receipts" / "000001.json").unlink()  # as if killed in the second block
    again = generate(teacher, photos, tmp_path / "b", **options)
    assert again.new_crops < whole.new_crops and again.root == whole.root
