"""Packing from parquet files, WebDataset tars and data sets: the same rows as from a folder."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_images import bad_images, good_images

from storage.errors import StoreError, TeachonceError, UsageError
from storage.images import ImageStatus, content_digest, scan_folder
from trainer.cli import cli
from trainer.inputs import open_images
from trainer.replay.beton import Beton, pack
from trainer.sources import open_source
from trainer.sources.base import targets_by_name, unique_keys

NAMES = ("first", "second")
FILES = {
    **{name: good_images()[name] for name in ("420.jpg", "gray.jpg", "rgb.png", "444.jpg")},
    "bad_text.jpg": bad_images()["bad_text.jpg"],
}
SAMPLES = [(name, data, number % 2) for number, (name, data) in enumerate(FILES.items())]


def packed(source, tmp_path, workers=1, **options):
    """The beton of a source, packed anew."""
    out = tmp_path / f"made{workers}.beton"
    pack(source, out, workers=workers, overwrite=True, **options)
    return Beton.open(out)


def assert_rows_are_the_samples(beton, classes=NAMES):
    """Every sample is a row with its digest and class by name; the bad one is masked."""
    assert beton.classes == classes
    assert beton.num_rows == len(SAMPLES)
    for row, (name, data, label) in enumerate(SAMPLES):
        assert beton.digests[row].tobytes() == content_digest(data)
        assert beton.targets[row] == label
        bad = name.startswith("bad_")
        assert beton.status[row] == (ImageStatus.UNREADABLE if bad else ImageStatus.OK)
        if not bad:
            expected = np.asarray(open_image(data))
            np.testing.assert_array_equal(np.asarray(beton.read(row).rgb()), expected)
    assert [key for key, _ in beton.masked] == [beton.keys[len(SAMPLES) - 1]]


def open_image(data):
    from storage.pixels import decode_rgb

    return decode_rgb(data)


def write_parquet(path, samples=SAMPLES, names=NAMES, paths=True, group=2, **columns):
    """Hugging Face's layout, `group` rows in a row group."""
    images = [{"bytes": data, "path": name if paths else None} for name, data, _ in samples]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {
        "image": pa.array(images, kind),
        "label": pa.array([label for _, _, label in samples], pa.int64()),
        **columns,
    }
    features = {"image": {"_type": "Image"}}
    if names:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": features}})
    table = pa.table(table).replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def write_tar(path, members):
    """A tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def tar_members(label=".cls"):
    """Samples as WebDataset has them."""
    for number, (name, data, target) in enumerate(SAMPLES):
        yield f"{number:04d}.{name.rpartition('.')[2]}", data
        if label == ".cls":
            yield f"{number:04d}.cls", str(target).encode()
        else:
            yield f"{number:04d}.json", json.dumps({"label": NAMES[target]}).encode()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_parquet_file_packs_as_its_images_do(tmp_path, workers):
    source = open_source(str(write_parquet(tmp_path / "train.parquet")))
    beton = packed(source, tmp_path, workers)
    assert beton.keys == tuple(FILES)
    assert_rows_are_the_samples(beton)


def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path):
    write_parquet(tmp_path / "all" / "b.parquet", SAMPLES[3:], paths=False)
    write_parquet(tmp_path / "all" / "a.parquet", SAMPLES[:3], paths=False)
    beton = packed(open_source(str(tmp_path / "all")), tmp_path)
    assert beton.keys == (
        "a/00000000", "a/00000001", "a/00000002", "b/00000000", "b/00000001",
    )  # fmt: skip
    assert_rows_are_the_samples(beton)


def test_several_splits_in_one_folder_are_never_mixed(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UsageError, match="splits test, train"):
        open_source(str(tmp_path))
    assert len(open_source(f"hf:{tmp_path}:train")) == len(SAMPLES)
    with pytest.raises(UsageError, match="validation"):
        open_source(f"hf:{tmp_path}:validation")


def test_a_row_without_bytes_is_masked_as_missing(tmp_path):
    samples = [*SAMPLES, ("gone.jpg", None, 0)]
    beton = packed(open_source(str(write_parquet(tmp_path / "a.parquet", samples))), tmp_path)
    assert beton.status[-1] == ImageStatus.MISSING
    assert dict(beton.masked)["gone.jpg"] == "the row holds no bytes"


def test_columns_of_other_kinds_are_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", fine=pa.array([7, 8, 9, 7, 8]))
    assert packed(open_source(str(path), "fine"), tmp_path).targets.tolist() == [7, 8, 9, 7, 8]
    with pytest.raises(UsageError, match=r"no column 'coarse'.*image, label, fine"):
        open_source(str(path), "coarse")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"no image column.*found text"):
        open_source(str(tmp_path / "b.parquet"))


@pytest.mark.parametrize("damage", ["cut", "text", "pages"])
def test_a_damaged_parquet_file_is_one_line(tmp_path, damage):
    path = write_parquet(tmp_path / "a.parquet", paths=False)
    data = bytearray(path.read_bytes())
    if damage == "pages":
        data[4:4000] = bytes(3996)
    path.write_bytes({"cut": data[:-9], "text": b"no parquet" * 9, "pages": data}[damage])
    with pytest.raises(StoreError, match=r"a\.parquet is not a readable parquet file"):
        packed(open_source(str(path)), tmp_path)
    assert not list(tmp_path.glob("*.beton"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("label", [".cls", ".json"])
def test_a_webdataset_tar_packs_as_its_images_do(tmp_path, workers, label):
    path = write_tar(tmp_path / "train.tar", tar_members(label))
    beton = packed(open_source(str(path)), tmp_path, workers)
    assert_rows_are_the_samples(beton, NAMES if label == ".json" else ("0", "1"))


def test_a_pattern_of_tars_keeps_its_order_and_names_stay_unique(tmp_path):
    members = list(tar_members())
    for shard in range(2):
        write_tar(tmp_path / f"t-{shard}.tar", members[:4])
    source = open_source(str(tmp_path / "t-{0..1}.tar"), names=NAMES)
    assert source.keys == ("t-0/00000000", "t-0/00000001", "t-1/00000000", "t-1/00000001")
    assert source.classes == NAMES
    with pytest.raises(UsageError, match=r"t-2\.tar does not exist"):
        open_source(str(tmp_path / "t-{0..2}.tar"))


def test_pickles_in_a_tar_are_never_opened(tmp_path):
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    trap = pickle.dumps(Trap())
    members = [
        pair
        for name, data in tar_members()
        for pair in ((name, data), *((f"{name[:4]}.{kind}", trap) for kind in ("pyd", "pth", "pkl")
                                     if name.endswith(".cls")))
    ]  # fmt: skip
    beton = packed(open_source(str(write_tar(tmp_path / "a.tar", members))), tmp_path)
    assert_rows_are_the_samples(beton, ("0", "1"))
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0.3, 0.62, 0.9])
def test_a_tar_that_is_cut_short_is_one_line(tmp_path, kept):
    path = write_tar(tmp_path / "a.tar", tar_members())
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(StoreError, match=r"a\.tar is not a readable tar") as caught:
        packed(open_source(str(path)), tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_samples_of_tars_are_named(tmp_path):
    image = FILES["420.jpg"]
    for members, message in (
        ([("a.left.jpg", image), ("a.right.jpg", image)], "two images"),
        ([("a.jpg", image), ("a.json", b"{")], "a.json is not JSON"),
        ([("a.jpg", image), ("a.json", b'{"label": [1, 2]}')], "expected one class"),
        ([("a.jpg", image), ("a.cls", b"3")], "outside its 2 classes"),
        ([("a.txt", b"hello")], "holds no images"),
    ):
        path = write_tar(tmp_path / "a.tar", members)
        with pytest.raises(UsageError, match=message):
            open_source(str(path), names=NAMES)


@pytest.fixture
def saved(tmp_path):
    """The samples as `save_to_disk` writes them."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES))
    )
    columns = {
        "image": [{"bytes": data, "path": name} for name, data, _ in SAMPLES],
        "label": [label for _, _, label in SAMPLES],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_a_saved_data_set_packs_as_its_images_do(saved, tmp_path):
    source = open_source(f"hf:{saved}:train")
    beton = packed(source, tmp_path)
    assert beton.keys == tuple(FILES)
    assert_rows_are_the_samples(beton)
    with pytest.raises(UsageError, match=r"several splits.*train\|test"):
        open_source(f"hf:{saved}")
    with pytest.raises(UsageError, match="no split 'dev'"):
        open_source(f"hf:{saved}:dev")


def test_an_image_folder_read_by_the_library_gives_the_folders_rows(tmp_path):
    pytest.importorskip("datasets")
    root = tmp_path / "images"
    for name, data, label in SAMPLES[:4]:
        (root / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (root / NAMES[label] / name).write_bytes(data)
    theirs = packed(open_source(f"hf:{root}"), tmp_path)
    (tmp_path / "ours").mkdir()
    ours = packed(scan_folder(root), tmp_path / "ours")
    assert dict(zip(theirs.keys, theirs.digests.tolist(), strict=True)) == dict(
        zip(ours.keys, ours.digests.tolist(), strict=True)
    )
    assert theirs.classes == ours.classes


def test_a_data_set_with_a_script_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("raise SystemExit('executed')")
    with pytest.raises(UsageError, match="loading script, which is never run"):
        open_source(f"hf:{tmp_path / 'set'}")
    with pytest.raises(UsageError, match="neither a folder nor a Hub name"):
        open_source(f"hf:{tmp_path / 'none'}")


def test_what_is_no_source_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    for location in (tmp_path / "a.csv", tmp_path / "none", tmp_path / "none.parquet"):
        with pytest.raises(UsageError, match=location.name):
            open_source(str(location))


def test_a_missing_package_is_one_line_with_its_command(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet")
    for package, location in (
        ("pyarrow", str(path)), ("pyarrow.parquet", str(path)),
        ("datasets.exceptions", f"hf:{tmp_path}/x"), ("braceexpand", "a-{0..1}.tar"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UsageError, match=r"pip install -e '\.\[data\]'"):
                open_source(location)


def test_training_packs_a_source_once_until_it_changes(tmp_path):
    path = write_parquet(tmp_path / "a.parquet")
    cache = tmp_path / "run" / "train.beton"
    first = open_images(path, cache, workers=1)
    written = cache.stat().st_mtime_ns
    open_images(path, cache, workers=1)
    assert cache.stat().st_mtime_ns == written
    write_parquet(path, SAMPLES[:3])
    assert open_images(path, cache, workers=1).num_rows == 3
    assert first.num_rows == len(SAMPLES)


def test_the_command_names_the_beton_after_its_source(tmp_path, monkeypatch):
    write_parquet(tmp_path / "photos.parquet", names=None)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    options = ["pack", "--data", "photos.parquet", "--class-names", "names.txt", "--workers", "1"]
    result = CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert Beton.open(tmp_path / "photos.beton").classes == ("cat", "dog")


@settings(max_examples=100)
@given(
    names=st.lists(st.one_of(st.none(), st.text("ab/", max_size=3)), max_size=12),
    shard=st.integers(1, 4),
)
def test_keys_are_unique_whatever_the_names(names, shard):
    shards = [f"s{number // shard}" for number in range(len(names))]
    keys = unique_keys(names, shards)
    assert len(set(keys)) == len(keys) == len(names)
    if len({name for name in names if name}) == len(names):
        assert list(keys) == names


def test_labels_keep_their_meaning():
    assert targets_by_name([2, 0, None], None, "x") == ((2, 0, -1), ("0", "1", "2"))
    assert targets_by_name(["b", "a"], None, "x") == ((1, 0), ("a", "b"))
    assert targets_by_name([1, 0], ("z", "y"), "x") == ((1, 0), ("z", "y"))
    for labels, names in (([0, "a"], None), ([5], ("a",)), (["c"], ("a",)), ([-2], None)):
        with pytest.raises(TeachonceError, match="x:"):
            targets_by_name(labels, names, "x")


def test_help_and_folders_need_none_of_the_packages():
    code = (
        "import sys\n"
        "import trainer.sources\n"
        "heavy = {'pyarrow', 'datasets', 'webdataset', 'torch'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
