"""Streaming moments and the basis made of them, against a full float64 SVD."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from PIL import Image

from labelgen.basis import CropSample, Moments, fit_basis, gather_moments
from labelgen.crop_worker import StoredViews
from labelgen.extract import extractor_for
from labelgen.forward import Forward
from labelgen.plan import Unit
from storage.errors import TeacherError, TeachonceError, UsageError
from storage.images import content_digest, scan_folder
from storage.pixels import cut_view, decode_rgb
from storage.views import RandomResizedCrop, Views
from tests.labelling import jpeg_bytes, tiny_teacher


def rows_of(rng: Generator, count: int, width: int, rank: int) -> np.ndarray:
    """float32 [count, width] of the given rank about a mean far from zero."""
    scales = 2.0 ** -np.arange(rank)
    low = rng.normal(size=(count, rank)) * scales
    mixed = low @ rng.normal(size=(rank, width)) + rng.normal(size=width) * 10
    return mixed.astype(np.float32)


def streamed(rows: np.ndarray, cuts: list[int]) -> Moments:
    parts = [Moments.of(torch.from_numpy(part)) for part in np.split(rows, cuts) if len(part)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    return merged


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(2, 60), width=st.integers(1, 24),
    data=st.data(),
)  # fmt: skip
def test_the_basis_keeps_the_energy_of_a_full_float64_svd(
    seed: int, count: int, width: int, data: st.DataObject
) -> None:
    """Random and rank-deficient rows, cut anywhere: 1e-6 of the projected energy (issue 4)."""
    rng = np.random.default_rng(seed)
    true_rank = data.draw(st.integers(1, width))
    r = data.draw(st.integers(1, width))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
    rows = rows_of(rng, count, width, true_rank)
    basis = fit_basis(streamed(rows, cuts), r)

    exact = rows.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    best = float((singular[:r] ** 2).sum())
    kept = float(((centred @ basis.vectors.astype(np.float64)) ** 2).sum())
    total = float((singular**2).sum())
    assert abs(kept - best) <= 1e-6 * total + 1e-9
    np.testing.assert_allclose(basis.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-5)
    spectrum = np.zeros(width)
    spectrum[: len(singular)] = singular / np.sqrt(count)
    # the difference of two large squares: sqrt of float64's rounding of |mean|^2
    np.testing.assert_allclose(basis.spectrum, spectrum, rtol=1e-6, atol=1e-5)
    identity = basis.vectors.T @ basis.vectors
    np.testing.assert_allclose(identity, np.eye(r), atol=1e-5)


def test_well_separated_directions_are_the_singular_vectors_themselves() -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng, 200, 12, 12)
    basis = fit_basis(Moments.of(torch.from_numpy(rows)), 5)
    exact = rows - rows.astype(np.float64).mean(axis=0)
    right = np.linalg.svd(exact)[2][:5].T
    cosines = np.abs((right * basis.vectors).sum(axis=0))
    assert cosines.min() > 1 - 1e-6


def test_signs_are_fixed_by_the_largest_entry() -> None:
    rows = torch.from_numpy(rows_of(np.random.default_rng(1), 50, 8, 8))
    basis = fit_basis(Moments.of(rows), 8)
    largest = basis.vectors[np.abs(basis.vectors).argmax(axis=0), np.arange(8)]
    assert (largest > 0).all()
    mirrored = fit_basis(Moments.of(-rows), 8)
    np.testing.assert_allclose(mirrored.vectors, basis.vectors, atol=1e-5)
    np.testing.assert_allclose(mirrored.mean, -basis.mean)


def test_ranks_are_nested() -> None:
    moments = Moments.of(torch.from_numpy(rows_of(np.random.default_rng(2), 50, 8, 8)))
    narrow, wide = fit_basis(moments, 3), fit_basis(moments, 7)
    assert np.array_equal(narrow.vectors, wide.vectors[:, :3])
    assert np.array_equal(narrow.spectrum, wide.spectrum)


def test_an_uncentred_basis_keeps_the_direction_of_the_mean() -> None:
    rows = rows_of(np.random.default_rng(3), 100, 6, 6)
    basis = fit_basis(Moments.of(torch.from_numpy(rows)), 1, centred=False)
    right = np.linalg.svd(rows.astype(np.float64))[2][0]
    assert abs(float(right @ basis.vectors[:, 0])) > 1 - 1e-6
    assert not basis.mean.any()
    rms = np.sqrt(((rows.astype(np.float64) @ right) ** 2).mean())
    assert basis.spectrum[0] == pytest.approx(rms, rel=1e-9)


def test_moments_hold_no_rows() -> None:
    """O(D^2): the size does not grow with what went in."""
    small = streamed(rows_of(np.random.default_rng(4), 10, 5, 5), [])
    large = streamed(rows_of(np.random.default_rng(4), 5000, 5, 5), [100, 1000])
    for moments in (small, large):
        assert moments.total.shape == (5,) and moments.gram.shape == (5, 5)
        assert moments.gram.dtype == moments.total.dtype == torch.float64
    assert large.count == 5000


def test_ranks_and_widths_that_cannot_be_are_named() -> None:
    five = Moments.of(torch.zeros(3, 5))
    with pytest.raises(UsageError, match="basis of 6 of 5 dimensions; expected 1 to 5"):
        fit_basis(five, 6)
    with pytest.raises(UsageError, match="moments of 5 and of 4 dimensions"):
        five.merge(Moments.of(torch.zeros(3, 4)))
    with pytest.raises(UsageError, match="no rows"):
        fit_basis(Moments.of(torch.zeros(0, 5)), 1)


def write_photos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(9)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
        (folder / f"{i}.jpg").write_bytes(jpeg_bytes(pixels))


def sample_of(folder: Path, **changes: object) -> CropSample:
    values: dict[str, object] = {
        "folder": scan_folder(folder), "sampler": RandomResizedCrop(), "seed": 3, "num_views": 4,
        "batch_size": 4, "workers": 1,
    } | changes  # fmt: skip
    return CropSample(**values)  # type: ignore[arg-type]


def plain_features(folder: Path, teacher: object, sample: CropSample, views: int) -> np.ndarray:
    """Features of the first views of every image, one crop after the other."""
    forward, extractor = Forward(teacher, 1), extractor_for(teacher, ["feature"])  # type: ignore
    found = []
    for row in sample.rows():
        data = (folder / sample.folder.keys[row]).read_bytes()
        image = decode_rgb(data)
        drawn = sample.sampler.draw(3, content_digest(data), image.height, image.width, 0, views)
        for box, flip in zip(drawn.box, drawn.flip, strict=True):
            crop = cut_view(image, box, bool(flip), 16, "bilinear")
            found.append(extractor(forward.normalise(crop[None].copy()))["feature"][0].numpy())
    return np.stack(found)


@pytest.mark.parametrize(("crops_needed", "views"), [(5, 1), (12, 2), (1000, 4)])
def test_the_moments_of_a_sample_are_those_of_its_crops_one_by_one(
    tmp_path: Path, crops_needed: int, views: int
) -> None:
    write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "teacher").mkdir()
    teacher = tiny_teacher(tmp_path / "teacher")
    sample = sample_of(tmp_path / "photos")
    fitted = gather_moments(
        teacher, extractor_for(teacher, ["feature"]), sample,
        {"feature": lambda outputs: outputs["feature"]}, crops_needed=crops_needed,
    )  # fmt: skip
    expected = plain_features(tmp_path / "photos", teacher, without_bad(sample), views)
    assert (fitted.images, fitted.views) == (5, views)
    moments = fitted.moments["feature"]
    assert moments.count == len(expected) == 5 * fitted.views
    np.testing.assert_allclose(moments.total, expected.sum(axis=0), rtol=1e-4, atol=1e-4)
    gram = expected.astype(np.float64).T @ expected
    np.testing.assert_allclose(moments.gram, gram, rtol=1e-4, atol=1e-4)


def without_bad(sample: CropSample) -> CropSample:
    folder = sample.folder
    kept = [i for i, key in enumerate(folder.keys) if key != "bad.jpg"]
    keys, targets = (tuple(v[i] for i in kept) for v in (folder.keys, folder.targets))
    return replace(sample, folder=replace(folder, keys=keys, targets=targets))


def test_the_sample_is_drawn_by_the_seed_and_no_larger_than_asked(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 9)
    first = sample_of(tmp_path / "photos", images=4).rows()
    assert first == sample_of(tmp_path / "photos", images=4).rows() == sorted(set(first))
    assert len(first) == 4 and sample_of(tmp_path / "photos").rows() == list(range(9))
    others = {tuple(sample_of(tmp_path / "photos", images=4, seed=s).rows()) for s in range(8)}
    assert len(others) > 1


def test_stored_views_are_cut_where_they_are_given(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 6)
    folder = scan_folder(tmp_path / "photos")
    (tmp_path / "teacher").mkdir()
    teacher = tiny_teacher(tmp_path / "teacher")

    def stored(unit: Unit) -> StoredViews:
        digest = content_digest(folder.path(unit.row).read_bytes())
        box = np.array([[unit.row, 2, 20, 21]] * unit.num_views, np.uint16)
        return StoredViews(digest, Views(box, np.zeros(unit.num_views, np.uint8)))

    sample = sample_of(tmp_path / "photos", images=3, stored=stored)
    found = [(p.copy(), rows.copy()) for p, rows in sample.crops(teacher, 1)]
    pixels = np.concatenate([p for p, _ in found])
    rows = np.concatenate([r for _, r in found])
    assert rows.tolist() == sample.rows()
    for crop, row in zip(pixels, rows, strict=True):
        image = Image.open(folder.path(row)).convert("RGB")
        box = np.array([row, 2, 20, 21], np.uint16)
        assert np.array_equal(crop, cut_view(image, box, False, 16, "bilinear"))


def test_a_sample_without_a_sound_image_and_a_teacher_of_nan_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.jpg").write_bytes(b"no photo")
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "teacher").mkdir()
    teacher = tiny_teacher(tmp_path / "teacher")
    rows = {"feature": lambda outputs: outputs["feature"]}
    extractor = extractor_for(teacher, ["feature"])
    with pytest.raises(TeachonceError, match="none of 1 images"):
        gather_moments(teacher, extractor, sample_of(tmp_path / "bad"), rows, crops_needed=1)
    with torch.no_grad():
        teacher.model.layer3[0].bn2.bias.fill_(float("nan"))
    with pytest.raises(TeacherError, match="gives NaN or infinite feature outputs"):
        gather_moments(teacher, extractor, sample_of(tmp_path / "photos"), rows, crops_needed=1)
