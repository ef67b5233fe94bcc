"""WebDataset and Parquet exports, read by plain tar, numpy and pyarrow."""

import dataclasses
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from store_helpers import fill_store, make_block, make_spec, make_teacher

from storage.archives.tables_export import export_parquet, export_webdataset
from storage.codecs import TopKCodec, TopKLabels
from storage.commands.archive_export import export_group
from storage.dictionary import DictionaryCodec
from storage.errors import StoreError, UsageError
from storage.sealing import seal
from storage.store import LabelStore
from storage.views import PaddedCrop


@pytest.fixture(params=["top-k", "dictionary"])
def store(request, tmp_path):
    """10 images, one of them masked, one with a name that isn't Unicode."""
    keys = [f"ant/{row}.jpg" for row in range(9)] + ["bee/caf\udce9.a.jpg"]
    codec = TopKCodec(num_classes=7, top_k=3)
    if request.param == "dictionary":
        codec = DictionaryCodec(num_classes=7, top_k=3, spread_classes=0)
    spec = make_spec(teachers=[make_teacher(codec=codec)])
    store = fill_store(tmp_path / "s.zarr", spec, masked=[2], keys=keys)
    seal(store)
    return LabelStore.open(store.path)


def truth(store):
    """Decoded arrays of every labelled image by row."""
    plane = store.read_plane(0, store.spec.num_views, "toy")
    codec = store.spec.teachers["toy"].codec
    soft = codec.soft(TopKLabels(plane.index, plane.code, plane.tail))
    names = ("box", "flip", "index", "prob", "rest")
    arrays = (plane.box, plane.flip, soft.index, soft.probs, soft.rest)
    return {
        row: dict(zip(names, (array[row] for array in arrays), strict=True))
        for row in range(store.spec.num_images) if row != 2
    }  # fmt: skip


def check_index(out, store, suffix):
    index = json.loads((out / "index.json").read_bytes())
    for file in index["files"]:
        data = (out / file["name"]).read_bytes()
        assert file["name"].endswith(suffix)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    assert sum(file["images"] for file in index["files"]) == 9
    from storage.manifest import read_manifest

    assert index["store_root"] == read_manifest(store.path).root
    return index


def test_webdataset_shards_hold_every_image_exactly(store, tmp_path):
    report = export_webdataset(store, tmp_path / "wds", shard_images=4)
    assert report.skipped == ["ant/2.jpg"] and report.files == 3
    expected, table, found = truth(store), store.read_images(), {}
    for file in check_index(tmp_path / "wds", store, ".tar")["files"]:
        with tarfile.open(tmp_path / "wds" / file["name"]) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        assert sorted(members) == list(members)  # an image's members stand together
        for name, data in members.items():
            stem, suffix = name.split(".")
            if suffix == "json":
                row, facts = int(stem), json.loads(data)
                assert facts["key"] == table.key[row]
                assert facts["digest"] == table.digest[row].tobytes().hex()
                assert (facts["height"], facts["width"]) == tuple(table.size[row])
                assert facts["target"] == table.target[row]
            else:
                found[int(stem)] = dict(np.load(io.BytesIO(data), allow_pickle=False))
    assert found.keys() == expected.keys()
    for row, arrays in expected.items():
        for name, array in arrays.items():
            assert found[row][name].dtype == array.dtype
            assert np.array_equal(found[row][name], array), name


def test_parquet_tables_hold_every_image_exactly(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_parquet(store, tmp_path / "pq", shard_images=4)
    check_index(tmp_path / "pq", store, ".parquet")
    rows = [
        row
        for path in sorted((tmp_path / "pq").glob("*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]
    table = store.read_images()
    for found, (row, arrays) in zip(rows, truth(store).items(), strict=True):
        assert found["key"] == table.key[row].encode("utf-8", "surrogateescape")
        assert found["digest"] == table.digest[row].tobytes()
        for name, array in arrays.items():
            assert np.array_equal(np.array(found[name], array.dtype).reshape(array.shape), array)


def test_a_thousand_images_make_the_way_through_both(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    spec = make_spec(num_images=1000, num_views=4, block_images=256)
    store = LabelStore.open_or_create(tmp_path / "s.zarr", spec)
    for block in range(store.blocks):
        rows = spec.block_rows(block)
        data = make_block(make_spec(num_images=4, num_views=4), 0)
        repeat = [i % 4 for i in range(len(rows))]
        data = dataclasses.replace(
            data, **{n: getattr(data, n)[repeat] for n in
                     ("digest", "size", "target", "status", "box", "flip")},
            key=[f"ant/{r:04d}.jpg" for r in rows],
            labels={n: TopKLabels(v.index[repeat], v.code[repeat], v.tail[repeat])
                    for n, v in data.labels.items()},
        )  # fmt: skip
        store.write_block(block, data, "cpu")
    seal(store)
    store = LabelStore.open(store.path)
    plane = store.read_plane(0, 4, "toy")
    export_webdataset(store, tmp_path / "wds")
    export_parquet(store, tmp_path / "pq")
    with tarfile.open(tmp_path / "wds" / "labels-000000.tar") as tar:
        for row in range(1000):
            found = np.load(io.BytesIO(tar.extractfile(f"{row:08d}.npz").read()))
            assert np.array_equal(found["box"], plane.box[row])
            assert np.array_equal(found["index"], plane.index[row])
    table = parquet.read_table(tmp_path / "pq" / "labels-00000.parquet")
    boxes = np.array(table["box"].to_pylist()).reshape(plane.box.shape)
    assert np.array_equal(boxes, plane.box)


def test_equal_stores_give_equal_shards(store, tmp_path):
    for name in ("a", "b"):
        export_webdataset(store, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_exports_never_mix_with_what_is_there(store, tmp_path):
    export_webdataset(store, tmp_path / "o", shard_images=2)
    with pytest.raises(UsageError, match="not empty"):
        export_webdataset(store, tmp_path / "o")
    export_webdataset(store, tmp_path / "o", shard_images=100, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["index.json", "labels-000000.tar"]


def test_stores_that_cannot_be_exported_say_why(tmp_path):
    store = fill_store(tmp_path / "open.zarr")
    with pytest.raises(StoreError, match="not sealed"):
        export_webdataset(store, tmp_path / "o")
    padded = fill_store(tmp_path / "p.zarr", make_spec(sampler=PaddedCrop()))
    seal(padded)
    with pytest.raises(UsageError, match="padded"):
        export_webdataset(padded, tmp_path / "o")
    two = fill_store(
        tmp_path / "t.zarr", make_spec(teachers=[make_teacher("a"), make_teacher("b")])
    )
    seal(two)
    with pytest.raises(UsageError, match="a, b"):
        export_webdataset(two, tmp_path / "o")
    assert export_webdataset(two, tmp_path / "o", teacher="b").files == 1


@pytest.mark.parametrize("name", ["webdataset", "parquet"])
def test_each_has_a_command(store, tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    found = CliRunner().invoke(
        export_group, [name, str(store.path), "--out", str(tmp_path / "o"), "--json"]
    )
    assert found.exit_code == 0, (found.output, found.exception)
    assert json.loads(found.output)["files"] == 1
