"""Subsets: the parent's very values, copied where they can be, proven against the parent's root."""

from __future__ import annotations

import hashlib
import json
import random
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import CLASSES, fill_store, make_spec, make_teacher

from storage.atomic import write_atomic
from storage.block import BlockData
from storage.codecs import TopKCodec, TopKLabels
from storage.commands.reuse import subset as subset_command
from storage.dictionary import DictionaryCodec
from storage.errors import (
    CorruptStore,
    IncompleteStore,
    StoreError,
    StoreMismatch,
    UsageError,
)
from storage.format import ATTRIBUTE, json_bytes, keys_hash
from storage.layout import group_metadata
from storage.manifest import merkle_root, read_manifest
from storage.origin import check_origin
from storage.proofs import HashTree, leaf_hash
from storage.sealing import seal
from storage.select import Selection, subset
from storage.select_topk import cut_topk, tail_error
from storage.store import ROOT_METADATA, LabelStore
from storage.verify import verify

DICTIONARY = {DictionaryCodec: {"spread_classes": 4}}
PARTS = ("box", "flip", "index", "code", "tail")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """10 images in blocks of 4, 10 views in files of 4, one image masked, two teachers."""
    teachers = [make_teacher(), make_teacher("other", top_k=5)]
    path = tmp_path_factory.mktemp("parent") / "store.zarr"
    seal(fill_store(path, make_spec(10, 10, teachers), masked=[2]))
    return LabelStore.open(path)


def root_of(store):
    return read_manifest(store.path).root


def files(path):
    """Bytes of every file that the Merkle root covers."""
    return {name: (path / name).read_bytes() for name in read_manifest(path).objects}


def assert_same_values(cut, parent, rows, views, teachers):
    """The subset holds the parent's values of these rows and views."""
    ours, theirs = cut.read_images(), parent.read_images()
    assert ours.key == [theirs.key[row] for row in rows]
    for part in ("digest", "size", "target", "status"):
        assert np.array_equal(getattr(ours, part), getattr(theirs, part)[rows]), part
    for teacher in teachers:
        mine = cut.read_plane(0, views[1] - views[0], teacher)
        other = parent.read_plane(views[0], views[1] - views[0], teacher)
        for part in PARTS:
            assert np.array_equal(getattr(mine, part), getattr(other, part)[rows]), part


def rewritten(store, path):
    """The same values written by the store's own writer."""
    copy = LabelStore.create(path, store.spec)
    table = store.read_images()
    planes = {name: store.read_plane(0, store.spec.num_views, name) for name in store.spec.teachers}
    any_plane = next(iter(planes.values()))
    for block in range(store.blocks):
        rows = slice(store.block_rows(block).start, store.block_rows(block).stop)
        labels = {
            name: TopKLabels(plane.index[rows], plane.code[rows], plane.tail[rows])
            for name, plane in planes.items()
        }
        data = BlockData(
            table.digest[rows], table.key[rows], table.size[rows], table.target[rows],
            table.status[rows], any_plane.box[rows], any_plane.flip[rows], labels,
        )  # fmt: skip
        copy.write_block(block, data, "cpu")
    seal(copy)
    return copy


SELECTIONS = {
    "first file of views": (Selection(views=(0, 4)), range(10), (0, 4)),
    "second file of views": (Selection(views=(4, 8)), range(10), (4, 8)),
    "short last file": (Selection(views=(8, 10)), range(10), (8, 10)),
    "views across files": (Selection(views=(3, 9)), range(10), (3, 9)),
    "one view": (Selection(views=(5, 6)), range(10), (5, 6)),
    "one teacher": (Selection(labels=["other"]), range(10), (0, 10)),
    "a class": (Selection(classes=["bee"]), [1, 4, 7], (0, 10)),
    "two classes": (Selection(classes=["cat", "ant"]), [0, 2, 3, 5, 6, 8, 9], (0, 10)),
    "a whole block": (
        Selection(images=[f"{CLASSES[r % 3]}/{r:04d}.jpg" for r in range(4, 8)]),
        range(4, 8), (0, 10),
    ),
    "a masked image": (Selection(images=["cat/0002.jpg"], views=(0, 4)), [2], (0, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_subset_holds_the_parent_s_values_and_verifies(parent, tmp_path, name):
    selection, rows, views = SELECTIONS[name]
    manifest = subset(parent.path, tmp_path / "cut", selection)
    cut = LabelStore.open(tmp_path / "cut")
    report = verify(cut.path, full=True)
    assert report.problems == [] and report.root == manifest.root
    assert_same_values(cut, parent, list(rows), views, cut.spec.teachers)
    found = check_origin(cut, root_of(parent))
    assert found.problems == [] and found.proven[root_of(parent)]["objects"] > 0
    assert cut.spec.dataset["keys_hash"] == (
        keys_hash(cut.read_images().key) if len(rows) < 10 else parent.spec.dataset["keys_hash"]
    )
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("name", ["second file of views", "short last file", "views across files",
                                  "a whole block", "two classes"])  # fmt: skip
def test_a_copied_file_is_what_writing_its_values_gives(parent, tmp_path, name):
    """Copying whole files and encoding again are one and the same thing."""
    subset(parent.path, tmp_path / "cut", SELECTIONS[name][0])
    ours = files(tmp_path / "cut")
    again = files(rewritten(LabelStore.open(tmp_path / "cut"), tmp_path / "again").path)
    del ours[ROOT_METADATA], again[ROOT_METADATA]
    assert ours == again


def test_whole_files_are_copied_and_nothing_else_is_claimed(parent, tmp_path):
    subset(parent.path, tmp_path / "cut", Selection(views=(4, 8)))
    record = LabelStore.open(tmp_path / "cut").attributes["origin"]
    pairs = {own: theirs for _, own, theirs in record["ancestors"][0]["objects"]}
    ours, theirs = files(tmp_path / "cut"), files(parent.path)
    for own, older in pairs.items():
        assert ours[own] == theirs[older]
    assert pairs["labels/toy/index/c/1/0/0"] == "labels/toy/index/c/1/1/0"
    chunks = {name for name in ours if "/c/" in name}
    assert chunks <= set(pairs)  # views 4 to 7 are whole files
    assert record["parents"][0]["root"] == root_of(parent)
    assert record["selection"]["views"] == [4, 8]


def test_a_subset_of_a_subset_is_proven_against_the_first_root(parent, tmp_path):
    subset(parent.path, tmp_path / "a", Selection(views=(4, 10)))
    subset(tmp_path / "a", tmp_path / "b", Selection(views=(0, 4), labels=["toy"]))
    cut = LabelStore.open(tmp_path / "b")
    assert cut.attributes["first_view"] == 4
    for root in (root_of(parent), root_of(LabelStore.open(tmp_path / "a"))):
        found = check_origin(cut, root)
        assert found.problems == []
        chunks = [name for name in read_manifest(cut.path).objects if "/c/" in name]
        assert found.proven[root]["objects"] >= len(chunks)
    assert_same_values(cut, parent, list(range(10)), (4, 8), ["toy"])


@pytest.fixture(scope="module")
def head(parent, tmp_path_factory):
    """The first four views, for changing copies of it."""
    path = tmp_path_factory.mktemp("head") / "cut"
    subset(parent.path, path, Selection(views=(0, 4)))
    return path


def change_record(store, change):
    """Rewrite the record of a sealed store's origin and seal it again, as a liar would."""
    change(store.attributes["origin"])
    content = json_bytes(group_metadata({ATTRIBUTE: store.attributes}))
    write_atomic(store.path / ROOT_METADATA, content)
    manifest = read_manifest(store.path)
    digest = hashlib.sha256(content).hexdigest()
    manifest.objects[ROOT_METADATA] = (len(content), digest)
    write_atomic(store.path / "manifest.json", manifest.to_bytes())
    return LabelStore.open(store.path)


def swap_blocks(record):
    """True files of the parent, put beside other images."""
    proof = record["ancestors"][0]
    for item in proof["objects"]:
        head, tail = item[2].split("/c/") if "/c/" in item[2] else (item[2], None)
        if tail and head == "labels/toy/index":
            item[2] = f"{head}/c/{(int(tail[0]) + 1) % 2}{tail[1:]}"


LIES = {
    "another root": lambda record: record["ancestors"][0].update(root="0" * 64),
    "another hash": lambda record: record["ancestors"][0]["hashes"].__setitem__(0, "0" * 64),
    "a hash too few": lambda record: record["ancestors"][0]["hashes"].pop(),
    "a hash too many": lambda record: record["ancestors"][0]["hashes"].append("0" * 64),
    "no hexadecimal": lambda record: record["ancestors"][0]["hashes"].__setitem__(0, "zz"),
    "another row": lambda record: record["ancestors"][0]["objects"][3].__setitem__(0, 999),
    "another size of the tree": lambda record: record["ancestors"][0].update(leaves=10**9),
    "a file it doesn't have": lambda record: record["ancestors"][0]["objects"][0].__setitem__(
        1, "labels/none"
    ),
    "another array": lambda record: record["ancestors"][0]["objects"][0].__setitem__(
        1, "views/flip/zarr.json"
    ),
    "blocks swapped": swap_blocks,
    "a file under another's row": lambda record: record["ancestors"][0]["objects"].insert(
        0, [record["ancestors"][0]["objects"][0][0], "zarr.json", "zarr.json"]
    ),
    "no list of proofs": lambda record: record.update(ancestors=7),
    "a proof without a root": lambda record: record["ancestors"][0].pop("root"),
    "a path that is no path": lambda record: record["ancestors"][0]["objects"][3].__setitem__(2, 5),
}


@pytest.mark.parametrize("name", LIES)
def test_a_false_proof_is_found(parent, head, tmp_path, name):
    shutil.copytree(head, tmp_path / "cut")
    lying = change_record(LabelStore.open(tmp_path / "cut"), LIES[name])
    report = check_origin(lying, root_of(parent))
    assert report.problems and root_of(parent) not in report.proven


def test_a_changed_file_no_longer_has_a_proof(parent, head, tmp_path):
    shutil.copytree(head, tmp_path / "cut")
    cut = LabelStore.open(tmp_path / "cut")
    manifest = read_manifest(cut.path)
    manifest.objects["labels/toy/tail/c/0/0"] = (5, "0" * 64)
    write_atomic(cut.path / "manifest.json", manifest.to_bytes())
    assert "leads to" in check_origin(cut, root_of(parent)).problems[0]


def test_another_store_s_root_is_not_proven(head):
    report = check_origin(LabelStore.open(head), "ab" * 32)
    assert report.problems == [f"no file of the store is proven to be under {'ab' * 32}"]


@given(st.integers(1, 70), st.data())
@settings(max_examples=60)
def test_a_proof_of_any_leaves_leads_to_the_root(leaves, data):
    lines = [f"file{i:03d} {i} {'ab' * 32}" for i in range(leaves)]
    rows = data.draw(st.sets(st.integers(0, leaves - 1), min_size=1))
    tree = HashTree.from_lines(lines)
    assert tree.root == merkle_root(lines)
    hashes = tree.prove(rows)
    known = {row: leaf_hash(lines[row]) for row in rows}
    part = HashTree.from_proof(leaves, known, hashes)
    assert part.root == tree.root
    fewer = set(data.draw(st.lists(st.sampled_from(sorted(rows)), min_size=1)))
    again = HashTree.from_proof(leaves, {r: known[r] for r in fewer}, part.prove(fewer))
    assert again.root == tree.root
    known[min(rows)] = leaf_hash("file000 another")
    assert HashTree.from_proof(leaves, known, hashes).root != tree.root


@given(st.sampled_from([TopKCodec, DictionaryCodec]), st.integers(2, 12),
       st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.25, 1.0]))  # fmt: skip
@settings(max_examples=80)
def test_fewer_classes_keep_their_integers_and_stay_within_the_stated_error(kind, k, seed, step):
    codec = kind(num_classes=20, top_k=k, step=step, **DICTIONARY.get(kind, {}))
    logits = np.random.default_rng(seed).normal(0, 4, (30, 20))
    labels = codec.encode(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    probs, tail = codec.decode(labels)
    for kept in range(1, k):
        small, cut = cut_topk(codec, labels, kept)
        assert np.array_equal(cut.index, labels.index[:, :kept])
        assert np.array_equal(cut.code, labels.code[:, :kept])
        mine, rest = small.decode(cut)
        assert np.abs(mine - probs[:, :kept]).max() <= tail_error(codec) + 1e-6
        assert np.abs(rest - (tail + probs[:, kept:].sum(-1))).max() <= tail_error(codec) + 1e-6


def test_a_store_with_fewer_classes_is_cut_row_by_row(parent, tmp_path):
    subset(parent.path, tmp_path / "cut", Selection(top_k=3, labels=["other"]))
    cut = LabelStore.open(tmp_path / "cut")
    assert verify(cut.path, full=True).problems == []
    assert cut.spec.teachers["other"].codec.top_k == 3
    whole, ours = parent.read_plane(0, 10, "other"), cut.read_plane(0, 10, "other")
    codec = parent.spec.teachers["other"].codec
    _, expected = cut_topk(codec, TopKLabels(whole.index, whole.code, whole.tail), 3)
    for part in ("index", "code", "tail"):
        assert np.array_equal(getattr(ours, part), getattr(expected, part)), part
    record = cut.attributes["origin"]
    assert record["selection"]["top_k"] == {"other": [5, 3]}
    assert record["max_added_error"]["other"] == pytest.approx(tail_error(codec), abs=1e-6)
    proven = {own for _, own, _ in record["ancestors"][0]["objects"]}
    assert not any(name.startswith("labels/other/") and "/c/" in name for name in proven)


def test_an_interrupted_subset_leaves_no_store_and_goes_on(parent, tmp_path, monkeypatch):
    subset(parent.path, tmp_path / "whole", Selection(views=(3, 9)))
    put, calls = LabelStore.put_block, []

    def interrupted(self, block, *rest):
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(self, block, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LabelStore, "put_block", lambda self, block, *rest, **named: interrupted(
            self, block, *rest, named["device"]))  # fmt: skip
        subset(parent.path, tmp_path / "cut", Selection(views=(3, 9)))
    assert not (tmp_path / "cut").exists()
    with pytest.raises(StoreMismatch, match="another command"):
        subset(parent.path, tmp_path / "cut", Selection(views=(2, 8)))
    with pytest.raises(StoreMismatch, match="another command"):
        subset(parent.path, tmp_path / "cut", Selection(views=(0, 6), labels=["toy"]))
    done = []
    subset(parent.path, tmp_path / "cut", Selection(views=(3, 9)), lambda *p: done.append(p))
    assert done == [(2, 3), (3, 3)]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("selection", [Selection(views=(0, 4)), Selection(views=(1, 3))],
                         ids=["copied", "encoded again"])  # fmt: skip
@pytest.mark.parametrize("name", ["views/box/c/1/0/0", "labels/toy/tail/c/0/0", "images/key/c/2/0",
                                  "zarr.json"])  # fmt: skip
def test_damage_never_passes_into_a_subset(tmp_path, selection, name):
    store = fill_store(tmp_path / "a", make_spec(10, 6))
    seal(store)
    path = store.path / name
    data = bytearray(path.read_bytes())
    if name == "zarr.json":  # still readable, but not what was sealed
        data = bytearray(data.replace(b'"seed": 5', b'"seed": 6'))
    else:
        data[random.Random(name).randrange(len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match=f"{name} is not the file that was sealed"):
        subset(store.path, tmp_path / "cut", selection)
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": (0, 11)}, "the store has 0:10"),
        ({"views": (4, 4)}, "the store has 0:10"),
        ({"top_k": 6}, "5 classes at most"),
        ({"classes": ["ant", "eel"]}, "'eel'"),
        ({"images": ["ant/0000.jpg", "../secret.jpg"]}, r"'\.\./secret\.jpg'"),
        ({"images": []}, "0 of 0"),
        ({"labels": ["nobody"]}, "no labels of nobody"),
    ],
)
def test_a_selection_that_can_t_be_given_is_refused(parent, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        subset(parent.path, tmp_path / "cut", Selection(**options))
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_cut_is_refused():
    with pytest.raises(UsageError, match="nothing to cut"):
        Selection()
    with pytest.raises(UsageError, match="not both"):
        Selection(images=["a"], classes=["b"])


def test_nothing_is_overwritten_and_only_sealed_stores_are_cut(parent, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="exists"):
        subset(parent.path, tmp_path / "there", Selection(views=(0, 4)))
    open_store = fill_store(tmp_path / "open")
    with pytest.raises(IncompleteStore, match="not sealed"):
        subset(open_store.path, tmp_path / "cut", Selection(views=(0, 4)))


def invoke(*arguments, stdin=None):
    return CliRunner().invoke(subset_command, [*map(str, arguments)], input=stdin)


def test_the_command_takes_lists_of_images_by_key_and_by_digest(parent, tmp_path):
    table = parent.read_images()
    lines = f"{table.key[3]}\nsha256:{table.digest[8].tobytes().hex()}\n\n"
    result = invoke(parent.path, "--out", tmp_path / "cut", "--images", "-", "--views", "4:",
                    "--json", stdin=lines)  # fmt: skip
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert found["root"] == root_of(LabelStore.open(tmp_path / "cut"))
    cut = LabelStore.open(tmp_path / "cut")
    assert_same_values(cut, parent, [3, 8], (4, 10), ["toy", "other"])


def test_the_command_refuses_a_range_that_is_none(parent, tmp_path):
    result = invoke(parent.path, "--out", tmp_path / "cut", "--views", "4")
    assert result.exit_code == 2 and "expected A:B" in result.stderr
