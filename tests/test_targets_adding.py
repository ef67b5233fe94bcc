"""Labels and targets added to a sealed store: nothing rewritten, killed and gone on with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import block_writer
from storage.adding import AddedBlock, begin_addition
from storage.errors import CorruptStore, IncompleteStore, StoreError, StoreMismatch, UsageError
from storage.format import ATTRIBUTE, json_bytes
from storage.layout import group_metadata
from storage.manifest import Manifest, file_entry, read_manifest
from storage.merge import merge_stores
from storage.origin import check_origin
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import LabelStore
from storage.verify import verify
from tests.store_helpers import fill_store, make_block, make_spec, make_teacher
from tests.target_helpers import (
    DENSE,
    FEATURES,
    TOKENS,
    encode_rows,
    fill_target_store,
    make_target_spec,
    make_targets,
    write_all_constants,
)

MASKED = (5,)


@pytest.fixture
def parent(tmp_path: Path) -> LabelStore:
    store = fill_store(tmp_path / "parent.zarr", masked=MASKED)
    seal(store)
    return LabelStore.open(store.path)


def add_blocks(store: LabelStore, blocks: list[int] | None = None, **changes: Any) -> None:
    """What a labeller adds: labels of `other` where it is new, and all new targets."""
    added = store.attributes["origin"]["added"]
    write_all_constants(store, list(added["targets"]))
    for block in store.missing_blocks() if blocks is None else blocks:
        whole = make_block(dataclasses.replace(store.spec, targets={}), block, MASKED)
        new = {path: store.spec.targets[path] for path in added["targets"]}
        data = AddedBlock(
            labels={name: whole.labels[name] for name in added["labels"]},
            tail_mass={name: whole.tail_mass[name] for name in added["labels"]},
            targets=encode_rows(new, store.block_rows(block)),
        )
        store.put_added(block, dataclasses.replace(data, **changes), "cpu")


def inodes(store: LabelStore) -> dict[str, int]:
    return {name: (store.path / name).stat().st_ino for name in read_manifest(store.path).objects}


def test_features_are_added_without_copying_or_changing_a_byte(
    parent: LabelStore, tmp_path: Path
) -> None:
    before = {name: file_entry(parent.path / name) for name in read_manifest(parent.path).objects}
    targets = {path: make_targets()[path] for path in (FEATURES, TOKENS)}
    store = begin_addition(parent, tmp_path / "more.zarr", targets=targets)
    assert store.missing_blocks() == [0, 1, 2]
    add_blocks(store)
    seal(store)
    ours, theirs = inodes(LabelStore.open(store.path)), inodes(parent)
    assert all(ours[name] == number for name, number in theirs.items() if name != "zarr.json")
    assert {n: file_entry(parent.path / n) for n in before} == before
    assert verify(parent.path, full=True).problems == []
    assert verify(store.path, full=True).problems == []
    whole = fill_target_store(
        tmp_path / "whole", dataclasses.replace(make_spec(), targets=targets), MASKED
    )
    for path in targets:
        found, wanted = (s.read_target(path, slice(None)) for s in (store, whole))
        for name, values in found.items():
            np.testing.assert_array_equal(values, wanted[name])
    plane, old = store.read_plane(2, 2, "toy"), parent.read_plane(2, 2, "toy")
    np.testing.assert_array_equal(plane.index, old.index)


def test_an_added_teacher_measures_as_if_it_had_labelled_alone(
    parent: LabelStore, tmp_path: Path
) -> None:
    other = make_teacher("other", top_k=2)
    store = begin_addition(parent.path, tmp_path / "more.zarr", teachers={"other": other})
    add_blocks(store)
    seal(store)
    alone = fill_store(tmp_path / "alone", make_spec(teachers=[other]), MASKED)
    seal(alone)
    measured = LabelStore.open(store.path).attributes["measured"]
    assert measured["teachers"]["toy"] == parent.attributes["measured"]["teachers"]["toy"]
    assert measured["teachers"]["other"] == alone.attributes["measured"]["teachers"]["other"]
    assert measured["dataset_fingerprint"] == parent.dataset_fingerprint
    assert verify(store.path, full=True).problems == []
    np.testing.assert_array_equal(
        store.read_plane(0, 4, "other").index, alone.read_plane(0, 4, "other").index
    )


def test_additions_are_added_to_and_prove_their_files_against_both_roots(
    parent: LabelStore, tmp_path: Path
) -> None:
    roots = [read_manifest(parent.path).root]
    store, targets = parent, make_targets()
    for number, added in enumerate(
        ({"teachers": {"other": make_teacher("other")}}, {"targets": {DENSE: targets[DENSE]}})
    ):
        store = begin_addition(store, tmp_path / f"{number}.zarr", **added)  # type: ignore[arg-type]
        add_blocks(store)
        roots.append(seal(store).root)
    report = check_origin(store)
    assert set(report.proven) == set(roots[:2]) and report.problems == []
    assert report.proven[roots[0]]["objects"] == len(read_manifest(parent.path).objects) - 1
    assert verify(store.path, full=True).problems == []


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_an_addition_that_is_killed_between_files_goes_on(
    parent: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    targets = {path: make_targets()[path] for path in (FEATURES, DENSE)}
    whole = begin_addition(parent, tmp_path / "whole.zarr", targets=targets)
    add_blocks(whole)
    store = begin_addition(parent, tmp_path / "killed.zarr", targets=targets)
    add_blocks(store, [0])
    write, written = block_writer.write_atomic, []

    def kill(path: Path, data: bytes) -> None:
        if len(written) == after:
            raise Killed
        written.append(path)
        write(path, data)

    monkeypatch.setattr(block_writer, "write_atomic", kill)
    if after < 3:  # two files of features, one of logits, then the receipt, written elsewhere
        with pytest.raises(Killed):
            add_blocks(store, [1])
    monkeypatch.setattr(block_writer, "write_atomic", write)
    again = begin_addition(parent, tmp_path / "killed.zarr", targets=targets)
    assert again.missing_blocks() == [1, 2]
    add_blocks(again)
    assert seal(again).root == seal(whole).root


@pytest.mark.parametrize("links", [0, 1, 20])
def test_a_beginning_that_is_killed_between_links_goes_on(
    parent: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: int
) -> None:
    import os

    made, link = [], os.link

    def kill(source: Path, to: Path) -> None:
        if len(made) == links:
            raise Killed
        made.append(to)
        link(source, to)

    out, targets = tmp_path / "more.zarr", {DENSE: make_targets()[DENSE]}
    monkeypatch.setattr(os, "link", kill)
    with pytest.raises(Killed):
        begin_addition(parent, out, targets=targets)
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError):
        LabelStore.open(out)  # not a store yet
    store = begin_addition(parent, out, targets=targets)
    add_blocks(store)
    seal(store)
    assert verify(out, full=True).problems == []


def test_where_disks_have_no_links_bytes_are_copied(
    parent: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def refuse(source: Path, to: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    store = begin_addition(parent, tmp_path / "more.zarr", targets={DENSE: make_targets()[DENSE]})
    add_blocks(store)
    seal(store)
    shutil.rmtree(parent.path)
    assert verify(store.path, full=True).problems == []


def test_an_unsealed_parent_is_refused(tmp_path: Path) -> None:
    store = fill_store(tmp_path / "s.zarr")
    with pytest.raises(IncompleteStore, match="not sealed"):
        begin_addition(store, tmp_path / "more.zarr", targets={DENSE: make_targets()[DENSE]})
    assert not (tmp_path / "more.zarr").exists()


def test_what_the_store_has_and_nothing_at_all_are_refused(
    parent: LabelStore, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nothing to add"):
        begin_addition(parent, tmp_path / "x")
    with pytest.raises(UsageError, match="has toy already"):
        begin_addition(parent, tmp_path / "x", teachers={"toy": make_teacher()})
    with pytest.raises(UsageError, match="whose labels the store doesn't have"):
        targets = {DENSE: dataclasses.replace(make_targets()[DENSE], teacher="nobody")}
        begin_addition(parent, tmp_path / "x", targets=targets)
    assert not (tmp_path / "x").exists()


def test_a_folder_begun_for_something_else_is_left_alone(
    parent: LabelStore, tmp_path: Path
) -> None:
    targets = make_targets()
    out = tmp_path / "more.zarr"
    add_blocks(begin_addition(parent, out, targets={DENSE: targets[DENSE]}), [0])
    with pytest.raises(StoreMismatch, match="begun by another command"):
        begin_addition(parent, out, targets={FEATURES: targets[FEATURES]})
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a label store"):
        begin_addition(parent, other, targets={DENSE: targets[DENSE]})
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_data_of_other_teachers_or_shapes_is_refused(parent: LabelStore, tmp_path: Path) -> None:
    store = begin_addition(parent, tmp_path / "more.zarr", targets={DENSE: make_targets()[DENSE]})
    targets = encode_rows({DENSE: make_targets()[DENSE]}, store.block_rows(0))
    with pytest.raises(UsageError, match="the store is for"):
        store.put_added(0, AddedBlock(), "cpu")
    toy = make_block(parent.spec, 0).labels
    with pytest.raises(UsageError, match="labels of \\['toy'\\]"):
        store.put_added(0, AddedBlock(labels=toy, targets=targets), "cpu")
    targets[DENSE]["logits"] = targets[DENSE]["logits"][:2]
    with pytest.raises(UsageError, match="expected float16"):
        store.put_added(0, AddedBlock(targets=targets), "cpu")
    with pytest.raises(UsageError, match="not begun by"):
        parent.put_added(0, AddedBlock(), "cpu")


def test_a_damaged_old_file_is_not_sealed_in(parent: LabelStore, tmp_path: Path) -> None:
    store = begin_addition(parent, tmp_path / "more.zarr", targets={DENSE: make_targets()[DENSE]})
    add_blocks(store)
    name = store.layouts["labels/toy/tail"].block_objects(0)[0]
    data = bytearray((store.path / name).read_bytes())
    data[8] ^= 1
    (store.path / name).unlink()
    (store.path / name).write_bytes(data)
    with pytest.raises(CorruptStore, match="labels/toy/tail"):
        seal(store)


def test_an_old_file_that_was_replaced_and_sealed_anew_is_not_proven(
    parent: LabelStore, tmp_path: Path
) -> None:
    """Somebody changes the parent's labels and writes a consistent manifest over them."""
    store = begin_addition(parent, tmp_path / "more.zarr", targets={DENSE: make_targets()[DENSE]})
    add_blocks(store)
    manifest = seal(store)
    other = fill_store(tmp_path / "other", make_spec(seed=6), MASKED)
    name = store.layouts["views/flip"].block_objects(0)[0]
    data = (other.path / name).read_bytes()
    (store.path / name).unlink()
    (store.path / name).write_bytes(data)
    objects = {**manifest.objects, name: file_entry(store.path / name)}
    (store.path / "manifest.json").write_bytes(Manifest(objects, manifest.provenance).to_bytes())
    assert any(p.kind == "origin" for p in verify(store.path, full=True).problems)


def test_an_addition_must_prove_every_file_it_did_not_write(
    parent: LabelStore, tmp_path: Path
) -> None:
    store = begin_addition(parent, tmp_path / "more.zarr", targets={DENSE: make_targets()[DENSE]})
    add_blocks(store)
    manifest = seal(store)
    values = json.loads((store.path / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]
    values["origin"]["ancestors"] = []
    root = json_bytes(group_metadata({ATTRIBUTE: values}))
    (store.path / "zarr.json").write_bytes(root)
    objects = {**manifest.objects, "zarr.json": file_entry(store.path / "zarr.json")}
    (store.path / "manifest.json").write_bytes(Manifest(objects, manifest.provenance).to_bytes())
    found = [p.detail for p in verify(store.path, full=True).problems if p.kind == "origin"]
    assert found and "origin can't be read" in found[0]


def test_additions_are_cut_and_their_parts_merged(parent: LabelStore, tmp_path: Path) -> None:
    targets = {path: make_targets()[path] for path in (FEATURES, DENSE)}
    parts = []
    for number in range(2):
        part = begin_addition(parent, tmp_path / f"{number}", targets=targets)
        add_blocks(part, [0, 1] if number else [2])
        parts.append(part.path)
    root = merge_stores(parts, tmp_path / "m.zarr").root
    whole = begin_addition(parent, tmp_path / "whole", targets=targets)
    add_blocks(whole)
    assert seal(whole).root == root
    subset(tmp_path / "m.zarr", tmp_path / "cut", Selection(views=(0, 4), targets=[DENSE]))
    assert verify(tmp_path / "cut", full=True).problems == []
    assert read_manifest(parent.path).root in check_origin(LabelStore.open(tmp_path / "cut")).proven


def test_targets_of_a_store_with_targets_are_kept(tmp_path: Path) -> None:
    spec = make_target_spec()
    spec = dataclasses.replace(spec, targets={FEATURES: spec.targets[FEATURES]})
    old = fill_target_store(tmp_path / "old", spec, MASKED)
    seal(old)
    store = begin_addition(old, tmp_path / "more", targets={TOKENS: make_targets()[TOKENS]})
    assert store.missing_constants() == [TOKENS]
    add_blocks(store)
    seal(store)
    ours, theirs = (s.read_target(FEATURES, slice(None)) for s in (store, old))
    np.testing.assert_array_equal(ours["value"], theirs["value"])
    assert verify(store.path, full=True).problems == []
