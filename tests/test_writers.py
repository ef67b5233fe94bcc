"""Several processes on one store: one of them wins whole, and nothing is half of each."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from store_helpers import fill_store, make_block, make_spec

from storage.atomic import write_atomic
from storage.errors import CorruptStore, StoreMismatch
from storage.json_files import read_json
from storage.locks import locked
from storage.manifest import read_manifest
from storage.sealing import seal
from storage.store import LabelStore
from storage.verify import verify


def write_both(path: Path, masked: list[int], start, results) -> None:
    """The same blocks as the other writer, perhaps with other values."""
    start.wait()
    store = LabelStore.open_or_create(path, make_spec(4, 2, segment_views=2))
    for _ in range(3):
        store.write_block(0, make_block(store.spec, 0, masked), "cpu")
    results.put("done")


def create(path: Path, seed: int, start, results) -> None:
    start.wait()
    try:
        LabelStore.open_or_create(path, make_spec(4, 2, segment_views=2, seed=seed))
        results.put(seed)
    except StoreMismatch:
        results.put("refused")


def close(path: Path, start, results) -> None:
    start.wait()
    results.put(seal(LabelStore.open(path)).root)


def race(work, *arguments: tuple) -> list:
    """What two processes that begin at the same time put into a queue."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=work, args=(*args, start, results)) for args in arguments]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return found


def test_two_writers_of_one_block_leave_the_block_of_one_of_them(tmp_path):
    """Even where their values differ, which no honest teacher's do."""
    roots = {
        seal(fill_store(tmp_path / str(i), make_spec(4, 2, segment_views=2), masked)).root
        for i, masked in enumerate(([], [2]))
    }
    path = tmp_path / "s"
    assert race(write_both, (path, []), (path, [2])) == ["done", "done"]
    assert verify(path, full=True).problems == []
    assert seal(LabelStore.open(path)).root in roots


def test_of_two_settings_for_one_folder_one_is_refused(tmp_path):
    path = tmp_path / "s"
    found = race(create, (path, 1), (path, 2))
    assert "refused" in found
    assert LabelStore.open(path).spec.seed == next(seed for seed in found if seed != "refused")
    assert verify(path).problems == []


def test_two_sealers_agree(tmp_path):
    path = fill_store(tmp_path / "s").path
    roots = race(close, (path,), (path,))
    assert roots[0] == roots[1] == read_manifest(path).root
    assert verify(path, full=True).exit_code == 0


def test_a_lock_that_is_shared_keeps_out_only_those_who_are_alone(tmp_path):
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True):
        pass
    with locked(tmp_path):
        pass


def test_a_manifest_that_is_replaced_during_a_check_is_noticed(tmp_path):
    store = fill_store(tmp_path / "s")
    seal(store)
    data = (store.path / "manifest.json").read_bytes()

    def replace(done: int, blocks: int) -> None:
        write_atomic(store.path / "manifest.json", data)

    found = verify(store.path, full=True, progress=replace).problems
    assert [(p.path, p.kind) for p in found] == [("manifest.json", "changed")]


def test_a_file_that_is_replaced_between_its_hash_and_its_values_is_noticed(tmp_path):
    store = fill_store(tmp_path / "s")
    seal(store)
    file = store.path / "views/flip/c/0/0"
    data = file.read_bytes()

    def replace(done: int, blocks: int) -> None:
        write_atomic(file, data)

    found = verify(store.path, full=True, progress=replace).problems
    assert [(p.path, p.kind) for p in found] == [("views/flip/c/0/0", "changed")]


def test_a_file_replaced_under_a_reader_gives_whole_values_or_an_error(tmp_path):
    """The other store's file is valid in itself: rows of one store, never a mixture of chunks."""
    ours, theirs = (
        fill_store(tmp_path / name, make_spec(4, 2, segment_views=2, seed=seed))
        for name, seed in (("a", 1), ("b", 2))
    )
    name = "labels/toy/index/c/0/0/0"
    reader = LabelStore.open(ours.path)
    before = reader.read_plane(0, 1, "toy").index
    write_atomic(ours.path / name, (theirs.path / name).read_bytes()[:-1])
    with pytest.raises(CorruptStore, match="labels/toy/index"):
        reader.read_plane(0, 1, "toy")
    write_atomic(ours.path / name, (theirs.path / name).read_bytes())
    after = LabelStore.open(ours.path).read_plane(0, 1, "toy").index
    assert after.shape == before.shape
    assert read_json(ours.path / "zarr.json")["zarr_format"] == 3
