"""Writing, resuming and reading label stores."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import fill_store, image_digest, make_block, make_spec, make_teacher

from storage.codecs import NO_CODE, NO_INDEX
from storage.errors import (
    CorruptStore,
    FormatVersion,
    IncompleteStore,
    StoreError,
    StoreMismatch,
    UsageError,
)
from storage.format import (
    StoreSpec,
    dataset_fingerprint,
    default_block_images,
    default_plane_views,
    default_segment_views,
)
from storage.images import ImageStatus
from storage.layout import array_layouts
from storage.sealing import seal
from storage.store import LabelStore
from storage.views import PaddedCrop


@pytest.mark.parametrize(("first", "count"), [(0, 2), (2, 2), (0, 6), (1, 4), (5, 1)])
def test_what_was_written_is_read_back(tmp_path, first, count):
    store = fill_store(tmp_path / "s", masked=[2, 4, 5, 6, 7])
    store = LabelStore.open(store.path)
    plane = store.read_plane(first, count, "toy")
    table = store.read_images()
    views = slice(first, first + count)
    for block in range(store.blocks):
        data = make_block(store.spec, block)
        labels = data.labels["toy"]
        for i, row in enumerate(store.block_rows(block)):
            assert table.digest[row].tobytes() == image_digest(row)
            assert table.key[row] == data.key[i]
            assert table.size[row].tolist() == data.size[i].tolist()
            assert table.target[row] == data.target[i]
            if row in (2, 4, 5, 6, 7):
                assert table.status[row] == ImageStatus.UNREADABLE
                assert (plane.index[row] == NO_INDEX).all() and (plane.code[row] == NO_CODE).all()
                assert (plane.tail[row] == NO_CODE).all() and (plane.flip[row] == NO_CODE).all()
                assert not plane.box[row].any()
            else:
                assert np.array_equal(plane.box[row], data.box[i, views])
                assert np.array_equal(plane.flip[row], data.flip[i, views])
                assert np.array_equal(plane.index[row], labels.index[i, views])
                assert np.array_equal(plane.code[row], labels.code[i, views])
                assert np.array_equal(plane.tail[row], labels.tail[i, views])


def test_any_zarr_reader_opens_a_store(tmp_path):
    """Through zarr's public API only, with the metadata as it lies on disk."""
    store = fill_store(tmp_path / "s")
    group = zarr.open_group(str(store.path), mode="r")
    plane = store.read_plane(0, 6, "toy")
    assert np.array_equal(group["labels/toy/index"][:], plane.index)
    assert np.array_equal(group["views/box"][:, 3:5], plane.box[:, 3:5])
    assert bytes(group["images/key"][0]).rstrip(b"\0") == b"ant/0000.jpg"
    gaps = group["labels/toy/gap"][:]
    assert np.array_equal(gaps.cumsum(axis=-1, dtype=np.uint8), plane.code)
    assert group["labels/toy/gap"].metadata.dimension_names == ("image", "view", "rank")


def test_every_chunk_is_written_even_where_all_its_images_are_masked(tmp_path):
    store = fill_store(tmp_path / "s", masked=range(10))
    chunks_per_shard = 2
    for layout in array_layouts(store.spec).values():
        for name in layout.object_paths(0, range(2)) if layout.shard else []:
            data = (store.path / name).read_bytes()
            index = np.frombuffer(data[-(16 * chunks_per_shard + 4) : -4], "<u8").reshape(-1, 2)
            written = (index != 2**64 - 1).all(axis=1)
            # 6 views in shards of 4: the second shard's second chunk lies beyond the array
            assert written.tolist() == ([True, True] if "/c/0/0" in name else [True, False])


def test_a_fresh_store_is_all_missing_and_says_so_when_read(tmp_path):
    store = LabelStore.create(tmp_path / "s", make_spec())
    assert store.blocks == 3 and store.missing_blocks() == [0, 1, 2]
    assert [list(store.block_rows(b)) for b in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # fmt: skip
    store.write_block(1, make_block(store.spec, 1), "cpu")
    assert store.missing_blocks() == [0, 2] and not store.is_sealed
    with pytest.raises(IncompleteStore, match="block 0 of 3"):
        store.read_plane(0, 2, "toy")


def tree(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and "receipts" not in file.parts and file.name != "local.json"
    }


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 0, 2, 1, 1]])
def test_bytes_and_root_do_not_depend_on_the_order_of_writes(tmp_path, order):
    plain = fill_store(tmp_path / "plain", masked=[3])
    other = LabelStore.create(tmp_path / "other", make_spec())
    for block in order:
        other.write_block(block, make_block(other.spec, block, [3]), "cuda:0")
    other.write_local("/data", {"note": "another run"})
    assert seal(plain).root == seal(other).root
    ours, theirs = tree(plain.path), tree(other.path)
    assert ours.pop("manifest.json") != theirs.pop("manifest.json")  # devices differ
    assert ours == theirs


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
def test_a_write_stopped_at_any_file_leaves_the_store_resumable(tmp_path, monkeypatch, failure):
    reference = seal(fill_store(tmp_path / "reference")).root
    spec = make_spec()
    base = LabelStore.create(tmp_path / "base", spec)
    base.write_block(1, make_block(spec, 1), "cpu")
    files = len(base.block_objects(0)) + 1  # and the receipt
    real = os.fsync
    for stop in [*range(0, 2 * files, 11), 2 * files - 2, 2 * files - 1]:
        path = tmp_path / f"s{stop}"
        shutil.copytree(base.path, path)
        store = LabelStore.open(path)
        calls = 0

        def failing(handle: int, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise failure
            real(handle)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(type(failure)):
            store.write_block(0, make_block(spec, 0), "cpu")
        monkeypatch.setattr(os, "fsync", real)
        resumed = LabelStore.open_or_create(path, spec)
        # folders that are made are flushed too, so the last calls are somewhat later than 2 a file
        assert resumed.missing_blocks() == [0, 2]
        for block in resumed.missing_blocks():
            resumed.write_block(block, make_block(spec, block), "cpu")
        assert seal(resumed).root == reference


def test_no_space_names_the_file_and_leaves_no_temporary_one(tmp_path, monkeypatch):
    store = LabelStore.create(tmp_path / "s", make_spec())

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        store.write_block(0, make_block(store.spec, 0), "cpu")
    assert caught.value.errno == errno.ENOSPC and "images/digest" in caught.value.filename
    assert not [p for p in store.path.rglob("*") if p.name.startswith(".")]


def test_rewriting_a_block_unseats_its_receipt_first(tmp_path, monkeypatch):
    store = fill_store(tmp_path / "s")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        store.write_block(1, make_block(store.spec, 1), "cpu")
    assert store.missing_blocks() == [1]


def test_blocks_may_be_written_from_many_threads_at_once(tmp_path):
    reference = seal(fill_store(tmp_path / "reference", make_spec(24))).root
    store = LabelStore.create(tmp_path / "s", make_spec(24))
    errors: list[BaseException] = []

    def work(first):
        try:
            for block in [*range(first, store.blocks, 2), 0]:  # block 0 by both
                store.write_block(block, make_block(store.spec, block), "cpu")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and seal(store).root == reference


def test_lost_and_cut_files_make_their_block_missing(tmp_path):
    store = fill_store(tmp_path / "s")
    (store.path / "labels/toy/gap/c/0/1/0").unlink()
    with (store.path / "images/size/c/2/0").open("ab") as file:
        file.write(b"x")
    assert store.missing_blocks() == [0, 2]
    with pytest.raises(IncompleteStore):
        store.read_plane(4, 2, "toy")
    (store.path / "receipts/000001.json").write_text("{not json")
    assert store.missing_blocks() == [0, 1, 2]


def test_a_sealed_store_that_lost_a_file_is_repaired_to_the_same_root(tmp_path):
    store = fill_store(tmp_path / "s")
    root = seal(store).root
    lost = store.path / "views/box/c/1/0/0"
    lost.unlink()
    with pytest.raises(CorruptStore, match="views/box/c/1/0/0 is missing"):
        store.read_plane(0, 2)
    assert store.missing_blocks() == [1]
    store.write_block(1, make_block(store.spec, 1), "cpu")
    assert store.missing_blocks() == [] and seal(store).root == root


def test_a_sealed_store_can_not_be_changed(tmp_path):
    store = fill_store(tmp_path / "s")
    root = seal(store).root
    with pytest.raises(StoreError, match="is sealed"):
        store.write_block(1, make_block(store.spec, 1, masked=[5]), "cpu")
    assert seal(store).root == root


def test_open_or_create_names_every_setting_that_differs(tmp_path):
    fill_store(tmp_path / "s", make_spec())
    asked = make_spec(
        num_images=11, seed=6, teachers=[make_teacher(digest="12" * 32, precision="bf16")],
        sampler=PaddedCrop(padding=2),
    )  # fmt: skip
    with pytest.raises(StoreMismatch) as caught:
        LabelStore.open_or_create(tmp_path / "s", asked)
    message = str(caught.value)
    for part in ("num_images is 11, not 10", "seed is 6, not 5", 'precision is "bf16", not "fp32"',
                 'sampler.kind is "padded-crop", not "random-resized-crop"',
                 "teachers.toy.digest is", "pixel.padding is 2, not 0",
                 "dataset.num_images is 11, not 10", "--overwrite"):  # fmt: skip
        assert part in message, part
    with pytest.raises(StoreMismatch):
        LabelStore.create(tmp_path / "s", asked)


def test_opening_with_the_same_settings_goes_on(tmp_path):
    spec = make_spec()
    store = LabelStore.create(tmp_path / "s", spec)
    store.write_block(0, make_block(spec, 0), "cpu")
    again = LabelStore.open_or_create(tmp_path / "s", make_spec())
    assert again.missing_blocks() == [1, 2] and again.spec == spec
    assert again.spec.settings() == spec.settings()


def test_two_teachers_share_one_store(tmp_path):
    teachers = [make_teacher(), make_teacher("other", top_k=5)]
    store = fill_store(tmp_path / "s", make_spec(teachers=teachers))
    assert store.read_plane(0, 2, "toy").index.shape == (10, 2, 3)
    assert store.read_plane(0, 2, "other").index.shape == (10, 2, 5)
    with pytest.raises(UsageError, match="it has other, toy"):
        store.read_plane(0, 2, "r152")


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    store = fill_store(tmp_path / "s")
    root = store.path / "zarr.json"
    values = json.loads(root.read_text())
    values["attributes"]["teachonce"]["settings"]["format_version"] = 2
    root.write_text(json.dumps(values))
    with pytest.raises(FormatVersion, match="format 2; this release reads format 1"):
        LabelStore.open(store.path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"attributes": {}}',
                                     '{"attributes": {"teachonce": {}}}',
                                     '{"attributes": {"teachonce": {"settings": {"format_version": 1}}}}'])  # fmt: skip  # noqa: E501
def test_damaged_root_metadata_is_one_clear_error(tmp_path, content):
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(StoreError):
        LabelStore.open(tmp_path)


def test_folders_that_are_no_store_are_left_alone(tmp_path):
    with pytest.raises(StoreError, match="not a label store"):
        LabelStore.open(tmp_path / "nothing")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match="exists and is not a label store"):
        LabelStore.create(tmp_path, make_spec())
    (tmp_path / "empty").mkdir()
    LabelStore.create(tmp_path / "empty", make_spec())


ODD_KEYS = ["a b/ü é.jpg", "類/画像.png", "n0/100%#?&=.jpg", "quote'\"/x\ty.jpg", "🐜.jpg",
            "-rf/*.jpg", "n/line\nbreak.jpg", "n/raw\udcff\udc80.jpg", "x" * 60 + ".jpg",
            "c/…"]  # fmt: skip


def test_keys_with_odd_characters_come_back_unchanged(tmp_path):
    store = fill_store(tmp_path / "s", make_spec(), keys=ODD_KEYS, masked=[7])
    seal(store)
    assert LabelStore.open(store.path).read_images().key == ODD_KEYS


@pytest.mark.parametrize("key", ["/etc/passwd", "../x.jpg", "a/../../x", "", "a//b", "./a", "a\0b",
                                 "C:/x", "\\\\host\\x", "y" * 65])  # fmt: skip
def test_unsafe_and_overlong_keys_are_refused(tmp_path, key):
    store = LabelStore.create(tmp_path / "s", make_spec())
    with pytest.raises(UsageError, match="image key"):
        store.write_block(0, make_block(store.spec, 0, keys=[key] * 10), "cpu")
    assert store.missing_blocks() == [0, 1, 2]


BROKEN = {
    "box outside the image": lambda d: d.box.__setitem__((1, 2), (30, 0, 60, 5)),
    "box of no height": lambda d: d.box.__setitem__((1, 2), (0, 0, 0, 5)),
    "flip": lambda d: d.flip.__setitem__((0, 0), 2),
    "unknown class": lambda d: d.labels["toy"].index.__setitem__((0, 0, 0), 7),
    "class twice": lambda d: d.labels["toy"].index.__setitem__((0, 0), 1),
    "rising probabilities": lambda d: d.labels["toy"].code.__setitem__((0, 0), (9, 4, 4)),
    "no code": lambda d: d.labels["toy"].code.__setitem__((0, 0, 2), 255),
    "no tail": lambda d: d.labels["toy"].tail.__setitem__((0, 0), 255),
    "status": lambda d: d.status.__setitem__(0, 9),
    "target": lambda d: d.target.__setitem__(0, 3),
    "size": lambda d: d.size.__setitem__(0, 0),
}


@pytest.mark.parametrize("what", BROKEN)
def test_impossible_values_are_never_written(tmp_path, what):
    store = LabelStore.create(tmp_path / "s", make_spec())
    data = make_block(store.spec, 0)
    BROKEN[what](data)
    with pytest.raises(UsageError, match="row"):
        store.write_block(0, data, "cpu")
    assert store.missing_blocks() == [0, 1, 2]


def test_arrays_of_a_wrong_shape_or_type_are_refused(tmp_path):
    store = LabelStore.create(tmp_path / "s", make_spec())
    data = make_block(store.spec, 0)
    for broken in (replace(data, box=data.box.astype(np.int64)),
                   replace(data, flip=data.flip[:, 1:]),
                   replace(data, key=data.key[1:]), replace(data, labels={})):  # fmt: skip
        with pytest.raises(UsageError):
            store.write_block(0, broken, "cpu")
    with pytest.raises(UsageError, match="block 3"):
        store.write_block(3, data, "cpu")


def test_the_data_folder_is_only_a_hint(tmp_path):
    store = fill_store(tmp_path / "s")
    assert store.local_data_folder() is None
    (tmp_path / "images").mkdir()
    store.write_local(tmp_path / "images")
    root = seal(store).root
    store.write_local(tmp_path / "images", {"command": "labelgen run"})
    assert store.local_data_folder() == tmp_path / "images"
    assert seal(store).root == root
    (tmp_path / "images").rmdir()
    assert store.local_data_folder() is None
    (store.path / "local.json").write_text("[broken")
    assert store.local_data_folder() is None


@pytest.mark.parametrize(("num_images", "num_views", "expected"), [
    (1_281_167, 500, 4096), (1_281_167, 100, 4096), (50_000, 162, 2048), (9469, 32, 512),
    (1200, 32, 64), (100, 4, 64), (5, 4, 5), (1, 1, 1), (10**6, 10**6, 8),
])  # fmt: skip
def test_default_blocks_are_neither_too_few_nor_too_large(num_images, num_views, expected):
    assert default_block_images(num_images, num_views) == expected


@pytest.mark.parametrize("num_views", [1, 2, 3, 4, 5, 32, 100, 101, 162, 500])
def test_default_segments_are_whole_planes_of_100_views_or_all_up_to_150(num_views):
    plane = default_plane_views(num_views)
    segment = default_segment_views(num_views, plane)
    most = num_views if num_views <= 150 else 100
    assert segment % plane == 0 and 0 <= segment - most < plane


def test_the_fingerprint_is_of_a_set_of_images():
    digests = np.random.default_rng(0).integers(0, 256, (50, 32)).astype(np.uint8)
    digests[0] = 0  # trailing zero bytes must count
    digests[1, -1] = 0
    fingerprint = dataset_fingerprint(digests)
    assert dataset_fingerprint(digests[::-1]) == fingerprint
    digests[7, 3] ^= 1
    assert dataset_fingerprint(digests) != fingerprint


def test_settings_that_make_no_sense_are_refused():
    for changes in ({"num_views": 0}, {"segment_views": 3}, {"block_images": 0}):
        with pytest.raises(UsageError):
            make_spec(**changes)
    with pytest.raises(UsageError, match="162"):
        make_spec(num_views=163, sampler=PaddedCrop())
    with pytest.raises(UsageError, match="can't name a folder"):
        make_teacher("../evil")
    with pytest.raises(FormatVersion):
        make_spec(format_version=2)
    assert isinstance(make_spec(num_views=162, sampler=PaddedCrop()), StoreSpec)


@given(
    rows=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20),
    alike=st.integers(0, 3),
)
def test_the_fingerprint_is_the_hash_of_the_sorted_digests(rows: list[bytes], alike: int) -> None:
    rows = [b"\0" * (8 * alike) + row[8 * alike :] for row in rows] + rows[:1]
    digests = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)
    expected = hashlib.sha256(b"".join(sorted(rows))).hexdigest()
    assert dataset_fingerprint(digests) == expected
