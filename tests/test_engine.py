"""The labelling engine against a plain loop, and what it does with bad input."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_image, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling import NUM_CLASSES, plain_labels, tiny_teacher
from PIL import Image

from labelgen.crop_pool import CropPool, DeadWorkerError, StoppedError
from labelgen.crop_worker import CropConfig
from labelgen.engine import ring_batches
from labelgen.forward import top_k_by_id
from labelgen.labelling import positions
from labelgen.plan import SEGMENT_VIEWS, plan_batches, plan_units, view_spans
from labelgen.run import generate
from labelgen.teacher import load_teacher
from labelgen.teachers import resolve
from storage.codecs import NO_CODE
from storage.errors import (
    StoreError,
    StoreMismatch,
    TeacherError,
    TeachonceError,
    UsageError,
)
from storage.images import ImageStatus, scan_folder
from storage.store import LabelStore
from storage.verify import verify
from storage.views import PaddedCrop, RandomResizedCrop

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@given(
    num_rows=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    num_views=st.integers(1, 300),
    target_views=st.lists(st.integers(1, 300), max_size=3),
    batch_size=st.integers(1, 70),
)
@settings(max_examples=60)
def test_units_fill_exactly_the_used_slots_of_all_batches(
    num_rows: list[int], num_views: int, target_views: list[int], batch_size: int
) -> None:
    starts = np.cumsum([0, *num_rows])
    blocks = [(b, range(int(starts[b]), int(starts[b + 1]))) for b in range(len(num_rows))]
    spans = view_spans(num_views, [min(each, num_views) for each in target_views])
    crop_in = {}  # slot -> (row, view), as the engine reads a batch
    for batch in plan_batches(blocks, spans, batch_size):
        images, views = positions(batch)
        first = batch.number * batch_size
        rows = starts[batch.block] + images
        crop_in |= dict(
            zip(range(first, first + batch.count), zip(rows, views, strict=True), strict=True)
        )
    cut = {}
    for unit in plan_units(blocks, spans, batch_size):
        assert 1 <= unit.num_views <= SEGMENT_VIEWS
        for j in range(unit.num_views):
            assert unit.slot + j not in cut
            cut[unit.slot + j] = (unit.row, unit.first_view + j)
    assert cut == crop_in
    assert sorted(cut.values()) == [
        (row, v) for row in range(sum(num_rows)) for v in range(num_views)
    ]


def test_spans_end_where_a_target_ends() -> None:
    assert view_spans(10) == (range(10),)
    assert view_spans(10, [4, 2, 4]) == (range(2), range(2, 4), range(4, 10))
    assert view_spans(8, [8]) == (range(8),)


@given(st.data())
@settings(max_examples=60)
def test_top_k_orders_ties_by_class_as_a_stable_sort_does(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 12))
    levels = st.sampled_from([0.0, -0.0, -1.0, -1.5, -1e-30, -80.0, float("-inf"), 2.0])
    values = np.array(
        data.draw(st.lists(st.lists(levels, min_size=width, max_size=width), min_size=1)),
        np.float32,
    )
    k = data.draw(st.integers(1, width))
    found, index = top_k_by_id(torch.from_numpy(values), k)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
    assert (index.numpy() == expected).all()
    assert (found.numpy() == np.take_along_axis(values, expected, 1)).all()


def test_top_k_puts_nan_first_so_that_it_is_seen() -> None:
    values = torch.tensor([[0.0, float("nan"), 1.0]])
    assert torch.isnan(top_k_by_id(values, 1)[0]).all()


@pytest.mark.parametrize(
    ("per_class", "crops", "batch_size", "block_images"),
    [(4, 3, 8, 5), (2, 1, 64, 4), (1, 130, 32, 2), (1, 5, 1, 3)],
)
def test_store_equals_a_plain_loop_exactly(
    tmp_path: Path, per_class: int, crops: int, batch_size: int, block_images: int
) -> None:
    image_folder = write_folder(tmp_path / "images", per_class=per_class)
    teacher = tiny_teacher(tmp_path)
    generate(
        teacher, image_folder, tmp_path / "s", crops=crops, top_k=4, seed=3,
        batch_size=batch_size, block_images=block_images, workers=2,
    )  # fmt: skip
    store = LabelStore.open(tmp_path / "s")
    boxes, labels = plain_labels(store, teacher, image_folder)
    plane = store.read_plane(0, crops, teacher.spec.name)
    assert (plane.box == boxes).all()
    assert (plane.index == labels.index).all()
    assert (plane.code == labels.code).all()
    assert (plane.tail == labels.tail).all()
    assert not verify(tmp_path / "s", full=True).problems


def test_padded_crops_of_small_images_equal_a_plain_loop(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", classes=2, per_class=2, sides=(16, 17))
    teacher = tiny_teacher(tmp_path)
    sampler = PaddedCrop(padding=2)
    generate(
        teacher, root, tmp_path / "s", crops=sampler.distinct_views, sampler=sampler, workers=1
    )
    store = LabelStore.open(tmp_path / "s")
    boxes, labels = plain_labels(store, teacher, root)
    plane = store.read_plane(0, sampler.distinct_views, teacher.spec.name)
    assert (plane.box == boxes).all()
    assert (plane.code == labels.code).all()
    assert len(np.unique(np.c_[plane.box[0], plane.flip[0]], axis=0)) == 50


def test_root_does_not_depend_on_the_number_of_workers(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    roots = {
        generate(
            teacher, image_folder, tmp_path / str(n), crops=4, batch_size=8, block_images=4,
            workers=n,
        ).root
        for n in (1, 3)
    }  # fmt: skip
    assert len(roots) == 1


def test_finished_store_is_recognised_and_nothing_is_labelled_again(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    first = generate(teacher, image_folder, tmp_path / "s", crops=2, batch_size=16, workers=1)
    again = generate(teacher, image_folder, tmp_path / "s", crops=2, workers=1)  # batch size kept
    assert (again.root, again.new_crops) == (first.root, 0)


def test_other_settings_are_refused_and_all_of_them_named(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    generate(teacher, image_folder, tmp_path / "s", crops=2, workers=1)
    sampler = RandomResizedCrop(scale=(0.2, 1.0))
    with pytest.raises(StoreMismatch, match=r"(?s)num_views.*sampler.*seed.*top_k"):
        generate(teacher, image_folder, tmp_path / "s", crops=3, seed=1, top_k=2, sampler=sampler)
    (image_folder / "class0" / "image0.jpg").rename(image_folder / "class0" / "other.jpg")
    with pytest.raises(StoreMismatch, match="keys_hash"):
        generate(teacher, image_folder, tmp_path / "s", crops=2)


def write_odd_images(root: Path) -> tuple[list[str], list[str]]:
    """Images of all kinds in two classes; returns the keys of sound and of bad ones."""
    folder = root / "odd"
    folder.mkdir(parents=True)
    photo = make_image(1, 40, 60)
    photo.save(folder / "plain.jpg")
    photo.convert("L").save(folder / "gray.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    photo.resize((1, 1)).save(folder / "one_pixel.png")
    deep = (np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 7
    Image.fromarray(deep).save(folder / "sixteen_bit.png")
    sound = sorted(path.name for path in folder.iterdir())
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "vanished.jpg").symlink_to(root / "nowhere")
    bad = ["empty.jpg", "text.jpg", "truncated.jpg", "vanished.jpg"]
    return [f"odd/{name}" for name in sound], [f"odd/{name}" for name in bad]


def test_bad_images_are_masked_and_counted_and_odd_ones_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, bad = write_odd_images(tmp_path / "images")
    teacher = tiny_teacher(tmp_path)
    result = generate(
        teacher, tmp_path / "images", tmp_path / "s", crops=3, batch_size=4, block_images=4,
        workers=2,
    )  # fmt: skip
    assert sorted(result.masked) == bad
    assert result.crops == 3 * len(sound)
    assert "masked odd/empty.jpg: the file is empty" in capsys.readouterr().err
    store = LabelStore.open(tmp_path / "s")
    table = store.read_images()
    plane = store.read_plane(0, 3, teacher.spec.name)
    for row, key in enumerate(table.key):
        assert (table.status[row] == ImageStatus.OK) == (key in sound)
        assert (plane.tail[row] == NO_CODE).all() == (key in bad)
    assert table.status[table.key.index("odd/vanished.jpg")] == ImageStatus.MISSING
    assert not verify(tmp_path / "s", full=True).problems


def test_labels_of_good_images_do_not_depend_on_bad_neighbours(tmp_path: Path) -> None:
    write_odd_images(tmp_path / "images")
    teacher = tiny_teacher(tmp_path)
    settings_ = {"crops": 3, "batch_size": 4, "block_images": 4, "workers": 1}
    generate(teacher, tmp_path / "images", tmp_path / "a", **settings_)
    photo = tmp_path / "images" / "odd" / "text.jpg"
    photo.unlink()
    make_image(2, 30, 30).save(photo)
    generate(teacher, tmp_path / "images", tmp_path / "b", **settings_)
    planes = [LabelStore.open(tmp_path / x).read_plane(0, 3, "resnet8") for x in "ab"]
    row = LabelStore.open(tmp_path / "a").read_images().key.index("odd/text.jpg")
    others = np.arange(len(planes[0].tail)) != row
    assert (planes[0].code[others] == planes[1].code[others]).all()
    assert (planes[0].code[row] != planes[1].code[row]).any()


def test_folder_of_bad_images_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"no")
    with pytest.raises(TeachonceError, match=r"none of the 2 images.*a\.jpg"):
        generate(tiny_teacher(tmp_path), tmp_path / "images", tmp_path / "s", crops=2, workers=1)


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="holds no images"):
        generate(tiny_teacher(tmp_path), tmp_path / "images", tmp_path / "s")


def test_nan_outputs_name_the_image_and_write_nothing(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    with torch.no_grad():
        teacher.model.fc.bias[3] = float("nan")
    with pytest.raises(
        TeacherError, match=r"NaN or infinite outputs, first for class0/image0\.jpg"
    ):
        generate(teacher, image_folder, tmp_path / "s", crops=2, workers=1, block_images=8)
    assert LabelStore.open(tmp_path / "s").missing_blocks() == [0, 1]


def test_constant_outputs_are_refused(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    with torch.no_grad():
        teacher.model.fc.weight.zero_()
    with pytest.raises(TeacherError, match="the same output for 16 different crops"):
        generate(teacher, image_folder, tmp_path / "s", crops=2, workers=1, block_images=8)


def test_equal_images_may_have_equal_outputs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "images" / f"{i}.png")
    result = generate(tiny_teacher(tmp_path), tmp_path / "images", tmp_path / "s", crops=2)
    assert result.crops == 24


def test_full_disk_surfaces_and_the_run_resumes(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    settings_ = {"crops": 2, "batch_size": 4, "block_images": 3, "workers": 1}
    whole = generate(teacher, image_folder, tmp_path / "whole", **settings_)
    write_block = LabelStore.write_block

    def full_at_second_block(self: LabelStore, block: int, *args: object, **more: object) -> None:
        if block == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "x"))
        write_block(self, block, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "write_block", full_at_second_block)
        with pytest.raises(OSError, match="No space left"):
            generate(teacher, image_folder, tmp_path / "s", **settings_)
    assert 1 in LabelStore.open(tmp_path / "s").missing_blocks()
    assert generate(teacher, image_folder, tmp_path / "s", **settings_).root == whole.root


def test_request_to_stop_ends_the_run_and_running_again_finishes_it(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    settings_ = {"crops": 4, "batch_size": 4, "block_images": 3, "workers": 1}
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError, match="run the same command again"):
        generate(teacher, image_folder, tmp_path / "s", stop=stop, **settings_)
    resumed = generate(teacher, image_folder, tmp_path / "s", **settings_)
    assert resumed.root == generate(teacher, image_folder, tmp_path / "t", **settings_).root


def test_copies_of_an_image_are_counted_and_get_the_same_labels(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = image_folder / "class2" / "copy.jpg"
    copy.write_bytes((image_folder / "class0" / "image0.jpg").read_bytes())
    result = generate(tiny_teacher(tmp_path), image_folder, tmp_path / "s", crops=2, workers=1)
    assert result.duplicates == 1
    assert "1 images are copies of others" in capsys.readouterr().err
    store = LabelStore.open(tmp_path / "s")
    rows = [store.read_images().key.index(key) for key in ("class0/image0.jpg", "class2/copy.jpg")]
    plane = store.read_plane(0, 2, "resnet8")
    assert (plane.box[rows[0]] == plane.box[rows[1]]).all()
    assert (plane.code[rows[0]] == plane.code[rows[1]]).all()


def test_vanished_folder_stops_the_run_instead_of_masking_all_of_it(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    folder = scan_folder(image_folder)
    monkeypatch.setattr("labelgen.run.scan_folder", lambda data: folder)
    (image_folder / "class1").rename(tmp_path / "elsewhere")
    settings_ = {"crops": 2, "batch_size": 4, "block_images": 3, "workers": 1}
    with pytest.raises(TeachonceError, match=r"class1 vanished.*run the same command again"):
        generate(teacher, image_folder, tmp_path / "s", **settings_)
    (tmp_path / "elsewhere").rename(image_folder / "class1")
    assert not generate(teacher, image_folder, tmp_path / "s", **settings_).masked


def test_mobilenet_agrees_with_the_classes_of_real_photos(tmp_path: Path) -> None:
    weights = SHARED / "teachers" / "mobilenet_v2_torchvision.safetensors"
    photos = SHARED / "imagenette224" / "val"
    if not weights.is_file() or not photos.is_dir():
        pytest.skip("needs the photos and weights of ../shared/data")
    for folder in sorted(photos.iterdir()):
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:2]:
            (tmp_path / "photos" / folder.name / photo.name).symlink_to(photo)
    teacher = load_teacher(resolve("mnv2", weights=weights), device="cpu")
    result = generate(teacher, tmp_path / "photos", tmp_path / "s", crops=3, batch_size=20)
    # measured: 66 % of whole photos; crops of at least 8 % of the area are harder; chance: 0.1 %
    assert result.measured["top1_agreement"] > 0.4


def make_pool(root: Path, keys: list[str], workers: int, batch_size: int = 8) -> CropPool:
    config = CropConfig(
        root=str(root), sampler=RandomResizedCrop().to_json(), seed=0, size=16,
        interpolation="bilinear", slots=ring_batches(batch_size) * batch_size,
    )  # fmt: skip
    units = plan_units([(0, range(len(keys)))], view_spans(400), batch_size)
    return CropPool(units, keys, config, batch_size=batch_size, workers=workers)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def killed_worker_message(image_folder: Path) -> str:
    """What is said when a worker is killed while a pool is used."""
    keys = [f"class0/image{i % 4}.jpg" for i in range(200)]
    start = time.monotonic()
    with make_pool(image_folder, keys, workers=2) as pool:
        pool.ready(0, 8)
        pids = pool.pids
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(DeadWorkerError, match=r"signal 9.*--workers") as error:
            for number in range(1, 10_000):
                pool.release()
                pool.ready(number, (number + 1) * 8)
    assert time.monotonic() - start < 20
    assert not any(is_alive(pid) for pid in pids)
    return str(error.value)


def test_dead_worker_is_an_error_within_seconds_that_names_its_images(image_folder: Path) -> None:
    # a worker that is killed between two units has none to name
    said = [killed_worker_message(image_folder) for _ in range(5)]
    assert any("class0/image" in message for message in said)


def test_workers_read_no_further_than_the_ring_allows(image_folder: Path) -> None:
    keys = [f"class0/image{i % 4}.jpg" for i in range(50)]
    with make_pool(image_folder, keys, workers=2) as pool:
        pixels, cuts = pool.ready(0, 8)
        first = pixels.copy()
        time.sleep(0.5)  # time enough to overwrite it, were there no limit
        assert (pixels == first).all()
        assert first.any()
        assert sum(cut.unit.num_views for cut in cuts) <= len(pool.ring)


def test_crop_workers_load_neither_torch_nor_zarr() -> None:
    import subprocess
    import sys

    code = (
        "import sys, labelgen.crop_worker; "
        "print([m for m in ('torch', 'zarr', 'click', 'timm') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_overwrite_deletes_stores_only(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    generate(teacher, image_folder, tmp_path / "s", crops=2, workers=1)
    result = generate(teacher, image_folder, tmp_path / "s", crops=1, workers=1, overwrite=True)
    assert result.new_crops == 12
    with pytest.raises(StoreError, match="not a label store"):
        generate(teacher, image_folder, image_folder, crops=1, overwrite=True)
    assert len(list(image_folder.rglob("*.jpg"))) == 12


def test_more_padded_crops_than_there_are_is_refused(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(UsageError, match="162"):
        generate(
            tiny_teacher(tmp_path), image_folder, tmp_path / "s", crops=163, sampler=PaddedCrop()
        )


def test_default_top_k_is_cut_to_the_classes(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    generate(teacher, image_folder, tmp_path / "s", crops=1, workers=1)
    codec = LabelStore.open(tmp_path / "s").spec.teachers["resnet8"].codec
    assert codec.top_k == NUM_CLASSES
    with pytest.raises(UsageError, match="top-k is 8"):
        generate(teacher, image_folder, tmp_path / "t", crops=1, top_k=8)


def test_agreement_is_measured_where_classes_have_the_same_names(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    result = generate(teacher, image_folder, tmp_path / "s", crops=4, workers=1)
    store = LabelStore.open(tmp_path / "s")
    top1 = store.read_plane(0, 4, "resnet8").index[..., 0]
    expected = (top1 == store.read_images().target[:, None]).mean()
    assert result.measured["top1_agreement"] == pytest.approx(expected, abs=1e-6)
