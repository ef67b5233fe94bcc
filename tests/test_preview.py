"""Contact sheets show the very crops and labels of a run or of a store."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelling import SIZE, tiny_teacher, write_weights
from PIL import Image
from test_page import read
from training import make_store

from labelgen.class_names import class_names, readable_name
from labelgen.cli import main
from labelgen.forward import Forward
from labelgen.preview.marks import badge_places, scaled_box
from labelgen.preview.page import preview_page
from labelgen.preview.rows import live_rows, stored_rows
from labelgen.preview.sheet import (
    FRAME,
    GAP,
    HEAD,
    PHOTO,
    draw_sheet,
    fitted_photo,
    fitted_text,
    shown_crop,
)
from storage.augment import Augment
from storage.codecs import TopKCodec
from storage.erasing import Erasing
from storage.errors import StoreMismatch, TeachonceError, UsageError
from storage.images import content_digest, scan_folder
from storage.pixels import cut_view, decode_rgb
from storage.store import LabelStore
from storage.views import PaddedCrop, RandomResizedCrop

OPTIONS: dict[str, Any] = {"num_images": 3, "num_views": 2, "seed": 6}


def expected_crops(path: Path, seed: int, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Boxes and crops of a file's first views, from the sampler and the pixel contract alone."""
    data = path.read_bytes()
    image = decode_rgb(data)
    digest = content_digest(data)
    views = RandomResizedCrop().draw(seed, digest, image.height, image.width, 0, count)
    pairs = zip(views.box, views.flip, strict=True)
    return views.box, [cut_view(image, box, bool(flip), SIZE) for box, flip in pairs]


def test_live_rows_are_the_crops_of_a_run_with_the_teachers_answers(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher, folder = tiny_teacher(tmp_path), scan_folder(image_folder)
    shown = live_rows(teacher, folder, RandomResizedCrop(), **OPTIONS)
    assert len({image.key for image in shown.images}) == 3
    forward = Forward(teacher, 7)
    for image in shown.images:
        boxes, crops = expected_crops(image_folder / image.key, 6, 2)
        pixels = np.stack(crops)
        logs = forward.log_probs(forward.normalise(pixels)).double().numpy()
        for v, view in enumerate(image.views):
            assert (view.crop == crops[v]).all() and view.box == tuple(boxes[v])
            p = np.exp(logs[v])
            order = np.argsort(-p, kind="stable")
            assert [name for name, _, _ in view.top] == [f"class{i}" for i in order[:5]]
            assert [prob for _, prob, _ in view.top] == pytest.approx(p[order[:5]], abs=1e-6)
            assert view.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
            assert view.tail == pytest.approx(0, abs=1e-6)  # all 7 classes are kept
            assert view.agrees == (f"class{order[0]}" == image.key.split("/")[0])


def test_the_sheet_holds_every_pixel_of_a_crop(tmp_path: Path, image_folder: Path) -> None:
    shown = live_rows(tiny_teacher(tmp_path), scan_folder(image_folder), RandomResizedCrop(),
                      **OPTIONS)  # fmt: skip
    sheet = draw_sheet(shown)
    crop = shown_crop(shown.images[0].views[1].crop)
    assert crop.size == (192, 192)  # 16 pixels, each twelve times
    left = GAP + PHOTO + GAP + crop.width + 2 * FRAME + GAP + FRAME
    top = GAP + HEAD + FRAME
    found = sheet.crop((left, top, left + crop.width, top + crop.height))
    assert (np.asarray(found) == np.asarray(crop)).all()
    assert (np.asarray(found)[::12, ::12] == shown.images[0].views[1].crop).all()


def test_the_page_holds_every_pixel_of_a_crop_and_nothing_that_runs(
    tmp_path: Path, image_folder: Path
) -> None:
    (image_folder / "class1").rename(image_folder / "<script>&")
    shown = live_rows(tiny_teacher(tmp_path), scan_folder(image_folder), RandomResizedCrop(),
                      **OPTIONS | {"num_images": 12})  # fmt: skip
    document = preview_page(shown)
    reader = read(document)
    assert "script" not in {tag for tag, _ in reader.tags} and "<script>&/" in reader.words
    pngs = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))))
        for found in re.findall(r'<img src="data:image/png;base64,([^"]+)"', document)
    ]
    crops = [view.crop for image in shown.images for view in image.views]
    assert len(pngs) == 24
    assert all((a == b).all() for a, b in zip(pngs, crops, strict=True))


def test_the_same_seed_gives_the_same_sheet_and_another_another(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher, folder = tiny_teacher(tmp_path), scan_folder(image_folder)
    sheets = [
        draw_sheet(live_rows(teacher, folder, RandomResizedCrop(), **OPTIONS | {"seed": seed}))
        for seed in (1, 1, 2)
    ]
    assert sheets[0].tobytes() == sheets[1].tobytes() != sheets[2].tobytes()


def test_bad_images_are_passed_over_and_said(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    for path in sorted(image_folder.rglob("*.jpg"))[1:]:
        path.write_bytes(b"bad")
    folder = scan_folder(image_folder)
    shown = live_rows(teacher, folder, RandomResizedCrop(), **OPTIONS)
    assert [image.key for image in shown.images] == [folder.keys[0]]
    assert {key for key, _ in shown.passed_over} == set(folder.keys[1:])
    assert "not a readable image" in read(preview_page(shown)).words
    folder.path(0).write_bytes(b"bad")
    with pytest.raises(TeachonceError, match=r"no image of .* can be decoded"):
        live_rows(teacher, folder, RandomResizedCrop(), **OPTIONS)


def test_images_can_be_asked_for_by_key(tmp_path: Path, image_folder: Path) -> None:
    teacher, folder = tiny_teacher(tmp_path), scan_folder(image_folder)
    keys = [folder.keys[5], folder.keys[2]]
    shown = live_rows(teacher, folder, RandomResizedCrop(), keys=keys, **OPTIONS)
    assert [image.key for image in shown.images] == keys
    with pytest.raises(UsageError, match=r"has no image 'other\.jpg'"):
        live_rows(teacher, folder, RandomResizedCrop(), keys=["other.jpg"], **OPTIONS)


def test_padding_and_augmentations_are_shown_as_the_teacher_sees_them(
    tmp_path: Path, image_folder: Path
) -> None:
    for path in image_folder.rglob("*.jpg"):
        Image.open(path).resize((16, 16)).save(path)
    augment = Augment((Erasing(probability=1.0, fill=(1, 2, 3)),))
    shown = live_rows(tiny_teacher(tmp_path), scan_folder(image_folder), PaddedCrop(padding=4),
                      augment=augment, **OPTIONS)  # fmt: skip
    assert shown.images[0].photo.size == (24, 24)
    assert all((v.crop == (1, 2, 3)).all(-1).any() for i in shown.images for v in i.views)


@pytest.mark.parametrize("plain_codec", [False, True])
def test_a_stores_sheet_shows_its_crops_and_its_labels(
    tmp_path: Path, image_folder: Path, plain_codec: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain_codec:
        import labelgen.settings

        monkeypatch.setattr(labelgen.settings, "default_codec",
                            lambda C, k, V: TopKCodec(num_classes=C, top_k=2))  # fmt: skip
    store = LabelStore.open(make_store(image_folder, tmp_path / "store.zarr"))
    teacher = next(iter(store.spec.teachers))
    codec = store.spec.teachers[teacher].codec
    options = {"num_images": 2, "num_views": 3, "seed": 1}
    shown = stored_rows(store, image_folder, teacher, **options)
    images, plane = store.read_images(), store.read_plane(0, 3, teacher)
    labels = row_of_labels(plane)
    for image in shown.images:
        row = images.key.index(image.key)
        photo = decode_rgb((image_folder / image.key).read_bytes())
        dense = codec.dense(labels)[row].astype(np.float64)
        for v, view in enumerate(image.views):
            crop = cut_view(photo, plane.box[row, v], bool(plane.flip[row, v]), 24)
            assert (view.crop == crop).all()
            p = dense[v]
            assert view.entropy == pytest.approx(
                -(p * np.log(np.maximum(p, 1e-300))).sum(), abs=1e-5
            )
            kept = plane.index[row, v].tolist()
            assert [name for name, _, _ in view.top] == [f"class{i}" for i in kept]
            assert view.tail == pytest.approx(1 - p[kept].sum(), abs=1e-5)
            assert view.agrees == (image.key.startswith(f"class{kept[0]}/"))
    other = next(key for key in images.key if key != shown.images[0].key)
    (image_folder / shown.images[0].key).write_bytes((image_folder / other).read_bytes())
    with pytest.raises(StoreMismatch, match="not the image"):
        stored_rows(store, image_folder, teacher, **options)


def row_of_labels(plane: Any) -> Any:
    from storage.codecs import TopKLabels

    return TopKLabels(plane.index, plane.code, plane.tail)


def test_masked_and_lost_images_of_a_store_are_said(tmp_path: Path, image_folder: Path) -> None:
    (image_folder / "class0" / "image1.jpg").write_bytes(b"bad")
    store = LabelStore.open(make_store(image_folder, tmp_path / "store.zarr"))
    (image_folder / "class2" / "image0.jpg").unlink()
    shown = stored_rows(store, image_folder, next(iter(store.spec.teachers)),
                        num_images=20, num_views=2, seed=0)  # fmt: skip
    reasons = dict(shown.passed_over)
    assert len(shown.images) == 10 and "masked" in reasons["class0/image1.jpg"]
    assert reasons["class2/image0.jpg"].startswith("not at ")
    assert shown.notes == ("1 of the store's 12 images are masked",)


@given(
    st.lists(st.tuples(*[st.integers(0, 90)] * 2, *[st.integers(1, 60)] * 2), max_size=8),
    st.floats(0.2, 3),
)
def test_boxes_and_numbers_stay_inside_the_photo(
    boxes: list[tuple[int, int, int, int]], scale: float
) -> None:
    size = (max(1, round(150 * scale)), max(1, round(150 * scale)))
    scaled = [scaled_box(box, scale, size) for box in boxes]
    assert all(0 <= x0 <= x1 < size[0] and 0 <= y0 <= y1 < size[1] for x0, y0, x1, y1 in scaled)
    places = badge_places(scaled, size, (10, 8))
    assert len(places) == len(boxes)
    assert all(0 <= x <= size[0] - 10 and 0 <= y <= size[1] - 8 for x, y in places)


def test_numbers_of_equal_boxes_do_not_cover_each_other() -> None:
    places = badge_places([(10, 10, 99, 99)] * 7, (120, 120), (17, 15))
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) >= 17 or abs(y - b) >= 15 for a, b in places[:i])


@pytest.mark.parametrize("size", [(32, 32), (10_000, 3), (3, 10_000), (500, 375), (1, 1)])
def test_photos_of_any_shape_fit_their_place(size: tuple[int, int]) -> None:
    photo, scale = fitted_photo(Image.new("RGB", size), 280, 196)
    assert 1 <= photo.width <= 280 and 1 <= photo.height <= 196
    assert scale < 1 or scale == int(scale)


def test_long_names_are_cut_to_their_room() -> None:
    assert fitted_text("short", 100) == "short"
    cut = fitted_text("a very long class name that never ends", 80)
    assert cut.endswith("…") and fitted_text(cut, 80) == cut


def test_class_names_are_words_where_they_are_known() -> None:
    assert class_names(("class0", "n01440764"), 2) == ["class0", "tench"]
    assert class_names(None, 3)[2] == "class 2"
    assert readable_name("n99999999") == "n99999999"


def test_preview_writes_both_files_and_replaces_neither_unasked(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors")
    arguments = ["labelgen", "preview", "--teacher", str(weights), "--data", str(image_folder)]
    codes = []
    for more in (["--html", "p.html"], [], ["--out", "new.png", "--html", "p.html"],
                 ["--overwrite", "--html", "p.html"]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(SystemExit) as caught:
            main()
        codes.append(caught.value.code)
    assert codes == [0, 2, 2, 0]
    with Image.open("preview.png") as image:
        assert image.format == "PNG"
    assert Path("p.html").read_text().startswith("<!DOCTYPE html>")
