"""Stores that lie or were made to harm: one clear error each, nothing allocated, written or run."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import fill_store, make_spec, make_teacher

from storage import decode
from storage.chunks import encode_block
from storage.cli import cli
from storage.decode import decode_chunk
from storage.dictionary import DictionaryCodec
from storage.errors import CorruptStore, FormatVersion, TeachonceError, UsageError
from storage.format import json_bytes
from storage.info import info_text, store_info
from storage.layout import array_layouts
from storage.manifest import Manifest, file_entry, read_manifest
from storage.sealing import seal
from storage.shards import index_bytes
from storage.store import LabelStore
from storage.verify import verify
from trainer.inputs import open_labels

MOST_MEMORY = 64 << 20  # bytes that refusing may take


@pytest.fixture
def sealed(tmp_path):
    codec = DictionaryCodec(num_classes=7, top_k=3, spread_classes=4)
    teachers = [make_teacher(), make_teacher("listed", codec=codec)]
    store = fill_store(tmp_path / "s", make_spec(4, 3, teachers, segment_views=2), masked=[1])
    seal(store)
    return store.path


def reseal(path: Path, name: str, content: bytes) -> None:
    """Replace a file as a forger would: manifest and root are made to fit."""
    (path / name).write_bytes(content)
    manifest = read_manifest(path)
    objects = {**manifest.objects, name: file_entry(path / name)}
    (path / "manifest.json").write_bytes(Manifest(objects, manifest.provenance).to_bytes())


def refusals(path: Path) -> list[str]:
    """What every way in says: `labelstore` info, verify --full, seal and subset, and the trainer.

    Each must be an error for users, in one line, or a report that ends with 1; nothing is written.
    """
    out = path.parent / "subset"
    before = {p: p.lstat().st_mtime_ns for p in path.parent.rglob("*")}
    said = []
    commands = (["info", path], ["verify", path], ["verify", path, "--full"], ["seal", path],
                ["subset", path, "--views", "0:1", "--out", out])  # fmt: skip
    for command in commands:
        result = CliRunner().invoke(cli, [*map(str, command)], standalone_mode=False)
        if result.exception:
            assert isinstance(result.exception, TeachonceError), (command, result.exc_info)
            text = str(result.exception)
            assert "\n" not in text and len(text) < 2000, text
            said.append(text)
        elif result.return_value:
            said.append(result.output)
    try:
        open_labels(path)
    except TeachonceError as error:
        said.append(str(error))
    shutil.rmtree(path.parent / "subset.partial", ignore_errors=True)  # kept to go on from
    assert {p: p.lstat().st_mtime_ns for p in path.parent.rglob("*")} == before
    return said


# the settings and the metadata


def leaves(value, path=()):
    yield path
    inner = ()
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        yield from leaves(item, (*path, key))


ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 20), st.floats(allow_nan=False),
    st.sampled_from([2**31, 2**40, 2**60, 2**63, 2**64, 10**400, -(2**70), 1e308, -0.0]),
    st.sampled_from(["", "x", "../x", "/x", "\0", "\n", "\ud800", "top-k", "fp32", "a" * 5000]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers()), max_size=2),
    st.just({"teachers": {"toy": {"certificate": {"kl": 5}}}}),
)  # fmt: skip


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_in_the_root_opens_as_it_says_or_is_refused(sealed, data):
    """Whatever the settings say, every reader ends with an error for users or a store."""
    good = (sealed / "zarr.json").read_bytes()
    values = json.loads(good)
    where = data.draw(st.sampled_from([leaf for leaf in leaves(values) if leaf]))
    holder = values
    for key in where[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and data.draw(st.booleans()):
        del holder[where[-1]]
    else:
        holder[where[-1]] = data.draw(ODD_VALUES)
    (sealed / "zarr.json").write_text(json.dumps(values))
    try:
        store = LabelStore.open(sealed)
        stated = values["attributes"]["teachonce"]["settings"]
        assert {**stated, **store.spec.settings()} == store.spec.settings()
        info_text(store_info(store))
        verify(sealed, full=True)
        store.read_images()
        store.read_plane(0, 3, "listed")
    except TeachonceError as error:
        assert "\n" not in str(error)
    finally:
        (sealed / "zarr.json").write_bytes(good)


ABSURD = {
    ("num_images",): [0, -1, 2**31, 2**60, 2**70, 4.0, "4", [4], True, None],
    ("num_views",): [0, -3, 2**21, 2**60, 3.0, "3"],
    ("block_images",): [0, -4, 2**40, 2**62, 0.5, "4", {}],
    ("plane_views",): [0, 2**50, "2"],
    ("segment_views",): [0, 3, 2**50, [2]],
    ("key_bytes",): [0, -1, 2**33, 2**60, 64.0, "64"],
    ("seed",): [-1, 2**64, 1.5, "5", None],
    ("teachers", "toy", "codec", "top_k"): [0, -1, 8, 2**60, 3.0, "3", None],
    ("teachers", "toy", "codec", "num_classes"): [1, 8, 2**60, 7.5],
    ("teachers", "toy", "codec", "step"): [0, -1, 1e300, "x", None],
    ("teachers", "toy", "name"): ["../x", "", "a/b", 5, "x" * 200],
    ("teachers", "toy", "mean"): [[1], "abc", [0.5, 0.5, "x"], None],
    ("teachers", "toy", "classes"): [["a"], "abcdefg", [1, 2, 3, 4, 5, 6, 7]],
    ("sampler", "scale"): [[1], [2, 3], "ab", None, [0.1, 1e309]],
    ("pixel", "padding"): [-1, 65, 1.0, "0"],
    ("dataset", "classes"): ["abc", [1, 2], {"a": 1}],
}


@pytest.mark.parametrize("where", ABSURD, ids=".".join)
def test_absurd_settings_are_refused_before_anything_is_allocated(sealed, where):
    good = json.loads((sealed / "zarr.json").read_bytes())
    for value in ABSURD[where]:
        values = copy.deepcopy(good)
        holder = values["attributes"]["teachonce"]["settings"]
        for key in where[:-1]:
            holder = holder[key]
        holder[where[-1]] = value
        (sealed / "zarr.json").write_text(json.dumps(values))
        tracemalloc.start()
        with pytest.raises(TeachonceError) as caught:
            LabelStore.open(sealed).read_images()
        assert verify(sealed, full=True).exit_code == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY and "\n" not in str(caught.value), (value, peak)


def test_many_images_that_the_files_can_not_hold_are_never_allocated(tmp_path):
    """A self-consistent lie: chunks of 1.5 GB that a few bytes on disk can't unpack to."""
    store = fill_store(tmp_path / "s", make_spec(4, 2, segment_views=2))
    seal(store)
    values = json.loads((store.path / "zarr.json").read_bytes())
    told = values["attributes"]["teachonce"]["settings"]
    told |= {"num_images": 20_000_000, "block_images": 20_000_000}
    reseal(store.path, "zarr.json", json_bytes(values))
    spec = LabelStore.open(store.path).spec
    for path, layout in array_layouts(spec).items():
        reseal(store.path, f"{path}/zarr.json", json_bytes(layout.metadata()))
    tracemalloc.start()
    with pytest.raises(CorruptStore, match="too few for the"):
        LabelStore.open(store.path).read_images()
    report = verify(store.path, full=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.exit_code == 1 and peak < MOST_MEMORY
    assert len(refusals(store.path)) >= 2  # sizes and hashes are as its manifest says


@pytest.mark.parametrize("change", [
    {"shape": [2**60, 3, 3]}, {"shape": [-1]}, {"shape": "4"}, {"data_type": "float64"},
    {"data_type": "object"}, {"data_type": "r4096"}, {"fill_value": 0}, {"zarr_format": 2},
    {"node_type": "group"},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**60, 1, 1]}}},
    {"codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]},
    {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
    {"codecs": [{"name": "os.system", "configuration": {"command": "true"}}]}, {"codecs": []},
    {"attributes": {"x": [[[[]]]]}}, {"storage_transformers": [{"name": "x"}]},
])  # fmt: skip
def test_array_metadata_that_says_anything_else_is_refused_by_every_reader(sealed, change):
    name = "labels/toy/index/zarr.json"
    values = json.loads((sealed / name).read_bytes())
    reseal(sealed, name, json_bytes({**values, **change}))
    assert {problem.path for problem in verify(sealed, full=True).problems} == {name}
    with pytest.raises(CorruptStore, match="does not describe the array"):
        LabelStore.open(sealed).read_plane(0, 1, "toy")
    assert len(refusals(sealed)) >= 3


NONSENSE = {
    "deep": b"[" * 200_000, "deep objects": b'{"a":' * 200_000, "empty": b"", "no JSON": b"\0\xff",
    "NaN": b'{"attributes": NaN}', "a number": b"1" * 100_000, "null": b"null",
}  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize(
    "name", ["zarr.json", "manifest.json", "images/size/zarr.json", "labels/zarr.json"]
)
def test_json_that_is_none_or_too_deep_is_one_error_that_names_the_file(sealed, name, what):
    (sealed / name).write_bytes(NONSENSE[what])
    assert name in {problem.path for problem in verify(sealed).problems}
    assert len(refusals(sealed)) >= 3


def test_metadata_of_endless_length_is_not_read(sealed):
    with (sealed / "zarr.json").open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(CorruptStore, match="more than"):
        LabelStore.open(sealed)
    assert tracemalloc.get_traced_memory()[1] < 4 * MOST_MEMORY
    tracemalloc.stop()


@pytest.mark.parametrize("what", NONSENSE)
def test_receipts_and_hints_that_make_no_sense_count_as_none(tmp_path, what):
    store = fill_store(tmp_path / "s")
    (store.path / "receipts/000001.json").write_bytes(NONSENSE[what])
    (store.path / "receipts/notes.txt").write_bytes(b"mine")
    (store.path / "local.json").write_bytes(NONSENSE[what])
    assert store.missing_blocks() == [1] and store.local_data_folder() is None
    assert verify(store.path, full=True).missing_blocks == [1]
    info_text(store_info(store))


def test_a_receipt_with_other_types_counts_as_none(tmp_path):
    store = fill_store(tmp_path / "s")
    file = store.path / "receipts/000001.json"
    good = json.loads(file.read_bytes())
    for name, value in {"sums": 5, "masked": [5], "device": None, "samples": [], "objects": [],
                        "software": {"x": 1}, "version": 2, "block": "1"}.items():  # fmt: skip
        file.write_bytes(json_bytes({**good, name: value}))
        assert store.missing_blocks() == [1], name


def test_a_newer_format_is_named_as_such_by_every_reader(sealed):
    values = json.loads((sealed / "zarr.json").read_bytes())
    values["attributes"]["teachonce"]["settings"] = {"format_version": 2, "new": [1]}
    reseal(sealed, "zarr.json", json_bytes(values))
    with pytest.raises(FormatVersion, match="format 2"):
        LabelStore.open(sealed)
    said = refusals(sealed)
    assert len(said) == 6 and all("install a newer teachonce" in text for text in said)


# the manifest


def forge(path: Path, change) -> None:
    """Rewrite the manifest; its checksum is made to fit."""
    values = json.loads((path / "manifest.json").read_bytes())
    del values["checksum"]
    change(values)
    values["checksum"] = hashlib.sha256(json_bytes(values)).hexdigest()
    (path / "manifest.json").write_bytes(json_bytes(values))


SIZE = "images/size/c/0/0"
LIES = {
    "another root": lambda v: v.__setitem__("root", "00" * 32),
    "no root": lambda v: v.pop("root"),
    "a size": lambda v: v["objects"][SIZE].__setitem__(0, 7),
    "a negative size": lambda v: v["objects"][SIZE].__setitem__(0, -1),
    "a size of text": lambda v: v["objects"][SIZE].__setitem__(0, "9"),
    "a size with a fraction": lambda v: v["objects"][SIZE].__setitem__(0, 9.5),
    "an endless size": lambda v: v["objects"][SIZE].__setitem__(0, 2**70),
    "a hash": lambda v: v["objects"][SIZE].__setitem__(1, "00" * 32),
    "a short hash": lambda v: v["objects"][SIZE].__setitem__(1, "00"),
    "a hash of letters": lambda v: v["objects"][SIZE].__setitem__(1, "zz" * 32),
    "three entries": lambda v: v["objects"][SIZE].append(1),
    "a list of objects": lambda v: v.__setitem__("objects", list(v["objects"])),
    "no objects": lambda v: v["objects"].clear(),
    "one object less": lambda v: v["objects"].pop(SIZE),
    "an object more": lambda v: v["objects"].__setitem__("labels/x", [1, "00" * 32]),
    "provenance": lambda v: v.__setitem__("provenance", [1]),
    "masked images": lambda v: v["provenance"].__setitem__("masked", [{"row": "x"}]),
    **{
        f"the name {name!r}": lambda v, n=name: v["objects"].__setitem__(n, [1, "00" * 32])
        for name in ("../x", "/etc/passwd", "a/../../x", "a\\b", "a\0b", "a//b", "local.json", "",
                     "receipts/1", "\ud800", "a\n", "manifest.json")
    },
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("root_fits", [False, True])
def test_a_manifest_that_lies_is_named(sealed, lie, root_fits):
    def change(values):
        LIES[lie](values)
        if root_fits and "root" in values and isinstance(values["objects"], dict):
            objects = {n: (e[0], e[1]) for n, e in values["objects"].items()}
            try:
                values["root"] = Manifest(objects, {}).root
            except UnicodeEncodeError:
                return

    if lie == "another root" and root_fits:
        pytest.skip("the root would be right again")
    forge(sealed, change)
    found = {problem.path for problem in verify(sealed, full=True).problems}
    assert found & {"manifest.json", SIZE, "labels/x", "zarr.json"}, found
    assert len(refusals(sealed)) >= 2


def test_duplicate_and_unsorted_entries_are_refused(sealed):
    file = sealed / "manifest.json"
    good = file.read_text()
    entry = good[good.index(f'    "{SIZE}": [') : good.index("],", good.index(SIZE)) + 3]
    for bad in (good.replace(entry, entry * 2), good.replace(entry, "").replace(
            '"objects": {\n', '"objects": {\n' + entry), good + "\n", good.replace("  ", " "),
            good.replace('"root"', '"root": "x",\n  "root"')):  # fmt: skip
        assert bad != good
        file.write_text(bad)
        assert {p.path for p in verify(sealed).problems} == {"manifest.json"}
        with pytest.raises(CorruptStore, match="checksum differs"):
            read_manifest(sealed)


def test_a_manifest_under_a_link_names_no_file_outside(sealed, tmp_path):
    """An honest entry below a folder that is a link: what it leads to is not opened."""
    (tmp_path / "outside").mkdir()
    os.mkfifo(tmp_path / "outside" / "pipe")
    (sealed / "away").symlink_to(tmp_path / "outside")
    forge(sealed, lambda v: v["objects"].__setitem__("away/pipe", [1, "00" * 32]))
    values = json.loads((sealed / "manifest.json").read_bytes())
    objects = {n: (e[0], e[1]) for n, e in values["objects"].items()}
    (sealed / "manifest.json").write_bytes(Manifest(objects, values["provenance"]).to_bytes())
    found = {problem.path for problem in verify(sealed, full=True).problems}
    assert {"away", "away/pipe"} <= found


# image keys and chunks


@pytest.mark.parametrize("key", ["../x.jpg", "/etc/passwd", "a/../../x", "", "a//b", "a/.", "..",
                                 "C:/x", "\\\\host\\x", "a\0b"])  # fmt: skip
def test_keys_that_lead_elsewhere_are_refused(sealed, key):
    store = LabelStore.open(sealed)
    layout = array_layouts(store.spec)["images/key"]
    rows = store.read_array("images/key", slice(None)).copy()
    rows[0] = 0
    rows[0, : len(key)] = np.frombuffer(key.encode(), np.uint8)
    for name, content in encode_block(layout, range(4), rows).items():
        reseal(sealed, name, content)
    found = verify(sealed, full=True).problems
    assert [(p.path, p.kind) for p in found] == [("images/key/c/0", "values")]
    with pytest.raises(CorruptStore, match="key"):
        LabelStore.open(sealed).read_images()


def zstd_frame(size: int, blocks: bytes, descriptor: int = 0xE4, window: bytes = b"") -> bytes:
    """A frame with a checksum flag and a stated content size of 8 bytes (RFC 8878)."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + window + size.to_bytes(8, "little") + blocks


def rle(size: int, last: bool = True) -> bytes:
    """A block that unpacks to `size` zero bytes."""
    return ((size << 3) | 1 << 1 | last).to_bytes(3, "little") + b"\0"


BOMBS = {
    "states 2^60 bytes": lambda n: zstd_frame(1 << 60, rle(n)),
    "states 2^63 bytes": lambda n: zstd_frame((1 << 63) + 1, rle(n)),
    "unpacks to more than it states": lambda n: zstd_frame(
        n, rle(1 << 17, False) * 20_000 + rle(1 << 17)),
    "unpacks to more, honestly": lambda n: zstd_frame(
        20_001 << 17, rle(1 << 17, False) * 20_000 + rle(1 << 17)),
    "has a window of 2^41 bytes": lambda n: zstd_frame(n, rle(n), 0xC4, b"\xff"),
    "has no size": lambda n: b"\x28\xb5\x2f\xfd\x04\x58" + rle(n),
    "has no checksum": lambda n: zstd_frame(n, rle(n), 0xE0),
    "needs a dictionary": lambda n: zstd_frame(n, rle(n), 0xE5),
    "is skippable": lambda n: b"\x50\x2a\x4d\x18" + (1 << 31).to_bytes(4, "little"),
    "is cut": lambda n: zstd_frame(n, b""),
    "is empty": lambda n: b"",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_zstd_bombs_are_refused_in_little_memory(sealed, bomb):
    store = LabelStore.open(sealed)
    layout = array_layouts(store.spec)["labels/toy/tail"]
    out = np.empty(layout.chunk, layout.dtype)
    chunk = BOMBS[bomb](out.nbytes)
    with pytest.raises((ValueError, RuntimeError)):
        decode_chunk(layout, chunk, out)
    entries = np.array([[0, len(chunk)]] * 1, "<u8").tobytes()
    index = entries + google_crc32c.value(entries).to_bytes(4, "little")
    assert len(index) == index_bytes(1)
    reseal(sealed, "labels/toy/tail/c/0/0", chunk + index)
    assert {p.path for p in verify(sealed, full=True).problems} == {"labels/toy/tail/c/0"}
    tracemalloc.start()
    with pytest.raises(CorruptStore, match="labels/toy/tail/c/0/0"):
        LabelStore.open(sealed).read_plane(0, 1, "toy")
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    tracemalloc.stop()


def test_blosc_headers_that_lie_are_refused(sealed):
    """Every header byte set to anything, under a checksum that fits: nothing is overrun."""
    store = LabelStore.open(sealed)
    layout = array_layouts(store.spec)["labels/listed/classes"]
    data = (sealed / layout.object_paths(0)[0]).read_bytes()[:-4]
    clean = np.empty(layout.chunk, layout.dtype)
    decode_chunk(layout, data + google_crc32c.value(data).to_bytes(4, "little"), clean)
    rng = np.random.default_rng(5)
    for place in range(decode.BLOSC_HEADER):
        for value in {0, 1, 127, 128, 255, *rng.integers(0, 256, 20).tolist()}:
            bad = bytearray(data)
            bad[place] = value
            bad += google_crc32c.value(bytes(bad)).to_bytes(4, "little")
            out = np.zeros(layout.chunk, layout.dtype)
            try:
                decode_chunk(layout, bytes(bad), out)
            except (ValueError, RuntimeError):
                continue
            assert out.shape == clean.shape  # and nothing was written beyond it


def test_shard_indices_that_lie_are_refused(sealed):
    store = LabelStore.open(sealed)
    layout = array_layouts(store.spec)["labels/toy/tail"]
    name = layout.object_paths(0)[0]
    data = (sealed / name).read_bytes()
    tail = index_bytes(1)
    lies = [(0, 2**63), (2**63, 1), (2**64 - 2, 5), (len(data), 1), (0, len(data) + 1),
            (2**64 - 1, 2**64 - 1), (2**64 - 1, 3), (5, 0)]  # fmt: skip
    for offset, length in lies:
        entries = np.array([[offset, length]], "<u8").tobytes()
        index = entries + google_crc32c.value(entries).to_bytes(4, "little")
        reseal(sealed, name, data[:-tail] + index)
        with pytest.raises(CorruptStore, match="labels/toy/tail"):
            LabelStore.open(sealed).read_plane(0, 1, "toy")


def test_settings_of_a_new_store_are_checked_in_the_same_way(tmp_path):
    for changes in ({"num_images": 2**40, "block_images": 1}, {"key_bytes": 2**40},
                    {"num_images": "4"}, {"seed": -1}, {"num_views": 2**30}):  # fmt: skip
        with pytest.raises(UsageError):
            LabelStore.create(tmp_path / "s", make_spec(**changes))
    assert not (tmp_path / "s").exists()
