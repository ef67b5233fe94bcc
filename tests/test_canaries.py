"""Canaries: digests of a few crops, the same for every writer, that need no more than the store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from labelling import tiny_teacher
from store_helpers import fill_store, make_spec
from test_resample import cut_compiled
from training import make_store

from labelgen.adding import add
from labelgen.run import generate
from labelgen.target_options import TargetOptions
from storage.augment import Augment, replay_view
from storage.canaries import (
    CANARIES,
    Canary,
    canary_views,
    crop_digest,
    note_canary,
    read_canaries,
    sketch_of,
)
from storage.canary_images import small_canaries, small_images
from storage.colour_draws import ColourJitter
from storage.errors import CorruptStore
from storage.images import ImageStatus
from storage.pixels import decode_rgb, pad_image, pixel_digest
from storage.sealing import seal
from storage.store import LabelStore
from storage.verify import verify

SETTINGS = {"crops": 6, "batch_size": 8, "block_images": 4, "workers": 1}


def stated(store: LabelStore) -> tuple[Canary, ...]:
    found = read_canaries(store.attributes["measured"], store.spec.num_images, store.spec.num_views)
    assert found is not None
    return found


def test_canaries_are_digests_of_the_very_crops_that_were_labelled(
    tmp_path: Path, image_folder: Path
) -> None:
    (image_folder / "class1" / "broken.jpg").write_bytes(b"x")
    augment = Augment((ColourJitter(brightness=0.4, hue=0.1),))
    generate(tiny_teacher(tmp_path), image_folder, tmp_path / "s", augment=augment, **SETTINGS)
    store = LabelStore.open(tmp_path / "s")
    table, plane = store.read_images(), store.read_plane(0, 6)
    canaries = stated(store)
    sound = np.flatnonzero(table.status == ImageStatus.OK)
    chosen = canary_views(store.spec.seed, 13, 6)
    expected = [(row, view) for row, views in chosen.items() for view in views if row in sound]
    assert [(each.row, each.view) for each in canaries] == expected and len(expected) > 15
    for each in canaries:
        image = decode_rgb((image_folder / table.key[each.row]).read_bytes())
        assert plane.draw is not None
        crop = replay_view(
            image, plane.box[each.row, each.view], bool(plane.flip[each.row, each.view]), each.size,
            "bilinear", augment, plane.draw[each.row, each.view],
        )  # fmt: skip
        height, width = (len(crop).to_bytes(4, "little"),) * 2
        plain = hashlib.sha256(b"teachonce/rgb8\0" + height + width + crop.tobytes()).hexdigest()
        assert each.pixels == plain and each.image == pixel_digest(image).hex()
        blocks = crop.reshape(4, 4, 4, 4, 3).astype(np.int64).sum(axis=(1, 3)) // 16
        assert bytes.fromhex(each.sketch) == blocks.astype(np.uint8).tobytes()


def test_any_number_of_workers_and_restarts_states_the_same_canaries(
    tmp_path: Path, image_folder: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    for name, workers in (("a", 1), ("b", 2)):
        generate(teacher, image_folder, tmp_path / name, **SETTINGS | {"workers": workers})
    (tmp_path / "b" / "manifest.json").unlink()  # block 1 was lost before the store was sealed
    (tmp_path / "b" / "receipts" / "000001.json").unlink()
    generate(teacher, image_folder, tmp_path / "b", **SETTINGS)
    roots = [(tmp_path / name / "zarr.json").read_bytes() for name in "ab"]
    assert roots[0] == roots[1] and b"canaries" in roots[0]


def test_a_store_that_was_added_to_keeps_the_canaries(tmp_path: Path, image_folder: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    generate(teacher, image_folder, tmp_path / "old", **SETTINGS)
    targets = TargetOptions(features="pooled", feature_views=3, feature_rank=8)
    add(teacher, tmp_path / "old", tmp_path / "new", targets=targets, workers=1)
    old, new = (LabelStore.open(tmp_path / name) for name in ("old", "new"))
    assert stated(old) == stated(new) and not verify(new.path, full=True).problems


def test_a_store_without_canaries_is_a_store(tmp_path: Path) -> None:
    store = fill_store(tmp_path / "s", make_spec())
    seal(store)
    again = LabelStore.open(store.path)
    assert "canaries" not in again.attributes["measured"]
    assert read_canaries(again.attributes["measured"], 10, 6) is None
    assert not verify(store.path, full=True).problems


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (50, 500), (1_281_167, 500)])
def test_the_chosen_views_lie_in_the_store_and_depend_on_the_seed(shape: tuple[int, int]) -> None:
    chosen = canary_views(0, *shape)
    views = [(row, view) for row, found in chosen.items() for view in found]
    assert len(set(views)) == len(views) <= CANARIES
    assert all(0 <= row < shape[0] and 0 <= view < shape[1] for row, view in views)
    if shape[0] * shape[1] > 1000:
        assert len(views) > 28 and canary_views(1, *shape) != chosen


@pytest.mark.parametrize(
    "change",
    [
        {"row": 10}, {"view": 6}, {"row": -1}, {"size": 0}, {"pixels": "ab"}, {"sketch": None},
        {"image": "g" * 64}, {"more": 1},
    ],
)  # fmt: skip
def test_canaries_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    good = {"row": 9, "view": 5, "size": 32, "pixels": "a" * 64, "image": "b" * 64,
            "sketch": "c" * 96}  # fmt: skip
    measured = {"canaries": {"version": 1, "crops": [good]}}
    assert read_canaries(measured, 10, 6) == (Canary(**good),)  # type: ignore[arg-type]
    measured["canaries"]["crops"] = [good | change]
    with pytest.raises(CorruptStore, match="canar"):
        read_canaries(measured, 10, 6)


def test_canaries_of_a_later_release_are_passed_over_and_odd_ones_refused() -> None:
    assert read_canaries({"canaries": {"version": 2, "crops": [[1]]}}, 1, 1) is None
    for odd in (3, [], {"version": 1}, {"version": 1, "crops": 4}):
        with pytest.raises(CorruptStore):
            read_canaries({"canaries": odd}, 1, 1)


def test_the_built_in_canaries_hold_without_pillow_s_filter() -> None:
    images, views = small_images(), small_canaries()
    assert len(images) == 8 and len(views) == 16
    assert {view.interpolation for view in views} == {"bilinear", "bicubic"}
    assert any(v.flip for v in views) and any(v.padding for v in views)
    for view in views:
        image = decode_rgb(images[view.name])
        assert pixel_digest(image).hex() == view.image
        pixels = np.asarray(pad_image(image, view.padding))
        crop = cut_compiled(pixels, view.box, view.flip, view.size, view.interpolation)
        assert crop_digest(crop) == view.pixels
        assert sketch_of(crop).tobytes().hex() == view.sketch


def test_one_changed_level_changes_a_canary() -> None:
    image = make_image(3, 20, 20)
    crop = np.asarray(image)
    other = crop.copy()
    other[7, 5, 1] ^= 1
    assert note_canary(0, 0, image, crop).pixels != note_canary(0, 0, image, other).pixels


def test_a_receipt_with_an_odd_canary_does_not_count(tmp_path: Path, image_folder: Path) -> None:
    store = make_store(image_folder, tmp_path / "s.zarr", crops=4)
    (store / "manifest.json").unlink()
    opened = LabelStore.open(store)
    assert opened.missing_blocks() == []
    receipt = store / "receipts" / "000000.json"
    values = json.loads(receipt.read_text())
    values["canaries"][0]["pixels"] = "no digest"
    receipt.write_text(json.dumps(values))
    assert opened.missing_blocks() == [0]
