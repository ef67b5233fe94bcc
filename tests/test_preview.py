"""The contact sheet shows what a run would label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from labelling import SIZE, tiny_teacher, write_weights
from PIL import Image

from labelgen.cli import main
from labelgen.preview import GAP, TILE, class_labels, contact_sheet
from storage.errors import StoreMismatch, TeachonceError
from storage.images import content_digest, scan_folder
from storage.pixels import cut_view, decode_rgb
from storage.views import RandomResizedCrop


def test_sheet_shows_the_very_crops_of_a_run(tmp_path: Path, image_folder: Path) -> None:
    teacher, sampler = tiny_teacher(tmp_path), RandomResizedCrop()
    folder = scan_folder(image_folder)
    sheet, shown = contact_sheet(teacher, folder, sampler, num_images=3, num_views=2, seed=6)
    assert len(shown) == len(set(shown)) == 3
    data = (image_folder / shown[1]).read_bytes()
    image = decode_rgb(data)
    views = sampler.draw(6, content_digest(data), image.height, image.width, 0, 2)
    crop = cut_view(image, views.box[1], bool(views.flip[1]), SIZE)
    enlarged = Image.fromarray(crop).resize((TILE, TILE), Image.Resampling.NEAREST)
    row_height = (sheet.height - GAP) // 3
    left, top = GAP + 2 * (TILE + GAP), GAP + row_height
    found = sheet.crop((left, top, left + TILE, top + TILE))
    inner = slice(4, TILE - 4)  # inside the coloured frame
    assert (np.asarray(found)[inner, inner] == np.asarray(enlarged)[inner, inner]).all()


def test_sheet_is_the_same_for_the_same_seed_and_another_for_another(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher, folder = tiny_teacher(tmp_path), scan_folder(image_folder)
    sheets = [
        contact_sheet(teacher, folder, RandomResizedCrop(), num_images=2, num_views=2, seed=s)
        for s in (1, 1, 2)
    ]
    assert sheets[0][0].tobytes() == sheets[1][0].tobytes()
    assert sheets[0][0].tobytes() != sheets[2][0].tobytes()


def test_bad_images_are_passed_over(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    for path in sorted(image_folder.rglob("*.jpg"))[1:]:
        path.write_bytes(b"bad")
    folder = scan_folder(image_folder)
    options = {"num_images": 5, "num_views": 1, "seed": 0}
    _, shown = contact_sheet(teacher, folder, RandomResizedCrop(), **options)
    assert shown == [folder.keys[0]]
    folder.path(0).write_bytes(b"bad")
    with pytest.raises(TeachonceError, match=r"no image of .* can be decoded"):
        contact_sheet(teacher, folder, RandomResizedCrop(), **options)


def test_class_names_are_those_of_the_teacher(tmp_path: Path) -> None:
    assert class_labels(tiny_teacher(tmp_path))[:2] == ["class0", "class1"]
    assert class_labels(tiny_teacher(tmp_path, classes=None))[6] == "class 6"


def test_preview_writes_a_png_and_does_not_replace_one_unasked(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors")
    arguments = ["labelgen", "preview", "--teacher", str(weights), "--data", str(image_folder)]
    codes = []
    for more in ([], [], ["--overwrite"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(SystemExit) as caught:
            main()
        codes.append(caught.value.code)
    assert codes == [0, 2, 0]
    with Image.open("preview.png") as image:
        assert image.format == "PNG"


def test_a_stores_sheet_shows_its_crops_and_its_labels(tmp_path: Path, image_folder: Path) -> None:
    from training import make_store

    from labelgen.preview import stored_sheet
    from storage.store import LabelStore

    store = LabelStore.open(make_store(image_folder, tmp_path / "store.zarr"))
    teacher = next(iter(store.spec.teachers))
    options = {"num_images": 2, "num_views": 3, "seed": 1}
    sheet, shown = stored_sheet(store, image_folder, teacher, **options)
    images, plane = store.read_images(), store.read_plane(0, 3, teacher)
    row = images.key.index(shown[0])
    photo = decode_rgb((image_folder / shown[0]).read_bytes())
    crop = cut_view(photo, plane.box[row, 2], bool(plane.flip[row, 2]), 24)
    enlarged = np.asarray(Image.fromarray(crop).resize((TILE, TILE), Image.Resampling.NEAREST))
    left = GAP + 3 * (TILE + GAP)
    found = np.asarray(sheet.crop((left, GAP, left + TILE, GAP + TILE)))
    inner = slice(4, TILE - 4)
    assert (found[inner, inner] == enlarged[inner, inner]).all()
    (image_folder / shown[0]).write_bytes((image_folder / shown[1]).read_bytes())
    with pytest.raises(StoreMismatch, match="not the image"):
        stored_sheet(store, image_folder, teacher, **options)
