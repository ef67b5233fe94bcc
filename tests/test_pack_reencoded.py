"""Re-encoded betons: images of their own, from packing through labels to training."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import write_folder
from odd_images import good_images
from odd_images import write_folder as write_odd
from PIL import Image
from training import make_store, request

from storage import LabelStore
from storage.beton import REENCODED_FORMAT, sidecar_path
from storage.errors import CorruptStore, StoreMismatch, TrainingError, UsageError
from storage.images import ImageStatus, content_digest, scan_folder
from storage.match import match
from storage.pixels import cut_view, decode_rgb
from trainer import fit
from trainer.data import join_store
from trainer.replay import encode, turbojpeg
from trainer.replay.beton import Beton, pack
from trainer.replay.encode import MODE_JPEG, encode_bytes
from trainer.replay.jpeg_structure import ordinary_size
from trainer.replay.loader import FFCVReplayLoader, TorchReplayLoader
from trainer.replay.reencode import Reencoding

SMALL = Reencoding(max_side=40, quality=90)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder, its beton, the re-encoded one, and a store of each."""
    root = tmp_path_factory.mktemp("reencoded")
    write_folder(root / "images", classes=3, per_class=4, sides=(50, 61))
    folder = scan_folder(root / "images")
    pack(folder, root / "plain.beton")
    pack(folder, root / "small.beton", reencoding=SMALL)
    for name in ("plain", "small"):
        make_store(root / f"{name}.beton", root / f"{name}.zarr")
    return root


def teacher_of(store):
    return next(iter(store.spec.teachers))


def test_rows_are_what_pillow_makes_of_the_source_images(tmp_path):
    write_odd(tmp_path / "odd")
    folder = scan_folder(tmp_path / "odd")
    report = pack(folder, tmp_path / "a.beton", reencoding=SMALL)
    beton = Beton.open(tmp_path / "a.beton")
    sound = np.flatnonzero(beton.status == ImageStatus.OK)
    assert report.kept_jpeg == len(sound) == len(good_images())
    for row in sound:
        source = folder.path(row).read_bytes()
        image = decode_rgb(source)
        scale = min(1, 40 / max(image.size))
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC) if size != image.size else image
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, subsampling="4:2:0", optimize=True)
        found = beton.read(row)
        assert found.data == buffer.getvalue()
        assert beton.digests[row].tobytes() == content_digest(found.data)
        assert beton.origins[row].tobytes() == content_digest(source)
        assert tuple(beton.sizes[row]) == size[::-1]
    masked = beton.status == ImageStatus.UNREADABLE
    assert masked.sum() == report.num_rows - len(sound)
    assert beton.origins[masked].any(axis=1).all()


def test_the_bytes_do_not_depend_on_workers(world, tmp_path):
    pack(scan_folder(world / "images"), tmp_path / "two.beton", workers=2, reencoding=SMALL)
    for mine, theirs in (
        (tmp_path / "two.beton", world / "small.beton"),
        (sidecar_path(tmp_path / "two.beton"), sidecar_path(world / "small.beton")),
    ):
        assert content_digest(mine.read_bytes()) == content_digest(theirs.read_bytes())


def test_sides_shrink_and_never_grow():
    assert Reencoding(max_side=500).shape(1000, 600) == (500, 300)
    assert Reencoding(min_side=300).shape(1000, 600) == (500, 300)
    assert Reencoding(max_side=400, min_side=300).shape(1000, 600) == (400, 240)
    assert Reencoding(max_side=500).shape(20, 30) == (20, 30)
    assert Reencoding(max_side=8).shape(1, 4000) == (1, 8)
    for settings in ({"max_side": 7}, {"min_side": 0}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(UsageError, match=next(iter(settings)).replace("_", "-")):
            Reencoding(**settings)


def test_both_loaders_replay_the_new_pixels_to_the_bit(world):
    beton = Beton.open(world / "small.beton")
    assert beton.reencoded["max_side"] == 40
    rows = np.arange(beton.num_rows)
    box = np.zeros((len(rows), 1, 4), np.uint16)
    box[:, 0] = (3, 5, 20, 25)
    flip = (rows % 2).astype(np.uint8)[:, None]
    settings = {"size": 24, "views": 1, "batch_images": 5, "workers": 1}
    for loader in (FFCVReplayLoader(beton, **settings), TorchReplayLoader(beton, **settings)):
        for batch in loader.epoch(rows, box, flip):
            for place, row in enumerate(batch.rows):
                image = decode_rgb(beton.read(row).data)
                expected = cut_view(image, box[row, 0], flip[row, 0], 24)
                np.testing.assert_array_equal(batch.images[place, 0].numpy(), expected)


def test_labels_of_a_re_encoded_beton_are_of_its_own_bytes(world):
    store, beton = LabelStore.open(world / "small.zarr"), Beton.open(world / "small.beton")
    table = store.read_images()
    np.testing.assert_array_equal(table.digest, beton.digests)
    np.testing.assert_array_equal(table.size, beton.sizes)
    assert store.spec.dataset["reencoded"] == beton.reencoded
    views = store.spec.sampler.draw(
        store.spec.seed, beton.digests[2].tobytes(), *map(int, beton.sizes[2]), 0, 8
    )
    np.testing.assert_array_equal(store.read_plane(0, 8).box[2], views.box)


def test_labels_of_a_plain_beton_are_those_of_its_folder(world, tmp_path):
    make_store(world / "images", tmp_path / "folder.zarr")
    ours, theirs = (
        LabelStore.open(path) for path in (world / "plain.zarr", tmp_path / "folder.zarr")
    )
    assert ours.spec.dataset == theirs.spec.dataset
    teacher = teacher_of(ours)
    mine, other = (store.read_plane(0, 8, teacher) for store in (ours, theirs))
    for name in ("box", "flip", "index", "code", "tail"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


def test_pixels_kept_in_a_beton_are_labelled_as_their_files_are(tmp_path):
    root = tmp_path / "pngs"
    for number in range(3):
        (root / f"class{number}").mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 31, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"class{number}" / "a.png")
    report = pack(scan_folder(root), tmp_path / "a.beton")
    assert report.stored_raw == 3
    make_store(root, tmp_path / "files.zarr", crops=2)
    make_store(tmp_path / "a.beton", tmp_path / "beton.zarr", crops=2)
    files, beton = (LabelStore.open(tmp_path / f"{name}.zarr") for name in ("files", "beton"))
    np.testing.assert_array_equal(files.read_images().digest, beton.read_images().digest)
    teacher = teacher_of(files)
    np.testing.assert_array_equal(
        files.read_plane(0, 2, teacher).code, beton.read_plane(0, 2, teacher).code
    )
    assert match(files, tmp_path / "a.beton").exit_code == 0


def test_a_student_trains_on_the_beton_that_was_labelled(world, tmp_path):
    result = fit(request(tmp_path / "run", labels=world / "small.zarr", epochs=1))
    assert result.crops and not result.notes
    assert not list(world.glob("small.zarr.beton"))  # the local hint is the beton itself


@pytest.mark.parametrize(
    ("store", "data", "reason"),
    [
        ("plain", "small", r"re-encoded \(--max-side 40 --quality 90, pillow.*labelgen run --data"),
        ("small", "plain", r"labels of a re-encoded beton \(--max-side 40 --quality 90"),
    ],
)
def test_other_pixels_than_the_labelled_ones_are_refused_with_the_cause(world, store, data, reason):
    labels = LabelStore.open(world / f"{store}.zarr")
    with pytest.raises(StoreMismatch, match=reason):
        join_store(Beton.open(world / f"{data}.beton"), labels, teacher_of(labels))


def test_two_kinds_of_re_encoding_are_told_apart(world, tmp_path):
    other = tmp_path / "other.beton"
    pack(scan_folder(world / "images"), other, reencoding=Reencoding(max_side=30, quality=75))
    labels = LabelStore.open(world / "small.zarr")
    with pytest.raises(StoreMismatch, match=r"--max-side 40.*other\.beton with --max-side 30"):
        join_store(Beton.open(other), labels, teacher_of(labels))


def test_damaged_origins_are_found(world, tmp_path):
    for path in (world / "small.beton", sidecar_path(world / "small.beton")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    beton = Beton.open(tmp_path / "small.beton")
    data = bytearray(beton.path.read_bytes())
    data[data.index(beton.origins[1].tobytes())] ^= 1
    beton.path.write_bytes(bytes(data))
    with pytest.raises(CorruptStore, match="source images are damaged"):
        Beton.open(beton.path)


def test_damaged_payloads_are_masked_when_labelled(world, tmp_path):
    for path in (world / "plain.beton", sidecar_path(world / "plain.beton")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    beton = Beton.open(tmp_path / "plain.beton")
    with beton.path.open("r+b") as file:
        file.seek(int(beton.records[4]["ptr"]) + 300)
        file.write(b"damage")
    make_store(beton.path, tmp_path / "store.zarr", crops=2)
    table = LabelStore.open(tmp_path / "store.zarr").read_images()
    assert np.flatnonzero(table.status == ImageStatus.UNREADABLE).tolist() == [4]
    assert table.digest[4].tobytes() == beton.digests[4].tobytes()


def test_a_packed_beton_is_not_packed_again(world, tmp_path):
    with pytest.raises(UsageError, match="packed already"):
        pack(scan_folder(world / "plain.beton"), tmp_path / "a.beton", reencoding=SMALL)


def test_a_newer_kind_of_beton_says_so(world):
    sidecar = sidecar_path(world / "small.beton").read_text()
    assert f'"beton_format": {REENCODED_FORMAT}' in sidecar


ORDINARY = {"444.jpg", "422.jpg", "420.jpg", "gray.jpg", "restart.jpg", "exif_rotated.jpg",
            "one_pixel.jpg", "tall.jpg"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(good_images()))
def test_ordinary_jpegs_are_told_by_their_markers(name):
    data = good_images()[name]
    image = Image.open(io.BytesIO(data))
    # bytes too many within the coded data are no marker: decoding alone shows them
    ordinary = name in ORDINARY or name == "extraneous.jpg"
    expected = (image.height, image.width) if ordinary else None
    assert ordinary_size(data) == expected
    for cut in range(0, len(data), max(1, len(data) // 50)):
        assert ordinary_size(data[:cut]) is None


@pytest.mark.parametrize("name", sorted(ORDINARY))
def test_ordinary_jpegs_are_kept_as_the_full_check_keeps_them(name):
    data = good_images()[name]
    assert encode_bytes(data) == encode_bytes(data, check_all=True)


def test_unlike_decoders_stop_the_packing_instead_of_mixing_pixels(monkeypatch):
    data = good_images()["420.jpg"]
    decode = turbojpeg.decode

    def other_pixels(data, height, width):
        pixels, warns = decode(data, height, width)
        return 255 - pixels, warns

    monkeypatch.setattr(turbojpeg, "decode", other_pixels)
    assert encode_bytes(data).mode == MODE_JPEG  # not of the sample
    assert encode_bytes(data, check_all=True).mode != MODE_JPEG
    monkeypatch.setattr(encode, "SAMPLE", 1)
    with pytest.raises(TrainingError, match="--check all"):
        encode_bytes(data)
