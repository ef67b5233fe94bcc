"""Merging: blocks of one run, other images, further views and other teachers; refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from store_helpers import CLASSES, fill_store, make_block, make_spec, make_teacher
from test_reuse_subset import PARTS, assert_same_values, files

from storage.atomic import write_atomic
from storage.commands.reuse import merge as merge_command
from storage.errors import CorruptStore, IncompleteStore, StoreError, StoreMismatch, UsageError
from storage.extend import continue_store, extension_differences
from storage.format import keys_hash
from storage.images import class_order_hash
from storage.manifest import read_manifest
from storage.merge import merge_stores
from storage.origin import check_origin
from storage.parents import first_view
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore
from storage.verify import verify


def sealed(path, spec, **options):
    store = fill_store(path, spec, **options)
    seal(store)
    return store


def cut(store, out, **selection):
    subset(store.path, out, Selection(**selection))
    return LabelStore.open(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """10 images, 10 views in files of 4, two teachers, one image masked."""
    teachers = [make_teacher(), make_teacher("other", top_k=5)]
    return sealed(tmp_path_factory.mktemp("whole") / "s", make_spec(10, 10, teachers), masked=[2])


@pytest.fixture(scope="module")
def parts(whole, tmp_path_factory):
    """The same store in pieces: by views, by teacher and by images."""
    folder = tmp_path_factory.mktemp("parts")
    keys = whole.read_images().key
    return {
        "head": cut(whole, folder / "head", views=(0, 4)),
        "tail": cut(whole, folder / "tail", views=(4, 10)),
        "odd tail": cut(whole, folder / "odd", views=(3, 10)),
        "toy": cut(whole, folder / "toy", labels=["toy"]),
        "other": cut(whole, folder / "other", labels=["other"]),
        "even": cut(whole, folder / "even", images=keys[::2]),
        "uneven": cut(whole, folder / "uneven", images=keys[1::2]),
    }


def assert_whole_again(out, whole, copied):
    """Every value of the whole store; nothing left over; `copied` chunks proven to be its own."""
    store = LabelStore.open(out)
    assert verify(out, full=True).problems == []
    rows = [whole.read_images().key.index(key) for key in store.read_images().key]
    assert sorted(rows) == list(range(10))
    assert_same_values(store, whole, rows, (0, 10), whole.spec.teachers)
    report = check_origin(store, read_manifest(whole.path).root) if copied else None
    assert report is None or report.problems == []
    return store


def test_views_that_follow_each_other_become_one_store(parts, whole, tmp_path):
    merge_stores([parts["tail"].path, parts["head"].path], tmp_path / "m")
    store = assert_whole_again(tmp_path / "m", whole, copied=True)
    assert store.spec.settings() == whole.spec.settings()
    ours, theirs = files(tmp_path / "m"), files(whole.path)
    assert {n for n in ours if ours[n] != theirs[n]} == {"zarr.json"}  # bytes came back the same
    record = store.attributes["origin"]
    assert record["kind"] == "merge-views"
    assert [p["root"] for p in record["parents"]] == [
        read_manifest(parts[name].path).root for name in ("head", "tail")
    ]
    own = {item[1] for proof in record["ancestors"] for item in proof["objects"]}
    assert {name for name in ours if "/c/" in name} <= own


def test_teachers_of_the_same_views_become_one_store(parts, whole, tmp_path):
    merge_stores([parts["other"].path, parts["toy"].path], tmp_path / "m")
    store = assert_whole_again(tmp_path / "m", whole, copied=True)
    ours, theirs = files(tmp_path / "m"), files(whole.path)
    assert {n for n in ours if ours[n] != theirs[n]} == {"zarr.json"}
    assert store.attributes["origin"]["kind"] == "merge-teachers"


def test_disjoint_images_become_one_store_in_the_order_of_their_keys(parts, whole, tmp_path):
    merge_stores([parts["uneven"].path, parts["even"].path], tmp_path / "m")
    store = assert_whole_again(tmp_path / "m", whole, copied=False)
    keys = store.read_images().key
    assert keys == sorted(keys)
    assert store.spec.dataset["keys_hash"] == keys_hash(keys)
    assert store.attributes["origin"]["kind"] == "merge-images"


def test_images_whose_keys_need_more_room_are_merged(parts, tmp_path):
    spec = make_spec(3, 10, [make_teacher(), make_teacher("other", top_k=5)], key_bytes=80,
                     block_images=2, segment_views=2)  # fmt: skip
    keys = [f"ant/{'z' * 70}{row}.jpg" for row in range(3)]
    wide = sealed(tmp_path / "wide", spec, keys=keys)
    merge_stores([parts["uneven"].path, wide.path], tmp_path / "m")
    store = LabelStore.open(tmp_path / "m")
    assert verify(store.path, full=True).problems == [] and store.spec.key_bytes == 80
    table = store.read_images()
    for parent in (parts["uneven"], wide):
        theirs = parent.read_images()
        rows = [table.key.index(key) for key in theirs.key]
        assert np.array_equal(table.digest[rows], theirs.digest)
        for part in PARTS:
            ours = getattr(store.read_plane(0, 10, "toy"), part)
            assert np.array_equal(ours[rows], getattr(parent.read_plane(0, 10, "toy"), part))


def test_blocks_written_in_two_places_give_the_store_of_one_run(tmp_path):
    spec = make_spec(10, 6)
    whole = sealed(tmp_path / "whole", spec, masked=[2])
    for name, blocks in (("a", [0, 2]), ("b", [1, 2])):
        store = LabelStore.create(tmp_path / name, spec)
        for block in blocks:
            store.write_block(block, make_block(spec, block, masked=[2]), f"device {name}")
    manifest = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert manifest.root == read_manifest(whole.path).root
    assert manifest.provenance["devices"] == ["device a", "device b"]
    assert files(tmp_path / "m") == files(whole.path)
    assert verify(tmp_path / "m", full=True).problems == []


def test_blocks_are_refused_where_they_are_missing_differ_or_are_damaged(tmp_path):
    spec = make_spec(10, 6)
    a, b = (LabelStore.create(tmp_path / name, spec) for name in "ab")
    a.write_block(0, make_block(spec, 0), "cpu")
    b.write_block(1, make_block(spec, 1), "cpu")
    with pytest.raises(IncompleteStore, match="1 of 3 blocks are in none"):
        merge_stores([a.path, b.path], tmp_path / "m")
    b.write_block(2, make_block(spec, 2), "cpu")
    b.write_block(0, make_block(spec, 0, masked=[1]), "cpu")
    with pytest.raises(StoreMismatch, match="both hold block 0, with different bytes"):
        merge_stores([a.path, b.path], tmp_path / "m")
    b.write_block(0, make_block(spec, 0), "cpu")
    path = a.path / "labels/toy/tail/c/0/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="labels/toy/tail/c/0/0 is not what was written"):
        merge_stores([a.path, b.path], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    other = LabelStore.create(tmp_path / "c", make_spec(10, 6, seed=6))
    with pytest.raises(StoreMismatch, match="seed is 5, not 6"):
        merge_stores([a.path, other.path], tmp_path / "n")


def test_a_store_is_continued_with_the_views_that_follow(tmp_path):
    """What `labelgen` does to extend a store, with the made-up teacher."""
    whole = sealed(tmp_path / "whole", make_spec(10, 10))
    short_spec = dataclasses.replace(whole.spec, num_views=4)
    short = LabelStore.create(tmp_path / "short", short_spec)
    data = [make_block(whole.spec, block) for block in range(3)]

    def views(block, first, last):
        labels = {
            name: type(part)(*(getattr(part, x)[:, first:last] for x in ("index", "code", "tail")))
            for name, part in block.labels.items()
        }
        return dataclasses.replace(
            block, box=block.box[:, first:last], flip=block.flip[:, first:last], labels=labels
        )

    for block in range(3):
        short.write_block(block, views(data[block], 0, 4), "cpu")
    seal(short)
    more = continue_store(short.path, tmp_path / "more", 10)
    assert (first_view(more), more.spec.num_views) == (4, 6)
    assert extension_differences(short.spec, whole.spec) == []
    for block in range(3):
        more.write_block(block, views(data[block], 4, 10), "cpu")
    seal(more)
    assert first_view(LabelStore.open(more.path)) == 4
    merge_stores([short.path, more.path], tmp_path / "long")
    long = LabelStore.open(tmp_path / "long")
    assert long.spec.settings() == whole.spec.settings()
    ours, theirs = files(long.path), files(whole.path)
    assert {n for n in ours if ours[n] != theirs[n]} == {"zarr.json"}
    with pytest.raises(UsageError, match="has 10 already"):
        continue_store(long.path, tmp_path / "none", 10)


def test_views_that_the_settings_don_t_draw_are_refused(tmp_path):
    spec = make_spec(10, 4)
    short = sealed(tmp_path / "short", spec)
    false = continue_store(short.path, tmp_path / "false", 8)
    for block in range(3):
        false.write_block(block, make_block(false.spec, block), "cpu")  # views 0 to 3 once more
    seal(false)
    with pytest.raises(StoreMismatch, match="not views 4 onwards"):
        merge_stores([short.path, false.path], tmp_path / "m")


def test_views_with_a_gap_or_an_overlap_are_refused(parts, whole, tmp_path):
    with pytest.raises(StoreMismatch, match=r"0:4, 3:10\) neither are the same nor follow"):
        merge_stores([parts["head"].path, parts["odd tail"].path], tmp_path / "m")
    far = cut(whole, tmp_path / "far", views=(6, 10))
    with pytest.raises(StoreMismatch, match="0:4, 6:10"):
        merge_stores([parts["head"].path, far.path], tmp_path / "m")
    with pytest.raises(StoreMismatch, match="both have labels of other"):
        merge_stores([whole.path, parts["other"].path], tmp_path / "m")


def test_every_difference_is_named(parts, tmp_path):
    teachers = [make_teacher(digest="12" * 32, precision="bf16"), make_teacher("other", top_k=5)]
    dataset = {"classes": CLASSES[::-1], "class_order_hash": class_order_hash(CLASSES[::-1]),
               "keys_hash": "ef" * 32, "num_images": 3}  # fmt: skip
    other = sealed(tmp_path / "o", make_spec(3, 10, teachers, seed=9, dataset=dataset))
    with pytest.raises(StoreMismatch) as caught:
        merge_stores([parts["uneven"].path, other.path], tmp_path / "m")
    for name in ("seed is 5, not 9", "teachers.toy.digest", "teachers.toy.precision",
                 "dataset.classes", "dataset.class_order_hash"):  # fmt: skip
        assert name in str(caught.value), name
    assert list(tmp_path.glob("m*")) == []


def test_shared_images_are_refused(parts, whole, tmp_path):
    with pytest.raises(StoreMismatch, match="5 image keys are in more than one store"):
        merge_stores([whole.path, parts["even"].path], tmp_path / "m")


def test_rows_and_views_must_agree_for_a_second_teacher(tmp_path):
    ours = sealed(tmp_path / "a", make_spec(10, 6))
    masked = sealed(tmp_path / "b", make_spec(10, 6, [make_teacher("second")]), masked=[3])
    with pytest.raises(StoreMismatch, match="1 images have another status"):
        merge_stores([ours.path, masked.path], tmp_path / "m")
    spec = make_spec(10, 6, [make_teacher("second")])
    moved = LabelStore.create(tmp_path / "c", spec)
    for block in range(3):
        data = make_block(spec, block)
        if block == 1:
            data.flip[2, 5] ^= 1
        moved.write_block(block, data, "cpu")
    seal(moved)
    with pytest.raises(StoreMismatch, match="didn't see the same views"):
        merge_stores([ours.path, moved.path], tmp_path / "m")


def test_licences_are_mixed_only_when_allowed(tmp_path):
    ours = sealed(tmp_path / "a", make_spec(10, 6))
    licence = {"licence": "CC-BY-NC-4.0"}
    second = sealed(tmp_path / "b", make_spec(10, 6, [make_teacher("second", **licence)]))
    with pytest.raises(StoreMismatch, match=r"second: CC-BY-NC-4\.0.*--allow-licence-mix"):
        merge_stores([ours.path, second.path], tmp_path / "m")
    assert not (tmp_path / "m.partial").exists()
    merge_stores([ours.path, second.path], tmp_path / "m", allow_licence_mix=True)
    merged = LabelStore.open(tmp_path / "m")
    assert merged.spec.teachers["second"].licence == "CC-BY-NC-4.0"
    assert merged.attributes["origin"]["licences"] == {
        "second": ["CC-BY-NC-4.0"], "toy": ["Apache-2.0"],
    }  # fmt: skip
    keys = [f"cat/x{row}.jpg" for row in range(10)]
    third = sealed(tmp_path / "c", make_spec(10, 6, [make_teacher(**licence)]), keys=keys)
    with pytest.raises(StoreMismatch, match=r"toy: Apache-2\.0, CC-BY-NC-4\.0"):
        merge_stores([ours.path, third.path], tmp_path / "n")
    merge_stores([ours.path, third.path], tmp_path / "n", allow_licence_mix=True)
    record = LabelStore.open(tmp_path / "n").spec.teachers["toy"]
    assert record.licence == "Apache-2.0 AND CC-BY-NC-4.0"


def test_an_interrupted_merge_goes_on(parts, tmp_path, monkeypatch):
    pair = [parts["head"].path, parts["tail"].path]
    merge_stores(pair, tmp_path / "whole")
    put = LabelStore.put_block

    def interrupted(self, block, *rest, **named):
        if block == 1:
            raise KeyboardInterrupt
        put(self, block, *rest, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LabelStore, "put_block", interrupted)
        merge_stores(pair, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    done = []
    merge_stores(pair, tmp_path / "m", progress=lambda *part: done.append(part))
    assert done == [(2, 3), (3, 3)] and files(tmp_path / "m") == files(tmp_path / "whole")


def test_the_command_merges_and_refuses(parts, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(merge_command, [*map(str, arguments)])

    head, tail = parts["head"].path, parts["tail"].path
    result = invoke(head, tail, "--out", tmp_path / "m", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["origin"]["kind"] == "merge-views"
    assert found["root"] == read_manifest(tmp_path / "m").root
    for error, arguments in (
        (StoreError, (head, tail, "--out", tmp_path / "m")),
        (UsageError, (head, "--out", tmp_path / "n")),
        (UsageError, (head, head, "--out", tmp_path / "n")),
    ):
        assert isinstance(invoke(*arguments).exception, error)
    write_atomic(tmp_path / "file", b"")
    assert isinstance(invoke(head, tail, "--out", tmp_path / "file").exception, StoreError)
