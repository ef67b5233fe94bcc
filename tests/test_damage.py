"""Every kind of damage to every object of a store is found and named, one by one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from damage import KINDS, away, every_store, flipped, objects_of, read_or_refuse

from storage.layout import constant_layouts
from storage.listing import FOLDER, folders_of, list_folder
from storage.store import LabelStore
from storage.verify import verify


@pytest.fixture(scope="module", params=KINDS)
def store(request, tmp_path_factory):
    """A sealed store; every test leaves it as it was."""
    store = every_store(tmp_path_factory.mktemp("damage") / "s", request.param)
    yield store
    assert verify(store.path, full=True).problems == []


def named(path: Path, **depth: bool) -> set[str]:
    return {problem.path for problem in verify(path, **depth).problems}


def arrays_of(store: LabelStore) -> dict[str, np.ndarray]:
    paths = [*store.layouts, *constant_layouts(store.spec)]
    found = {path: read_or_refuse(store.path, path) for path in paths}
    assert all(values is not None for values in found.values())
    return found


def check_flips(store: LabelStore, seed: int, flips: int) -> None:
    """Random bits, as many in every object."""
    rng = np.random.default_rng([21, seed])
    names, clean = objects_of(store), arrays_of(store)
    done = 0
    for name in names:
        bits = 8 * (store.path / name).stat().st_size
        for bit in rng.integers(0, bits, -(-flips // len(names))).tolist():
            with flipped(store.path / name, bit):
                report = verify(store.path, full=True)
                found = {problem.path for problem in report.problems}
                assert name in found, f"bit {bit} of {name}: {report.problems}"
                array, _, chunk = name.partition("/c/")
                if chunk:
                    read = read_or_refuse(store.path, array)
                    same = read is None or np.array_equal(
                        read, clean[array], equal_nan=read.dtype.kind == "f"
                    )
                    assert same, f"bit {bit} of {name} gives other values"
            done += 1
    assert done >= flips


def test_every_object_shows_a_flipped_bit(store):
    """A sample of the 10,000 flips below; the file is named, and no read gives other values."""
    check_flips(store, 0, 160)


@pytest.mark.long
def test_ten_thousand_flipped_bits_are_all_found_and_named(store):
    check_flips(store, 1, 5_100)  # of each of two stores


def test_hashes_alone_name_every_flipped_file(store):
    rng = np.random.default_rng(22)
    for name in objects_of(store):
        bit = int(rng.integers(0, 8 * (store.path / name).stat().st_size))
        with flipped(store.path / name, bit):
            assert name in named(store.path, hashes=True), (name, bit)


def test_every_missing_file_is_named_without_a_full_check(store):
    for name in objects_of(store):
        with away(store.path / name):
            if name == "manifest.json":
                # an unsealed store is no damage, but it is not said to be whole either
                assert verify(store.path).root is None and not verify(store.path).sealed
                continue
            assert name in named(store.path)


def test_every_cut_and_every_lengthened_file_is_named_without_a_full_check(store):
    for name in objects_of(store):
        with away(store.path / name) as content:
            size = len(content)
            for length in sorted({0, 1, size // 3, size // 2, size - 5, size - 1}):
                if 0 <= length < size:
                    (store.path / name).write_bytes(content[:length])
                    assert name in named(store.path), (name, length)
            (store.path / name).write_bytes(content + b"\0")
            assert name in named(store.path), name


def test_links_folders_and_pipes_in_the_place_of_any_file_are_named(store, tmp_path):
    outside = tmp_path / "outside"
    for name in objects_of(store):
        with away(store.path / name) as content:
            outside.write_bytes(content)
            file = store.path / name
            file.symlink_to(outside)  # with the very bytes: it is the link that is wrong
            assert name in named(store.path)
            file.unlink()
            if name != "manifest.json":
                file.mkdir()
                assert name in named(store.path, full=True)
                file.rmdir()
                os.mkfifo(file)
                assert name in named(store.path, full=True)
                file.unlink()


def test_foreign_files_folders_and_links_are_named_wherever_they_lie(store):
    folders = [name for name, item in list_folder(store.path).items() if item.kind == FOLDER]
    assert set(folders) >= folders_of(objects_of(store))
    for folder in ["", *(f"{name}/" for name in folders if not name.startswith("receipts"))]:
        foreign = store.path / f"{folder}0x"
        foreign.write_bytes(b"")
        assert named(store.path) == {f"{folder}0x"}
        foreign.unlink()
        foreign.mkdir()
        assert named(store.path) == {f"{folder}0x/"}
        (foreign / "inside").write_bytes(b"mine")
        assert named(store.path) == {f"{folder}0x/inside"}
        (foreign / "inside").unlink()
        foreign.rmdir()
        foreign.symlink_to("/")
        assert named(store.path) == {f"{folder}0x"}
        foreign.unlink()


def test_a_link_to_a_folder_is_not_walked_through(store, tmp_path):
    """A linked folder with the very files is no part of the store."""
    folder = store.path / "images" / "size"
    folder.rename(tmp_path / "size")
    folder.symlink_to(tmp_path / "size", target_is_directory=True)
    try:
        found = named(store.path, full=True)
        assert {"images/size", "images/size/zarr.json", "images/size/c/0/0"} <= found
    finally:
        folder.unlink()
        (tmp_path / "size").rename(folder)


def test_a_file_that_can_not_be_read_is_named(store, monkeypatch):
    victim, real = "images/key/c/0/0", os.readv

    def failing(handle, buffers):
        if str(Path(f"/proc/self/fd/{handle}").readlink()).endswith(victim):
            raise OSError(5, "Input/output error")
        return real(handle, buffers)

    monkeypatch.setattr(os, "readv", failing)
    assert named(store.path, hashes=True) == {victim}
