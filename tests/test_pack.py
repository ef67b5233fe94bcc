"""Packing: the same bytes always, whole files or none, every bad image listed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal

import ffcv.types
import numpy as np
import pytest
from ffcv.fields import BytesField, IntField
from ffcv.reader import Reader
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_images import bad_images, good_images, write_folder

from storage import beton
from storage.errors import TrainingError, UsageError
from storage.images import ImageStatus, content_digest, scan_folder
from trainer.replay import layout
from trainer.replay.beton import Beton, pack, sidecar_path
from trainer.replay.encode import EncodedImage
from trainer.replay.field import SourceImageField
from trainer.sources.folders import FolderSource


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    write_folder(root)
    return scan_folder(root)


def both_files(path):
    """Digests: pytest would compare megabytes letter by letter."""
    return [content_digest(file.read_bytes()).hex() for file in (path, sidecar_path(path))]


@pytest.mark.parametrize("check", ["sample", "all"])  # threads, processes
def test_the_bytes_do_not_depend_on_workers_place_or_run(odd_folder, tmp_path, check):
    pack(odd_folder, tmp_path / "one.beton", workers=1, check=check)
    (tmp_path / "elsewhere").mkdir()
    for run in range(2):
        pack(odd_folder, tmp_path / "elsewhere" / f"{run}.beton", workers=2, check=check)
        assert both_files(tmp_path / "elsewhere" / f"{run}.beton") == both_files(
            tmp_path / "one.beton"
        )


def test_every_image_is_a_row_and_bad_ones_are_listed(odd_folder, tmp_path):
    seen = []
    report = pack(odd_folder, tmp_path / "a.beton", progress=seen.append)
    beton = Beton.open(tmp_path / "a.beton")
    assert beton.keys == odd_folder.keys
    assert beton.targets.tolist() == list(odd_folder.targets)
    assert beton.classes == odd_folder.classes
    assert sum(seen) == report.num_rows == beton.num_rows == len(odd_folder)
    bad = [key for key in odd_folder.keys if "bad_" in key]
    assert [key for key, _ in report.masked] == bad == [key for key, _ in beton.masked]
    assert report.kept_jpeg + report.stored_raw == len(good_images())
    for row, key in enumerate(beton.keys):
        status = ImageStatus.UNREADABLE if key in bad else ImageStatus.OK
        assert beton.status[row] == status
        digest = content_digest(odd_folder.path(row).read_bytes())
        assert beton.digests[row].tobytes() == digest
    assert json.dumps(report.to_json())


def test_the_source_bytes_lie_unchanged_in_the_file(odd_folder, tmp_path):
    pack(odd_folder, tmp_path / "a.beton")
    found = (tmp_path / "a.beton").read_bytes().find(good_images()["progressive.jpg"])
    assert found >= layout.FIRST_PAGE_SIZE


def test_a_file_that_vanishes_is_masked_as_missing(tmp_path):
    write_folder(tmp_path / "data")
    folder = scan_folder(tmp_path / "data")
    folder.path(3).unlink()
    report = pack(folder, tmp_path / "a.beton")
    assert folder.keys[3] in dict(report.masked)
    assert Beton.open(tmp_path / "a.beton").status[3] == ImageStatus.MISSING


def test_duplicates_are_listed_and_kept(tmp_path):
    data = good_images()["420.jpg"]
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "d.jpg").write_bytes(good_images()["444.jpg"])
    report = pack(scan_folder(tmp_path), tmp_path / "a.beton")
    assert report.duplicates == (("a.jpg", "b.jpg", "c.jpg"),)
    assert report.kept_jpeg == 4


def test_an_existing_file_is_kept_unless_overwriting(odd_folder, tmp_path):
    out = tmp_path / "a.beton"
    out.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--overwrite"):
        pack(odd_folder, out)
    assert out.read_bytes() == b"precious"
    pack(odd_folder, out, overwrite=True)
    assert Beton.open(out).num_rows == len(odd_folder)


@pytest.mark.parametrize("writes_left", [0, 3])
def test_no_space_left_leaves_the_old_file_and_nothing_else(
    odd_folder, tmp_path, monkeypatch, writes_left
):
    out = tmp_path / "a.beton"
    out.write_bytes(b"old")
    written = []

    def filling(file, parts, start, write=os.pwritev):
        if len(written) == writes_left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(start)
        return write(file, parts, start)

    monkeypatch.setattr(layout.os, "pwritev", filling)
    with pytest.raises(OSError, match="No space left") as caught:
        pack(odd_folder, out, overwrite=True)
    assert caught.value.filename == str(out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.beton"]
    assert out.read_bytes() == b"old"


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    for name, data in bad_images().items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"none of the 6 images.*bad_"):
        pack(scan_folder(tmp_path), tmp_path / "out" / "a.beton")
    assert not list((tmp_path / "out").iterdir())


class DeadlyChunk:
    """Kills the process that reads it, as the kernel does when memory is short."""

    def read(self):
        assert multiprocessing.parent_process() is not None, "read by the test itself"
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlySource(FolderSource):
    def chunks(self):
        yield DeadlyChunk()
        yield from super().chunks()


def test_a_killed_worker_is_an_error_not_a_hang(odd_folder, tmp_path):
    with pytest.raises(TrainingError, match="worker died"):
        pack(DeadlySource(odd_folder), tmp_path / "a.beton", workers=2, check="all")
    assert not list(tmp_path.iterdir())


def test_the_layout_is_ffcvs(odd_folder, tmp_path):
    assert beton.FILE_VERSION == ffcv.types.CURRENT_VERSION
    assert ffcv.types.HeaderType == beton.HEADER
    assert ffcv.types.FieldDescType == beton.DESCRIPTOR
    assert beton.ALLOCATION == ffcv.types.ALLOC_TABLE_TYPE
    assert ffcv.types.TYPE_ID_HANDLER[beton.FIELDS["label"]] is IntField
    assert ffcv.types.TYPE_ID_HANDLER[beton.FIELDS["key"]] is BytesField
    handlers = [SourceImageField(), IntField(), BytesField()]
    assert ffcv.types.get_metadata_type(handlers) == beton.ROW
    pack(odd_folder, tmp_path / "a.beton")
    reader = Reader(str(tmp_path / "a.beton"), {"image": SourceImageField})
    np.testing.assert_array_equal(reader.metadata, beton.read_rows(tmp_path / "a.beton"))


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=30))
def test_no_row_crosses_a_page_however_large_the_rows(sizes, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "a.beton"
    first, layout.FIRST_PAGE_SIZE = layout.FIRST_PAGE_SIZE, 256
    try:
        with path.open("w+b") as file:
            writer = layout.BetonWriter(file, len(sizes))
            for row, size in enumerate(sizes):
                payload = bytes([row + 1]) * size
                image = EncodedImage(status=ImageStatus.OK, digest=bytes(32), payload=payload)
                writer.add(image, row, f"key{row}")
            writer.finish()
    finally:
        layout.FIRST_PAGE_SIZE = first
    page = int(np.fromfile(path, beton.HEADER, count=1)[0]["page_size"])
    data = path.read_bytes()
    for row, record in enumerate(beton.read_rows(path)):
        start, size = int(record["f0"]["ptr"]), int(record["f0"]["size"])
        key, length = int(record["f2"]["ptr"]), int(record["f2"]["size"])
        assert data[start : start + size] == bytes([row + 1]) * sizes[row]
        assert data[key : key + length] == f"key{row}".encode()
        assert (start if size else key) // page == (key + length - 1) // page
    assert page >= max(sizes)
