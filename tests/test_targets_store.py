"""Stores with targets: what is written is read, whatever the rows, and damage is found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.block import block_problems
from storage.errors import CorruptStore, IncompleteStore, StoreError, UsageError
from storage.format import MOST_TARGET_BYTES, StoreSpec, default_block_images
from storage.info import info_text, store_info
from storage.layout import array_layouts, constant_objects
from storage.sealing import seal
from storage.store import LabelStore
from storage.targets.heads import head_logits
from storage.targets.record import TargetRecord, VectorPart
from storage.targets.tokens import decode_tokens
from storage.targets.vectors import decode_vectors, encode_vectors
from storage.verify import verify
from tests.store_helpers import fill_store, make_block, make_spec
from tests.target_helpers import (
    DENSE,
    FEATURES,
    HEADS,
    TAIL,
    TOKENS,
    encode_rows,
    fill_target_store,
    make_constants,
    make_target_spec,
    true_vectors,
    write_all_constants,
)

MASKED = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    found = fill_target_store(tmp_path_factory.mktemp("targets") / "s.zarr", masked=[MASKED])
    seal(found)
    return LabelStore.open(found.path)


def expected(record: TargetRecord, rows: list[int], views: slice) -> dict[str, np.ndarray]:
    """What reading gives, from one vector at a time."""
    found = {}
    for part in record.parts:
        stack = []
        for row in rows:
            values = true_vectors(record, row)[part.name]
            decoded = decode_vectors(part, encode_vectors(part, values))[views]
            stack.append(np.full_like(decoded, np.nan) if row == MASKED else decoded)
        found[part.name] = np.stack(stack)
    return found


@pytest.mark.parametrize("path", [FEATURES, HEADS, TOKENS, DENSE])
def test_every_vector_comes_back(store: LabelStore, path: str) -> None:
    record = store.spec.targets[path]
    found = store.read_target(path, slice(None))
    wanted = expected(record, list(range(store.spec.num_images)), slice(None))
    assert sorted(found) == sorted(wanted)
    for name, values in found.items():
        np.testing.assert_array_equal(values, wanted[name])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_rows_and_views_are_those_of_the_whole(store: LabelStore, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([FEATURES, HEADS, TOKENS, DENSE]))
    views = store.spec.targets[path].views
    rows = data.draw(st.lists(st.integers(0, store.spec.num_images - 1), max_size=12))
    first = data.draw(st.integers(0, views - 1))
    last = data.draw(st.integers(first + 1, views))
    whole = store.read_target(path, slice(None))
    found = store.read_target(path, np.array(rows, np.int64), slice(first, last))
    for name, values in found.items():
        np.testing.assert_array_equal(values, whole[name][rows][:, first:last])


def test_only_masked_images_are_nan(store: LabelStore) -> None:
    for path in store.spec.targets:
        for values in store.read_target(path, slice(None)).values():
            lost = np.isnan(values).reshape(len(values), -1)
            assert lost.any(axis=1).nonzero()[0].tolist() == [MASKED]
            assert lost[MASKED].all()


def test_head_logits_and_tokens_of_a_store(store: LabelStore) -> None:
    heads, tokens = store.spec.targets[HEADS], store.spec.targets[TOKENS]
    values = store.read_target(HEADS, slice(0, 2))
    shared = {name: store.read_constant(HEADS, name) for name in heads.constants}
    assert head_logits(heads, {**values, **shared}, "aux").shape == (2, 2, 4, 28)
    assert head_logits(heads, values, "class").shape == (2, 2, 4, 7)
    values = store.read_target(TOKENS, slice(0, 2))
    assert decode_tokens(tokens, values, store.read_constant(TOKENS, "basis")).shape == (
        2,
        4,
        6,
        12,
    )
    assert store.target_file(TOKENS, "tail.safetensors") == TAIL


def test_any_zarr_reader_opens_arrays_and_constants(store: LabelStore) -> None:
    group = zarr.open_group(store.path, mode="r")
    basis = np.asarray(group[f"{FEATURES}/basis"])
    np.testing.assert_array_equal(basis, make_constants()[FEATURES]["basis"])
    raw = encode_rows(store.spec.targets, [0, 1])[FEATURES]
    np.testing.assert_array_equal(np.asarray(group[f"{FEATURES}/value"])[:2], raw["value"])
    assert np.isnan(np.asarray(group[f"{DENSE}/logits"])[MASKED]).all()


def test_a_sealed_store_verifies_and_has_the_same_root_again(
    store: LabelStore, tmp_path: Path
) -> None:
    report = verify(store.path, full=True)
    assert report.problems == [] and report.exit_code == 0
    again = fill_target_store(tmp_path / "again.zarr", masked=[MASKED])
    assert seal(again).root == report.root


def test_a_store_without_targets_has_no_trace_of_them(tmp_path: Path) -> None:
    store = fill_store(tmp_path / "s.zarr")
    values = json.loads((store.path / "zarr.json").read_bytes())["attributes"]["teachonce"]
    assert not {"targets", "pixel_digests"} & set(values["settings"])
    assert sorted(p.name for p in store.path.iterdir() if p.is_dir()) == [
        "images", "labels", "receipts", "views",
    ]  # fmt: skip


def test_chunks_of_large_targets_hold_few_images() -> None:
    part = VectorPart(name="v", shape=(49, 4096), encoding="fp32")
    spec = make_spec(num_images=1000, block_images=96, num_views=30, plane_views=4,
                     segment_views=8)  # fmt: skip
    target = TargetRecord(kind="dense", name="x", teacher="toy", views=10, parts=(part,))
    object.__setattr__(spec, "targets", {target.path: target})  # no kind has such a part
    layout = array_layouts(spec)["dense/x/v"]
    assert layout.chunk == (1, 4, 49, 4096) and layout.shard == (96, 8, 49, 4096)
    assert layout.num_segments == 2 and layout.shape == (1000, 10, 49, 4096)
    small = dataclasses.replace(
        target, parts=(VectorPart(name="v", shape=(4096,), encoding="int8"),)
    )
    object.__setattr__(spec, "targets", {small.path: small})
    layout = array_layouts(spec)["dense/x/v"]
    assert layout.chunk == (48, 4, 4096)  # the largest divisor of 96 of at most 64
    assert array_layouts(spec)["dense/x/v_scale"].chunk == (96, 4)


@pytest.mark.parametrize("image_bytes", [1, 5 << 10, 3 << 20, 59 << 20, 1 << 30])
def test_a_block_of_targets_has_at_most_256_mib(image_bytes: int) -> None:
    images = default_block_images(1_281_167, 100, image_bytes)
    assert images == 1 or images * image_bytes <= MOST_TARGET_BYTES
    assert images == 4096 or 2 * images * image_bytes > MOST_TARGET_BYTES


def test_a_store_is_incomplete_until_its_constants_are_written(tmp_path: Path) -> None:
    spec = make_target_spec()
    store = LabelStore.create(tmp_path / "s.zarr", spec)
    for block in range(store.blocks):
        targets = encode_rows(spec.targets, store.block_rows(block))
        data = dataclasses.replace(make_block(spec, block), targets=targets)
        store.write_block(block, data, "cpu")
    assert store.missing_blocks() == [] and len(store.missing_constants()) == 3
    with pytest.raises(IncompleteStore, match="features/pooled, heads/aux, tokens/last"):
        seal(store)
    with pytest.raises(IncompleteStore, match="has not been written"):
        store.read_constant(FEATURES, "basis")
    report = verify(store.path)
    assert report.exit_code == 3 and report.missing_constants == store.missing_constants()
    write_all_constants(store)
    write_all_constants(store)  # what is there stays
    assert store.missing_constants() == []
    seal(store)
    write_all_constants(store)


def test_constants_that_the_settings_dont_name_are_refused(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "s.zarr", make_target_spec())
    constants = make_constants()[FEATURES]
    with pytest.raises(UsageError, match="expected \\['basis', 'mean', 'spectrum'\\]"):
        store.write_constants(FEATURES, {"mean": constants["mean"]})
    with pytest.raises(UsageError, match="mean is not the constant"):
        store.write_constants(FEATURES, {**constants, "mean": constants["mean"] + 1})
    with pytest.raises(UsageError, match="not the file"):
        store.write_constants(TOKENS, make_constants()[TOKENS], {"tail.safetensors": b"other"})
    with pytest.raises(UsageError, match="no target 'features/other'"):
        store.write_constants("features/other")


@pytest.mark.parametrize("path", [FEATURES, HEADS, TOKENS, DENSE])
def test_a_flipped_byte_in_any_file_of_a_target_is_found(
    store: LabelStore, tmp_path: Path, path: str
) -> None:
    import shutil

    copy = tmp_path / "copy.zarr"
    shutil.copytree(store.path, copy)
    names = [n for n in store.block_objects(0) if n.startswith(path)]
    for name in [*names, *constant_objects(store.spec.targets[path])]:
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 3] ^= 4
        (copy / name).write_bytes(data)
        report = verify(copy, full=True)
        assert name in {problem.path for problem in report.problems}
        opened = LabelStore.open(copy)
        with pytest.raises(CorruptStore):
            opened.read_target(path, slice(None))
            for constant in opened.spec.targets[path].constants:
                opened.read_constant(path, constant)
            for file in opened.spec.targets[path].files:
                opened.target_file(path, file)
        data[len(data) // 3] ^= 4
        (copy / name).write_bytes(data)


def test_a_lost_file_of_a_target_is_an_error_not_fill_values(
    store: LabelStore, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy.zarr"
    shutil.copytree(store.path, copy)
    name = next(n for n in store.block_objects(1) if n.startswith(DENSE))
    (copy / name).unlink()
    opened = LabelStore.open(copy)
    opened.read_target(DENSE, np.arange(4))  # another block
    with pytest.raises(CorruptStore, match="is missing"):
        opened.read_target(DENSE, np.array([0, 6]))


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        (f"{FEATURES}/value_scale", 1, -1.0, "negative scale"),
        (f"{FEATURES}/value_scale", 2, np.nan, "not finite"),
        (f"{FEATURES}/value", 0, -128, "fill value"),
        (f"{DENSE}/logits", 3, np.inf, "not finite"),
        (f"{HEADS}/class_offset", 3, np.inf, "not finite"),
        (f"{DENSE}/logits", MASKED, 1.0, "masked but has values"),
    ],
)
def test_values_that_no_labelled_image_can_have_are_named(
    store: LabelStore, name: str, row: int, value: float, message: str
) -> None:
    block = row // store.spec.block_images
    rows = store.block_rows(block)
    arrays = {
        path: store.read_array(path, slice(rows.start, rows.stop),
                               slice(0, layout.shape[1]) if layout.shard else None).copy()
        for path, layout in store.layouts.items()
    }  # fmt: skip
    assert block_problems(store.spec, arrays) == []
    arrays[name][row - rows.start] = value
    found = block_problems(store.spec, arrays)
    assert any(message in what and at == row - rows.start for _, at, what in found)


def test_blocks_of_other_targets_are_refused(tmp_path: Path) -> None:
    spec = make_target_spec()
    store = LabelStore.create(tmp_path / "s.zarr", spec)
    block, targets = make_block(spec, 0), encode_rows(spec.targets, range(4))
    with pytest.raises(UsageError, match="the store is for"):
        store.write_block(0, block, "cpu")
    less = {**targets, DENSE: {}}
    with pytest.raises(UsageError, match="has arrays \\[\\]"):
        store.write_block(0, dataclasses.replace(block, targets=less), "cpu")
    short = {**targets, DENSE: {"logits": targets[DENSE]["logits"][:, :2]}}
    with pytest.raises(UsageError, match=r"expected float16 \[4, 4, 7\]"):
        store.write_block(0, dataclasses.replace(block, targets=short), "cpu")


def test_settings_that_make_no_sense_are_refused() -> None:
    spec = make_target_spec()
    target = spec.targets[DENSE]
    cases = {
        "whose labels": dataclasses.replace(target, teacher="other"),
        "has 7 views; the store has 6": dataclasses.replace(target, views=7),
        "logits as int8": dataclasses.replace(
            target, parts=(dataclasses.replace(target.parts[0], encoding="int8"),)
        ),
        "settings can't be read": dataclasses.replace(target, settings={"colours": 3}),
        "only tokens": dataclasses.replace(target, files={"a.bin": "ab" * 32}),
    }
    for message, changed in cases.items():
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(spec, targets={DENSE: changed})
    with pytest.raises(UsageError, match="filed under"):
        dataclasses.replace(spec, targets={"dense/other": target})


def test_settings_come_back() -> None:
    spec = make_target_spec(pixel_digests=True)
    assert StoreSpec.from_settings(spec.settings(), {}) == spec


@pytest.mark.parametrize(
    ("rows", "views", "message"),
    [
        (np.array([10]), None, "row 10; the store has rows 0 to 9"),
        (np.array([-1]), None, "row -1"),
        (np.array([0.5]), None, "expected integers"),
        (slice(None), slice(0, 5), "views 0:5"),
        (slice(None), slice(0, 4, 2), "step 1"),
    ],
)
def test_rows_and_views_that_arent_there_are_refused(
    store: LabelStore, rows: object, views: slice | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        store.read_target(FEATURES, rows, views)  # type: ignore[arg-type]


def test_info_prints_every_target_with_its_bytes_a_view(store: LabelStore) -> None:
    info = store_info(store)
    text = info_text(info)
    assert "target     features/pooled: value 5 int8; 4 views of toy" in text
    features = info["targets"][FEATURES]
    assert features["view_bytes"] == 5 + 4  # values and a scale
    names = [
        n for b in range(store.blocks) for n in store.block_objects(b) if n.startswith(FEATURES)
    ]
    size = sum((store.path / name).stat().st_size for name in names)
    assert features["bytes"] == size and features["bytes_per_view"] == size / 40


def test_digests_of_pixels_are_kept_where_the_settings_say_so(tmp_path: Path) -> None:
    spec = make_spec(pixel_digests=True)
    store = LabelStore.create(tmp_path / "s.zarr", spec)
    pixels = np.arange(1, 129, dtype=np.uint8).reshape(4, 32)
    with pytest.raises(UsageError, match="digests of its pixels"):
        store.write_block(0, make_block(spec, 0), "cpu")
    data = dataclasses.replace(make_block(spec, 0, masked=[2]), pixels=pixels)
    store.write_block(0, data, "cpu")
    found = store.read_array("images/pixels", slice(0, 4))
    assert found[2].any() == False and np.array_equal(found[[0, 1, 3]], pixels[[0, 1, 3]])  # noqa: E712
    none = dataclasses.replace(make_block(spec, 1), pixels=np.zeros((4, 32), np.uint8))
    with pytest.raises(UsageError, match="no digest of its pixels"):
        store.write_block(1, none, "cpu")


def test_a_sealed_target_store_refuses_other_constants(store: LabelStore) -> None:
    path = store.path / FEATURES / "mean" / "c" / "0"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(CorruptStore, match="is missing"):
            LabelStore.open(store.path).read_constant(FEATURES, "mean")
        store.write_constants(FEATURES, make_constants()[FEATURES])  # puts the same bytes back
        assert path.read_bytes() == content
    finally:
        path.write_bytes(content)
    assert issubclass(CorruptStore, StoreError)
