"""Boxes and flips as one number: against the definition in whole numbers, and in stores."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import zarr
from box_numbers import plain_number
from hypothesis import given
from hypothesis import strategies as st
from remote_helpers import assert_same, connect, publish
from store_helpers import fill_store, image_digest, image_size, make_block, make_spec, make_teacher
from web_servers import FileServer

from storage.box_codec import (
    BOX_ARRAYS,
    BOX_NUMBERS,
    MAX_PIXELS,
    boxes_from_numbers,
    default_view_codec,
    number_faults,
    numbers_from_boxes,
)
from storage.chunks import encode_block
from storage.codecs import NO_CODE
from storage.compare import diff
from storage.errors import FormatVersion, UsageError
from storage.format import StoreSpec
from storage.layout import array_layouts
from storage.manifest import Manifest, file_entry, read_manifest
from storage.merge import merge_stores
from storage.parents import FIRST_VIEW
from storage.rewrite import begin_store
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore
from storage.verify import verify
from storage.views import PaddedCrop, RandomResizedCrop


def all_views(height, width):
    """Every box of an image with either flip: box [n, 4], flip [n]."""
    rows = [
        (top, left, h, w, flip)
        for h, w in itertools.product(range(1, height + 1), range(1, width + 1))
        for top, left in itertools.product(range(height - h + 1), range(width - w + 1))
        for flip in (0, 1)
    ]
    found = np.array(rows, np.uint16)
    return found[:, :4], found[:, 4].astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 8), (9, 4), (7, 7), (12, 13)])
def test_every_view_of_an_image_has_a_number_of_its_own(size):
    box, flip = all_views(*size)
    sizes = np.array([size])
    number = numbers_from_boxes(box[None], flip[None], sizes)
    expected = [
        plain_number(*size, *view) for view in zip(box.tolist(), flip.tolist(), strict=True)
    ]
    assert number[0].tolist() == expected
    assert len(set(expected)) == len(expected) and min(expected) > 0
    found = boxes_from_numbers(number, sizes)
    assert np.array_equal(found[0][0], box) and np.array_equal(found[1][0], flip)


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (6, 5)])
def test_a_number_that_no_view_has_is_a_fault(size):
    sizes = np.array([size])
    box, flip = all_views(*size)
    known = set(numbers_from_boxes(box[None], flip[None], sizes)[0].tolist())
    number = np.concatenate([
        np.arange(1, max(known) + 500, dtype=np.uint64),
        np.array([1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], np.uint64),
    ])[None]  # fmt: skip
    faults = number_faults(number, *boxes_from_numbers(number, sizes), sizes)
    assert set(number[~faults].tolist()) == known


@given(st.data())
def test_boxes_of_images_of_any_size_come_back(data):
    height = data.draw(st.integers(1, 65_535))
    width = data.draw(st.integers(1, min(65_535, MAX_PIXELS // height)))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    flip = data.draw(st.integers(0, 1))
    box = np.array([[[top, left, h, w]]], np.uint16)
    sizes = np.array([[height, width]], np.uint16)
    number = numbers_from_boxes(box, np.array([[flip]], np.uint8), sizes)
    assert int(number[0, 0]) == plain_number(height, width, (top, left, h, w), flip) < 1 << 63
    found = boxes_from_numbers(number, sizes)
    assert np.array_equal(found[0], box) and found[1].tolist() == [[flip]]


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ((10, 20, 150, 180, 1), 268_474_625),
        ((0, 0, 375, 400, 0), 103),
        ((0, 0, 375, 100, 0), 15_580_874_199),
    ],
)
def test_numbers_are_those_that_the_format_gives_as_known_answers(view, expected):
    box, flip = np.array([[view[:4]]], np.uint16), np.array([[view[4]]], np.uint8)
    assert numbers_from_boxes(box, flip, np.array([[375, 500]])).tolist() == [[expected]]


def test_a_row_of_sizes_has_room_for_two_lengths():
    for S in range(1, 3000):
        a = np.arange(1, S + 1)
        lengths = np.maximum(4 * a // 3 - -(-3 * a // 4) + 1, 0)
        assert (lengths + lengths[::-1]).max() <= 7 * (S + 1) // 12 + 2


def test_drawn_views_have_small_numbers():
    """At least 99 % lie in the wedge: below twice the sizes times the pixels."""
    for size in ((375, 500), (500, 333), (224, 224)):
        drawn = RandomResizedCrop().draw(0, image_digest(0), *size, 0, 400)
        number = numbers_from_boxes(drawn.box[None], drawn.flip[None], np.array([size]))
        S = min(size)
        within = 2 * ((S + 1) // 2) * (7 * (S + 1) // 12 + 2) * size[0] * size[1]
        assert (number <= within).mean() > 0.99


def test_absent_views_have_the_number_zero():
    box = np.array([[[0, 0, 0, 0]], [[1, 2, 3, 4]]], np.uint16)
    flip = np.array([[NO_CODE], [1]], np.uint8)
    sizes = np.array([[0, 0], [9, 9]])
    number = numbers_from_boxes(box, flip, sizes)
    assert number[0, 0] == 0 and number[1, 0] > 0
    found = boxes_from_numbers(number, sizes)
    assert np.array_equal(found[0], box) and np.array_equal(found[1], flip)


@pytest.mark.parametrize("box", [(0, 0, 0, 3), (7, 0, 4, 4), (0, 9, 3, 3), (0, 0, 3, 11)])
def test_a_box_outside_its_image_has_no_number(box):
    with pytest.raises(UsageError, match=r"views/crop: row 0 view 0 .*outside"):
        numbers_from_boxes(
            np.array([[box]], np.uint16), np.zeros((1, 1), np.uint8), np.array([[10, 10]])
        )


def test_an_image_of_too_many_pixels_is_refused():
    box = np.array([[[0, 0, 1, 1]]], np.uint16)
    with pytest.raises(UsageError, match=r"4,294,836,225 pixels.*1,073,741,824"):
        numbers_from_boxes(box, np.zeros((1, 1), np.uint8), np.array([[65_535, 65_535]]))


def test_numbers_are_the_default_for_the_boxes_that_they_are_made_for():
    assert default_view_codec(RandomResizedCrop()) == BOX_NUMBERS
    assert default_view_codec(RandomResizedCrop(ratio=(0.5, 2.0))) == BOX_ARRAYS
    assert default_view_codec(PaddedCrop(padding=4)) == BOX_ARRAYS


def numbered(**changes):
    return make_spec(view_codec=BOX_NUMBERS, **changes)


def test_an_unknown_view_codec_asks_for_a_newer_release():
    settings = numbered().settings()
    assert settings["view_codec"] == "box-number-1" and "view_codec" not in make_spec().settings()
    with pytest.raises(FormatVersion, match=r"box-number-9.*newer teachonce"):
        StoreSpec.from_settings({**settings, "view_codec": "box-number-9"}, {})


@pytest.mark.parametrize("changes", [{}, {"sampler": PaddedCrop(padding=4)}])
def test_a_store_of_numbers_reads_as_one_of_arrays(tmp_path, changes):
    old = fill_store(tmp_path / "old", make_spec(**changes), masked=[2, 4, 5, 6, 7])
    new = fill_store(tmp_path / "new", numbered(**changes), masked=[2, 4, 5, 6, 7])
    assert not (new.path / "views/box").exists() and not (old.path / "views/crop").exists()
    seal(old), seal(new)
    new = LabelStore.open(new.path)
    for first, count in [(0, 2), (1, 4), (5, 1), (0, 6)]:
        for teacher in ("toy", None):
            ours, theirs = (store.read_plane(first, count, teacher) for store in (new, old))
            for part in ("box", "flip", "index", "code", "tail"):
                assert np.array_equal(getattr(ours, part), getattr(theirs, part)), part
    for path in ("views/box", "views/flip", "views/crop"):
        where = slice(3, 9), slice(1, 5)
        ours, theirs = (store.read_array(path, *where) for store in (new, old))
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), path
    assert verify(new.path, full=True).exit_code == 0
    assert diff(old, new).equal


def test_a_store_of_numbers_is_read_from_a_server(tmp_path):
    local = publish(tmp_path / "www/s", view_codec=BOX_NUMBERS)
    with FileServer(tmp_path / "www") as server:
        remote = connect(f"{server.url}/s", tmp_path / "cache")
        remote.prefetch(2, 2, "toy")
        for first, count in ((2, 2), (1, 3)):
            assert_same(remote, local, first, count)
        remote.close()


def test_any_zarr_reader_and_the_definition_give_the_boxes(tmp_path):
    store = fill_store(tmp_path / "s", numbered(), masked=[3])
    group = zarr.open_group(str(store.path), mode="r")
    number, plane = group["views/crop"][:], store.read_plane(0, 6)
    assert number.dtype == np.uint64 and not number[3].any()
    for row in (0, 1, 9):
        for view in range(6):
            box, flip = plane.box[row, view].tolist(), int(plane.flip[row, view])
            assert int(number[row, view]) == plain_number(*image_size(row), box, flip)


def test_a_block_with_a_box_outside_its_image_is_refused(tmp_path):
    store = LabelStore.create(tmp_path / "s", numbered())
    data = make_block(store.spec, 1)
    data.box[2, 3] = (50, 0, 10, 10)
    with pytest.raises(UsageError, match=r"views/box: row 6 has a box outside the image"):
        store.write_block(1, data, "cpu")
    assert store.missing_blocks() == [0, 1, 2]


FORGED = {
    "no box": (0, 2, 0),
    "a number that is no box": (0, 2, 1 << 60),
    "masked but has a box": (1, 0, 1),
}


@pytest.mark.parametrize("message", FORGED)
def test_a_forged_number_is_found(tmp_path, message):
    store = fill_store(tmp_path / "s", numbered(), masked=[5])
    seal(store)
    layout, rows = array_layouts(store.spec)["views/crop"], store.block_rows(1)
    values = store.read_array("views/crop", slice(rows.start, rows.stop), slice(0, 6)).copy()
    row, view, number = FORGED[message]
    values[row, view] = number
    manifest = read_manifest(store.path)
    objects = dict(manifest.objects)
    for name, content in encode_block(layout, rows, values).items():
        (store.path / name).write_bytes(content)
        objects[name] = file_entry(store.path / name)
    forged = Manifest(objects, manifest.provenance).to_bytes()
    (store.path / "manifest.json").write_bytes(forged)
    report = verify(store.path, full=True)
    assert [problem.path for problem in report.problems][:1] == ["views/crop/c/1"]
    assert message in report.problems[0].detail


def plane_parts(store):
    plane = store.read_plane(0, store.spec.num_views, "toy")
    return [plane.box, plane.flip, plane.index, plane.code, plane.tail]


def test_a_subset_keeps_numbers_and_copies_their_files(tmp_path):
    store = fill_store(tmp_path / "s", numbered(), masked=[2])
    parent = seal(store)
    child = subset(store.path, tmp_path / "cut", Selection(views=(0, 4)))
    name = "views/crop/c/0/0"
    assert child.objects[name] == parent.objects[name]
    rows = [0, 1, 2, 7]
    keys = [store.read_images().key[row] for row in rows]
    subset(store.path, tmp_path / "rows", Selection(images=keys, views=(1, 4)))
    cut = LabelStore.open(tmp_path / "rows")
    for ours, theirs in zip(plane_parts(cut), plane_parts(store), strict=True):
        assert np.array_equal(ours, theirs[rows, 1:4])
    assert verify(tmp_path / "rows", full=True).exit_code == 0


def write_later_views(path, spec, first):
    """The store of views `first` to 7, masked as `fill_store` was."""
    store = begin_store(path, spec, {FIRST_VIEW: first})
    for block in range(store.blocks):
        data = make_block(make_spec(num_views=8), block, [3])
        labels = data.labels["toy"]
        parts = {name: getattr(labels, name)[:, first:] for name in ("index", "code", "tail")}
        later = dataclasses.replace(
            data, box=data.box[:, first:], flip=data.flip[:, first:],
            labels={"toy": dataclasses.replace(labels, **parts)},
        )  # fmt: skip
        store.write_block(block, later, "cpu")
    return seal(store)


@pytest.mark.parametrize("codecs", list(itertools.product([BOX_ARRAYS, BOX_NUMBERS], repeat=2)))
def test_stores_of_either_codec_merge(tmp_path, codecs):
    """Views of one stream, and two teachers of the same views; the first store's codec is kept."""
    whole = fill_store(tmp_path / "whole", make_spec(num_views=8), masked=[3])
    first, more = (make_spec(num_views=4, view_codec=codec) for codec in codecs)
    seal(fill_store(tmp_path / "a", first, masked=[3]))
    write_later_views(tmp_path / "b", more, 4)
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "views")
    merged = LabelStore.open(tmp_path / "views")
    assert merged.spec.view_codec == codecs[0]
    for ours, theirs in zip(plane_parts(merged), plane_parts(whole), strict=True):
        assert np.array_equal(ours, theirs)
    other = make_spec(num_views=4, teachers=[make_teacher("two")], view_codec=codecs[1])
    seal(fill_store(tmp_path / "two", other, masked=[3]))
    merge_stores([tmp_path / "a", tmp_path / "two"], tmp_path / "both")
    both = LabelStore.open(tmp_path / "both")
    assert sorted(both.spec.teachers) == ["toy", "two"]
    assert np.array_equal(both.read_plane(0, 4).box, whole.read_plane(0, 4).box)
    for path in ("views", "both"):
        assert verify(tmp_path / path, full=True).exit_code == 0
