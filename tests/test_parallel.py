"""Which process takes which block, and that bytes don't depend on it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder
from hypothesis import given
from hypothesis import strategies as st
from labelling import tiny_teacher

from labelgen.commands.engine_options import _without
from labelgen.engine import label_missing_blocks
from labelgen.parallel import share
from labelgen.parallel.joining import join, wait_for_store
from labelgen.parallel.leading import leader
from labelgen.parallel.local import failure
from labelgen.parallel.share import label_share
from labelgen.parallel.slurm import parse_parameters
from labelgen.parallel.source import BlockSource
from labelgen.parallel.world import (
    World,
    device_of,
    share_of_cores,
    take_share_of_cores,
    world_from_environment,
)
from labelgen.run import begin_store, generate
from labelgen.target_options import TargetOptions
from storage.errors import IncompleteStore, StoreMismatch, UsageError
from storage.images import scan_folder
from storage.receipts import read_receipts
from storage.sealing import seal
from storage.store import LabelStore
from storage.verify import verify

SETTINGS = {
    "crops": 3, "top_k": 4, "seed": 1, "sampler": None, "augment": None, "targets": None,
    "keep_members": False, "compiled": False, "batch_size": 4, "block_images": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # salloc: nothing says which of them this is
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            World(5, 8, 1, 4, "torchrun"),
        ),
        ({"RANK": "5", "WORLD_SIZE": "8"}, World(5, 8, 0, 1, "torchrun")),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
             "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            World(3, 4, 1, 2, "srun"),
        ),
        # a job of 4 tasks may have steps of fewer
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"},
         World(1, 2, 0, 1, "srun")),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "9"},
            World(1, 2, 0, 1, "torchrun"),
        ),
        (World(2, 3, 2, 3, "labelgen").environment(), World(2, 3, 2, 3, "labelgen")),
    ],
)  # fmt: skip
def test_a_process_knows_its_place_from_its_launcher(environment, expected):
    assert world_from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2 "),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"SLURM_PROCID": "-1", "SLURM_NTASKS": "2"}, "SLURM_PROCID is '-1'"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment, message):
    with pytest.raises(UsageError, match=message):
        world_from_environment(environment)


def test_processes_of_a_machine_take_turns_on_its_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = [device_of(World(r, 8, r % 4, 4), "auto") for r in range(8)]
    assert found == ["cuda:0", "cuda:1"] * 4
    assert device_of(World(1, 2, 1, 2), "cuda:0") == "cuda:0"
    assert device_of(World(3, 4, 0, 1), "cuda") == "cuda"  # srun shows it one device
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device_of(World(1, 2, 1, 2), "auto") == "auto"


def test_cores_are_divided_unless_the_launcher_did(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert share_of_cores(World(0, 8, 0, 3)) == 5
    assert share_of_cores(World(0, 64, 0, 64)) == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert share_of_cores(World(0, 8, 0, 3)) == 6
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    take_share_of_cores(World(0, 2, 0, 2))
    assert threads == []  # the user has said how many
    monkeypatch.delenv("OMP_NUM_THREADS")
    take_share_of_cores(World(0, 2, 0, 2))
    assert threads == [6]


@given(
    size=st.integers(1, 5),
    missing=st.sets(st.integers(0, 40), max_size=30),
    dead=st.sets(st.integers(0, 4)),
    seed=st.integers(0, 99),
)
def test_every_block_is_taken_whoever_dies_and_in_whatever_order(size, missing, dead, seed):
    """Processes take blocks in turns of chance; those that died take none."""
    rng, finished, taken = np.random.default_rng(seed), set(), []
    living = [rank for rank in range(size) if rank not in dead] or [0]
    for anything in (False, True):  # the second time after patience has ended
        sources = {
            rank: iter(BlockSource(World(rank, size), sorted(missing), lambda: finished,
                                   anything=anything))
            for rank in living
        }  # fmt: skip
        while sources:
            rank = int(rng.choice(list(sources)))
            block = next(sources[rank], None)
            if block is None:
                del sources[rank]
            else:
                taken.append(block)
                finished.add(block)
    assert finished == missing
    assert len(taken) == len(missing)  # none twice, where each is finished before the next turn


def test_what_another_process_is_at_is_left_to_it():
    source = BlockSource(World(0, 2), range(10), set)
    assert sorted(source) == [0, 2, 4, 5, 6, 7, 8, 9]  # 1 and 3 are the other's next ones
    assert [*source] == source.taken  # a second walk finds the same


def test_threads_that_walk_through_a_source_find_the_same():
    source, found = BlockSource(World(0, 1), range(500), set), [[], []]
    threads = [threading.Thread(target=lambda f=f: f.extend(source)) for f in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == list(range(500))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Images, a teacher, and the root of their store made by one process."""
    folder = tmp_path_factory.mktemp("whole")
    images = write_folder(folder / "images", per_class=4)
    teacher = tiny_teacher(folder)
    return images, teacher, generate(teacher, images, folder / "s", workers=1, **SETTINGS).root


def begin(whole, out: Path, **changes):
    images, teacher, _ = whole
    folder = scan_folder(images)
    store, plans = begin_store(teacher, folder, out, workers=1, stop=None, **SETTINGS | changes)
    return store, teacher, folder, plans


@pytest.mark.parametrize("seed", range(3))
def test_blocks_in_any_order_and_repeated_give_the_same_root(whole, tmp_path, seed):
    order = np.random.default_rng(seed).permutation(6).tolist()
    store, teacher, folder, _ = begin(whole, tmp_path / "s")
    for blocks in (order, order[:1]):
        label_missing_blocks(store, teacher, folder, workers=1, blocks=blocks)
    assert seal(store).root == whole[2]


def run_threads(*works) -> None:
    """Run functions at the same time; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(work) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_two_that_take_the_same_blocks_at_once_do_no_harm(whole, tmp_path):
    stores = [begin(whole, tmp_path / "s") for _ in range(2)]
    run_threads(
        *(
            lambda s=store, t=teacher, f=folder: label_missing_blocks(
                s, t, f, workers=1, blocks=range(6)
            )
            for store, teacher, folder, _ in stores
        )
    )
    assert seal(stores[0][0]).root == whole[2]
    assert not verify(tmp_path / "s", full=True).problems


def test_targets_are_planned_once_and_the_others_take_them_from_the_store(whole, tmp_path):
    """The basis comes with the store: a second process must not fit one of its own."""
    images, teacher, _ = whole
    wanted = TargetOptions(features="pooled", feature_views=2, feature_rank=8)
    asked = SETTINGS | {"targets": wanted}
    alone = generate(teacher, images, tmp_path / "alone", workers=1, **asked)
    stop = threading.Event()

    def second() -> None:
        join(teacher, images, tmp_path / "s", World(1, 2, 1, 2, "torchrun"), patience=60,
             workers=1, stop=stop, **asked)  # fmt: skip

    made = []
    run_threads(
        second,
        lambda: made.append(
            generate(teacher, images, tmp_path / "s", workers=1,
                     label=leader(World(0, 2, 0, 2, "torchrun")), **asked)
        ),
    )  # fmt: skip
    assert made[0].root == alone.root
    assert made[0].new_crops == 12 * 3


def test_a_process_whose_others_are_dead_does_their_blocks_too(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(share, "PATIENCE_BLOCKS", 0.0)
    store, teacher, folder, plans = begin(whole, tmp_path / "s")
    label_share(
        store, teacher, folder, store.missing_blocks(), plans, World(2, 3), workers=1,
        stop=threading.Event(),
    )  # fmt: skip
    assert store.missing_blocks() == []
    assert seal(store).root == whole[2]


def test_a_receipt_without_its_files_is_no_finished_block(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)
    store, teacher, folder, plans = begin(whole, tmp_path / "s")
    label_missing_blocks(store, teacher, folder, workers=1)
    lost = store.path / sorted(store.block_objects(3))[0]
    lost.unlink()
    label_share(
        store, teacher, folder, store.missing_blocks(), plans, World(1, 2), workers=1,
        stop=threading.Event(),
    )  # fmt: skip
    assert seal(store).root == whole[2]


def test_waiting_for_a_first_process_that_never_comes_ends_incomplete(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(IncompleteStore, match=r"hasn't made .*s for 0 s: .* same command") as error:
        wait_for_store(tmp_path / "s", 0.0, threading.Event())
    assert error.value.exit_code == 3
    images, teacher, root = whole
    world, stop = World(1, 2, 0, 1, "srun"), threading.Event()
    begin(whole, tmp_path / "s")
    with pytest.raises(IncompleteStore, match=r"all its blocks, but .* hasn't sealed it"):
        join(teacher, images, tmp_path / "s", world, patience=0.0, workers=1, stop=stop,
             **SETTINGS)  # fmt: skip
    assert generate(teacher, images, tmp_path / "s", workers=1, **SETTINGS).root == root


def test_a_process_with_other_settings_is_refused(whole, tmp_path):
    begin(whole, tmp_path / "s")
    with pytest.raises(StoreMismatch, match="num_views"):
        join(whole[1], whole[0], tmp_path / "s", World(1, 2, 0, 1, "srun"), patience=0.0,
             workers=1, stop=threading.Event(), **SETTINGS | {"crops": 5})  # fmt: skip


def test_receipts_name_device_software_and_process(whole, tmp_path):
    store, teacher, folder, _ = begin(whole, tmp_path / "s")
    label_missing_blocks(store, teacher, folder, workers=1, blocks=[4])
    receipt = read_receipts(store.path, store.blocks)[4]
    assert receipt.device.startswith("cpu (")
    assert receipt.device.endswith(f"torch {torch.__version__}")
    assert {"python", "numpy", "zarr"} <= receipt.software.keys()
    assert receipt.process == os.getpid()


def test_an_error_of_another_process_is_one_line_with_its_exit_code(capsys):
    known = failure("process 1 of 2", 2, "warning: x\nlabelgen: error: no such thing\n")
    assert (str(known), known.exit_code) == ("process 1 of 2: no such thing", 2)
    killed = failure("process 1 of 2", -9, "")
    assert "ended with signal 9; the machine may be out of memory" in str(killed)
    assert "run the same command again" in str(killed)
    failure("process 1 of 2", 1, "Traceback: a bug\n")
    assert "a bug" in capsys.readouterr().err


def test_words_of_the_submitting_command_stay_with_it():
    words = ["run", "--engine", "slurm", "--slurm=partition=gpu", "--no-wait", "--out", "s"]
    taking = {"--engine": 1, "--slurm": 1, "--no-wait": 0}
    assert _without(words, taking) == ["run", "--out", "s"]


def test_slurm_parameters_are_named_as_submitit_has_them():
    assert parse_parameters(["partition=gpu", "timeout_min=30", "slurm_qos=a=b"]) == {
        "slurm_partition": "gpu", "timeout_min": 30, "slurm_qos": "a=b",
    }  # fmt: skip
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_parameters(["gpu"])


def test_another_batch_size_moves_fewer_than_one_in_a_thousand_codes(whole, tmp_path):
    images, teacher, _ = whole
    planes = []
    for batch_size in (16, 64):
        out = tmp_path / str(batch_size)
        asked = SETTINGS | {"crops": 64, "batch_size": batch_size}
        generate(teacher, images, out, workers=1, **asked)
        planes.append(LabelStore.open(out).read_plane(0, 64, teacher.spec.name))
    first, second = planes
    assert (first.box == second.box).all()
    for name in ("index", "code", "tail"):
        moved = getattr(first, name) != getattr(second, name)
        assert moved.mean() < 0.001, name


def test_the_number_of_threads_moves_no_bit(whole, tmp_path):
    """Processes divide the cores of a machine: one computes on all of them, two on half each."""
    images, teacher, root = whole
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            assert generate(teacher, images, out, workers=1, **SETTINGS).root == root
    finally:
        torch.set_num_threads(before)
