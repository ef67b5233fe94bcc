"""Stores with targets cut, merged, continued, compared and read from elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from remote_helpers import FAST
from web_servers import FileServer

from storage.cli import cli
from storage.compare import diff
from storage.errors import IncompleteStore, StoreError, StoreMismatch, UsageError
from storage.extend import continue_store
from storage.format import keys_hash
from storage.manifest import CHUNKS, read_manifest
from storage.merge import merge_stores
from storage.origin import check_origin
from storage.remote.digests import digests_to_bytes, store_digests
from storage.remote.pull import pull
from storage.remote.store import RemoteStore
from storage.remote.transport import Transport
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore
from storage.targets.vectors import decode_vectors, encode_vectors
from storage.verify import verify
from tests.store_helpers import make_block, make_spec, make_teacher
from tests.target_helpers import (
    DENSE,
    FEATURES,
    HEADS,
    TOKENS,
    encode_rows,
    fill_target_store,
    make_target_spec,
    make_targets,
    true_vectors,
    write_all_constants,
)

ALL = [FEATURES, HEADS, TOKENS, DENSE]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Ten images, six views, four with targets (two with heads), in files of two views."""
    spec = make_target_spec(segment_views=2)
    found = fill_target_store(tmp_path_factory.mktemp("reuse") / "s.zarr", spec, masked=[5])
    seal(found)
    return LabelStore.open(found.path)


def assert_vectors(
    made: LabelStore, whole: LabelStore, rows: list[int] | slice, first: int = 0
) -> None:
    """The targets of `made` are those rows and views of `whole`, value for value."""
    for path, record in made.spec.targets.items():
        ours = made.read_target(path, slice(None))
        theirs = whole.read_target(path, slice(None))
        for name, values in ours.items():
            wanted = theirs[name][rows][:, first : first + record.views]
            np.testing.assert_array_equal(values, wanted)
        for name in record.constants:
            np.testing.assert_array_equal(
                made.read_constant(path, name), whole.read_constant(path, name)
            )
    assert verify(made.path, full=True).problems == []
    assert check_origin(made).problems == []


@pytest.mark.parametrize("last", [1, 2, 3, 6])
def test_fewer_views_keep_the_first_views_of_targets(
    store: LabelStore, tmp_path: Path, last: int
) -> None:
    subset(store.path, tmp_path / "cut.zarr", Selection(views=(0, last)))
    made = LabelStore.open(tmp_path / "cut.zarr")
    assert {p: r.views for p, r in made.spec.targets.items()} == {
        FEATURES: min(4, last), HEADS: min(2, last), TOKENS: min(4, last), DENSE: min(4, last),
    }  # fmt: skip
    assert_vectors(made, store, slice(None))
    proven = check_origin(made).proven[read_manifest(store.path).root]
    assert proven["objects"] > (40 if last % 2 == 0 else 20)  # whole segments are copied
    ours, theirs = (
        s.read_array(f"{FEATURES}/value", slice(None), slice(0, last if last < 4 else 4))
        for s in (made, store)
    )
    np.testing.assert_array_equal(ours, theirs)  # the very integers


def test_later_views_keep_what_is_left_of_targets(store: LabelStore, tmp_path: Path) -> None:
    subset(store.path, tmp_path / "cut.zarr", Selection(views=(2, 6)))
    made = LabelStore.open(tmp_path / "cut.zarr")
    assert sorted(made.spec.targets) == sorted([FEATURES, TOKENS, DENSE])  # heads had two views
    assert made.spec.targets[DENSE].views == 2
    assert_vectors(made, store, slice(None), first=2)
    with pytest.raises(UsageError, match="has none of them"):
        subset(store.path, tmp_path / "x.zarr", Selection(views=(2, 6), targets=[HEADS]))


def test_chosen_images_have_their_vectors(store: LabelStore, tmp_path: Path) -> None:
    keys = store.read_images().key
    rows = [0, 2, 5, 7, 9]
    subset(store.path, tmp_path / "cut.zarr", Selection(images=[keys[row] for row in rows]))
    assert_vectors(LabelStore.open(tmp_path / "cut.zarr"), store, rows)


def test_whole_blocks_further_on_are_copied_with_their_constants(
    store: LabelStore, tmp_path: Path
) -> None:
    keys = store.read_images().key
    rows = [4, 5, 6, 7]
    subset(store.path, tmp_path / "cut.zarr", Selection(images=[keys[row] for row in rows]))
    made = LabelStore.open(tmp_path / "cut.zarr")
    assert_vectors(made, store, rows)
    name = made.layouts[f"{FEATURES}/value"].block_objects(0)[0]
    there = store.layouts[f"{FEATURES}/value"].block_objects(1)[0]
    assert (made.path / name).read_bytes() == (store.path / there).read_bytes()


@pytest.mark.parametrize(
    ("text", "kept"),
    [(f"{FEATURES},{DENSE}", [DENSE, FEATURES]), ("none", []), ("all", sorted(ALL))],
)
def test_the_command_line_picks_targets(
    store: LabelStore, tmp_path: Path, text: str, kept: list[str]
) -> None:
    out = tmp_path / "cut.zarr"
    words = ["subset", str(store.path), "--out", str(out), "--targets", text]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = LabelStore.open(out)
    assert sorted(made.spec.targets) == kept
    assert_vectors(made, store, slice(None))


def test_targets_that_arent_there_or_lack_their_teacher_are_refused(
    store: LabelStore, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no target features/other"):
        subset(store.path, tmp_path / "x.zarr", Selection(targets=["features/other"]))
    with pytest.raises(UsageError, match="whose labels would be left out"):
        subset(store.path, tmp_path / "x.zarr", Selection(labels=[], targets=[DENSE]))


def _rows_store(path: Path, rows: range, **changes: object) -> LabelStore:
    """A sealed store of some of the ten images."""
    whole = make_target_spec()
    keys = [f"k/{row:04d}" for row in rows]
    dataset = {**whole.dataset, "num_images": len(rows), "keys_hash": keys_hash(keys)}
    targets = {
        path: dataclasses.replace(record, **changes)  # type: ignore[arg-type]
        for path, record in whole.targets.items()
    }
    spec = dataclasses.replace(whole, num_images=len(rows), dataset=dataset, targets=targets)
    store = LabelStore.create(path, spec)
    write_all_constants(store)
    full = make_block(dataclasses.replace(whole, block_images=10), 0)
    for block in range(store.blocks):
        inside = [rows[i] for i in store.block_rows(block)]
        picked = {
            name: getattr(full, name)[inside]
            for name in ("digest", "size", "target", "status", "box", "flip")
        }
        labels = {
            name: type(label)(label.index[inside], label.code[inside], label.tail[inside])
            for name, label in full.labels.items()
        }
        data = dataclasses.replace(
            full, **picked, key=[f"k/{row:04d}" for row in inside], labels=labels,
            targets=encode_rows(spec.targets, inside),
        )  # fmt: skip
        store.write_block(block, data, "cpu")
    seal(store)
    return store


def test_stores_of_other_images_are_merged(tmp_path: Path) -> None:
    parts = [_rows_store(tmp_path / "a", range(4)), _rows_store(tmp_path / "b", range(4, 10))]
    merge_stores([part.path for part in parts], tmp_path / "m.zarr")
    made = LabelStore.open(tmp_path / "m.zarr")
    record = made.spec.targets[TOKENS]
    found = made.read_target(TOKENS, slice(None))
    for part in record.parts:
        for row in range(10):
            values = true_vectors(record, row)[part.name]
            wanted = decode_vectors(part, encode_vectors(part, values))
            np.testing.assert_array_equal(found[part.name][row], wanted)
    assert verify(made.path, full=True).problems == []


def test_stores_with_other_targets_are_not_merged(tmp_path: Path) -> None:
    parts = [
        _rows_store(tmp_path / "a", range(4)),
        _rows_store(tmp_path / "b", range(4, 10), views=3),
    ]
    with pytest.raises(StoreMismatch, match="views is 4, not 3"):
        merge_stores([part.path for part in parts], tmp_path / "m.zarr")


def _continued(store: LabelStore, out: Path, views: int) -> LabelStore:
    more = continue_store(store.path, out, views)
    write_all_constants(more)
    first = store.spec.num_views
    whole = dataclasses.replace(more.spec, num_views=views, targets={})
    for block in range(more.blocks):
        full = make_block(whole, block)
        labels = {
            name: type(label)(label.index[:, first:], label.code[:, first:], label.tail[:, first:])
            for name, label in full.labels.items()
        }
        data = dataclasses.replace(
            full, box=full.box[:, first:], flip=full.flip[:, first:], labels=labels,
            targets=encode_rows(more.spec.targets, more.block_rows(block), first),
        )  # fmt: skip
        more.write_block(block, data, "cpu")
    seal(more)
    return more


def test_targets_of_every_view_are_continued_others_are_kept(tmp_path: Path) -> None:
    spec = make_target_spec(num_views=4, views=4)  # heads have two
    store = fill_target_store(tmp_path / "s.zarr", spec)
    seal(store)
    more = _continued(store, tmp_path / "more.zarr", 6)
    assert sorted(more.spec.targets) == sorted([FEATURES, TOKENS, DENSE])
    merge_stores([store.path, more.path], tmp_path / "m.zarr")
    made = LabelStore.open(tmp_path / "m.zarr")
    assert {p: r.views for p, r in made.spec.targets.items()} == {
        FEATURES: 6, TOKENS: 6, DENSE: 6, HEADS: 2
    }  # fmt: skip
    whole = fill_target_store(tmp_path / "whole.zarr", dataclasses.replace(
        make_target_spec(num_views=6, views=6)))  # fmt: skip
    for path in (FEATURES, TOKENS, DENSE):
        ours, theirs = (s.read_target(path, slice(None)) for s in (made, whole))
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
    assert verify(made.path, full=True).problems == []


def test_views_that_follow_without_their_targets_are_refused(
    store: LabelStore, tmp_path: Path
) -> None:
    for number, views in enumerate([(0, 2), (2, 6)]):
        subset(store.path, tmp_path / f"{number}", Selection(views=views))
    subset(tmp_path / "0", tmp_path / "bare", Selection(targets=[]))
    with pytest.raises(StoreMismatch, match="doesn't have it of all its views"):
        merge_stores([tmp_path / "bare", tmp_path / "1"], tmp_path / "m.zarr")
    merge_stores([tmp_path / "0", tmp_path / "1"], tmp_path / "m.zarr")
    made = LabelStore.open(tmp_path / "m.zarr")
    assert made.spec.targets == store.spec.targets
    assert_vectors(made, store, slice(None))


def test_other_teachers_bring_their_targets(tmp_path: Path) -> None:
    one = fill_target_store(tmp_path / "one", make_target_spec())
    teacher = make_teacher("other")
    spec = make_spec(teachers=[teacher])
    record = dataclasses.replace(make_targets(teacher="other")[DENSE], name="theirs")
    spec = dataclasses.replace(spec, targets={record.path: record})
    two = LabelStore.create(tmp_path / "two", spec)
    for block in range(two.blocks):
        targets = encode_rows(spec.targets, two.block_rows(block))
        two.write_block(block, dataclasses.replace(make_block(spec, block), targets=targets), "cpu")
    for part in (one, two):
        seal(part)
    merge_stores([one.path, two.path], tmp_path / "m.zarr")
    made = LabelStore.open(tmp_path / "m.zarr")
    assert sorted(made.spec.targets) == sorted([*ALL, "dense/theirs"])
    ours, theirs = (s.read_target("dense/theirs", slice(None)) for s in (made, two))
    np.testing.assert_array_equal(ours["logits"], theirs["logits"])
    assert verify(made.path, full=True).problems == []


def test_parts_of_one_run_are_merged_with_their_constants(tmp_path: Path) -> None:
    spec = make_target_spec()
    whole = fill_target_store(tmp_path / "whole", spec)
    for number in range(2):
        part = LabelStore.create(tmp_path / f"{number}", spec)
        for block in range(number, part.blocks, 2):
            targets = encode_rows(spec.targets, part.block_rows(block))
            data = dataclasses.replace(make_block(spec, block), targets=targets)
            part.write_block(block, data, "cpu")
    paths = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(IncompleteStore, match="in none of the stores"):
        merge_stores(paths, tmp_path / "m.zarr")
    write_all_constants(LabelStore.open(paths[1]))
    assert merge_stores(paths, tmp_path / "m.zarr").root == seal(whole).root


def test_diff_names_targets_that_differ(store: LabelStore, tmp_path: Path) -> None:
    changed = LabelStore.create(tmp_path / "b", store.spec)
    write_all_constants(changed)
    for block in range(changed.blocks):
        targets = encode_rows(changed.spec.targets, changed.block_rows(block))
        if block == 1:
            targets[DENSE]["logits"][2, 3, 1] += 1  # row 6, view 3
        data = dataclasses.replace(make_block(changed.spec, block, [5]), targets=targets)
        changed.write_block(block, data, "cpu")
    report = diff(store, changed)
    assert not report.equal
    assert report.targets[DENSE] == {"compared": 36, "different": 1}
    assert report.first_target == {DENSE: f"{store.read_images().key[6]} view 3"}
    assert report.targets[FEATURES]["different"] == 0
    subset(store.path, tmp_path / "cut", Selection(views=(2, 6), targets=[FEATURES]))
    cut = diff(store, LabelStore.open(tmp_path / "cut"))
    assert cut.only_a["targets"] == sorted([DENSE, HEADS, TOKENS])
    assert cut.targets == {FEATURES: {"compared": 18, "different": 0}}
    assert "targets.features/pooled.views is 4, not 2" in cut.settings


def test_a_few_rows_of_a_remote_target_are_fetched_alone(store: LabelStore, tmp_path: Path) -> None:
    root = read_manifest(store.path).root
    (store.path / CHUNKS).write_bytes(digests_to_bytes(root, store_digests(store)))
    with FileServer(store.path.parent) as server:
        url = f"{server.url}/{store.path.name}"
        remote = RemoteStore.connect(Transport(url, FAST), tmp_path / "cache", 10**9)
        rows = np.array([9, 0, 5])
        for path in ALL:
            ours, theirs = (s.read_target(path, rows, slice(0, 2)) for s in (remote, store))
            for name, values in ours.items():
                np.testing.assert_array_equal(values, theirs[name])
            for name in store.spec.targets[path].constants:
                np.testing.assert_array_equal(
                    remote.read_constant(path, name), store.read_constant(path, name)
                )
        assert remote.target_file(TOKENS, "tail.safetensors") == store.target_file(
            TOKENS, "tail.safetensors"
        )
        assert remote.missing_constants() == []
        with pytest.raises(StoreError, match="pull it"):
            remote.write_constants(FEATURES)
        later = store.layouts[f"{DENSE}/logits"].object_paths(0, [1])[0]
        assert not (remote.path / later).exists()  # views 2 and 3
        whole = RemoteStore.connect(Transport(url, FAST), tmp_path / "c2", 10**9, whole=True)
        pull(whole, tmp_path / "pulled", views=(0, 2))
    assert_vectors(LabelStore.open(tmp_path / "pulled"), store, slice(None))
    (store.path / CHUNKS).unlink()
