"""Large and odd folders, images that come back, ensembles, what no store can hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image
from labelling import DESCRIPTION, NUM_CLASSES, tiny_teacher
from PIL import Image
from safetensors.torch import save_file

from labelgen.run import generate
from labelgen.settings import teacher_records
from labelgen.target_options import TargetOptions
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.errors import TeacherError, UsageError
from storage.images import ImageStatus
from storage.manifest import read_manifest
from storage.pixels import decode_rgb, pixel_digest
from storage.store import LabelStore
from storage.verify import verify
from trainer.models import create

SETTINGS: dict[str, Any] = {"crops": 2, "batch_size": 8, "block_images": 4, "workers": 1}


def two_teachers(folder: Path) -> tuple[Teacher, Path, Path]:
    """An ensemble of resnet8 and resnet14, and the weights of both."""
    paths = [folder / "eight.safetensors", folder / "fourteen.safetensors"]
    for path, arch in zip(paths, ("resnet8", "resnet14"), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(len(arch))
            tensors = create(arch, NUM_CLASSES).state_dict()
        tensors["fc.weight"] *= 8
        save_file(tensors, path, {"teachonce": json.dumps(DESCRIPTION | {"arch": arch})})
    both = load_teacher(resolve(f"ensemble:file:{paths[0]}+file:{paths[1]}"), device="cpu")
    return both, paths[0], paths[1]


def test_members_of_an_ensemble_get_the_labels_they_give_alone(
    tmp_path: Path, image_folder: Path
) -> None:
    both, *paths = two_teachers(tmp_path)
    generate(both, image_folder, tmp_path / "kept", keep_members=True, **SETTINGS)
    generate(both, image_folder, tmp_path / "mean", **SETTINGS)
    kept, mean = LabelStore.open(tmp_path / "kept"), LabelStore.open(tmp_path / "mean")
    assert not verify(kept.path, full=True).problems
    assert set(kept.spec.teachers) == {"resnet8+resnet14", "resnet8", "resnet14"}
    assert set(mean.spec.teachers) == {"resnet8+resnet14"}
    pairs = [(kept, mean, "resnet8+resnet14")]
    for path, name in zip(paths, ("resnet8", "resnet14"), strict=True):
        alone = load_teacher(resolve(f"file:{path}"), device="cpu")
        generate(alone, image_folder, tmp_path / name, **SETTINGS)
        pairs.append((kept, LabelStore.open(tmp_path / name), name))
    for ours, theirs, name in pairs:
        mine, other = ours.read_plane(0, 2, name), theirs.read_plane(0, 2, name)
        assert np.array_equal(mine.index, other.index), name
        assert np.array_equal(mine.code, other.code), name


def test_members_of_one_network_cannot_be_kept(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--keep-members: .* is one network"):
        generate(
            tiny_teacher(tmp_path), image_folder, tmp_path / "s", keep_members=True, **SETTINGS
        )


@pytest.mark.parametrize("sealed", [False, True])
def test_missing_images_that_are_back_are_labelled_after_all(
    tmp_path: Path, image_folder: Path, sealed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_teacher(tmp_path)
    whole = generate(teacher, image_folder, tmp_path / "whole", **SETTINGS)
    photo, away = image_folder / "class1" / "image2.jpg", tmp_path / "away.jpg"
    photo.rename(away)
    photo.symlink_to(tmp_path / "nowhere")  # listed, but can't be read
    first = generate(teacher, image_folder, tmp_path / "s", **SETTINGS)
    assert list(first.masked) == ["class1/image2.jpg"] and first.root != whole.root
    if not sealed:
        (tmp_path / "s" / "manifest.json").unlink()
        (tmp_path / "s" / "receipts" / "000002.json").unlink()
    photo.unlink()
    away.rename(photo)
    again = generate(teacher, image_folder, tmp_path / "s", **SETTINGS)
    errors = capsys.readouterr().err
    assert "1 images that were missing are back (first: class1/image2.jpg)" in errors
    if sealed:
        assert again.root == first.root and "--retry-missing" in errors
        again = generate(teacher, image_folder, tmp_path / "s", retry_missing=True, **SETTINGS)
    assert not again.masked and again.root == whole.root
    assert not verify(tmp_path / "s", full=True).problems


def test_images_that_cannot_be_decoded_are_not_tried_again(
    tmp_path: Path, image_folder: Path
) -> None:
    (image_folder / "class1" / "broken.jpg").write_bytes(b"x")
    teacher = tiny_teacher(tmp_path)
    first = generate(teacher, image_folder, tmp_path / "s", **SETTINGS)
    again = generate(teacher, image_folder, tmp_path / "s", retry_missing=True, **SETTINGS)
    assert (again.root, again.new_crops) == (first.root, 0)


def test_every_image_gets_a_digest_of_its_pixels(tmp_path: Path, image_folder: Path) -> None:
    photo = image_folder / "class0" / "image0.jpg"
    image = decode_rgb(photo.read_bytes())
    image.save(image_folder / "class0" / "same_pixels.png")
    (image_folder / "class1" / "broken.jpg").write_bytes(b"x")
    generate(tiny_teacher(tmp_path), image_folder, tmp_path / "s", **SETTINGS | {"crops": 130})
    store = LabelStore.open(tmp_path / "s")
    table, pixels = store.read_images(), store.read_array("images/pixels", slice(None))
    for row, key in enumerate(table.key):
        if table.status[row] == ImageStatus.OK:
            expected = pixel_digest(decode_rgb((image_folder / key).read_bytes()))
        else:
            expected = bytes(32)
        assert pixels[row].tobytes() == expected
    rows = [table.key.index(f"class0/{name}") for name in ("image0.jpg", "same_pixels.png")]
    assert np.array_equal(pixels[rows[0]], pixels[rows[1]])


def test_one_bad_image_in_a_thousand_is_masked_counted_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "class0"
    folder.mkdir(parents=True)
    pixels = np.asarray(make_image(1, 16, 16))
    for i in range(1000):
        own = pixels.copy()
        own[0, 0] = i % 256, i // 256, 7
        Image.fromarray(own).save(folder / f"{i:04d}.png")
    (folder / "0777.png").write_bytes((folder / "0778.png").read_bytes()[:60])
    result = generate(
        tiny_teacher(tmp_path), tmp_path / "images", tmp_path / "s", crops=1, workers=2,
        teacher_check=False,
    )  # fmt: skip
    assert list(result.masked) == ["class0/0777.png"]
    assert (result.images, result.crops) == (1000, 999)
    masked = read_manifest(tmp_path / "s").provenance["masked"]
    assert [(m["row"], m["key"], m["status"]) for m in masked] == [
        (777, "class0/0777.png", "UNREADABLE")
    ]


def test_sizes_from_one_pixel_to_ten_thousand_are_labelled_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in {
        "wide.png": (10_000, 60), "tall.png": (40, 10_000), "dot.png": (1, 1),
        "square.png": (300, 300), "line.png": (2_000, 1),
    }.items():  # fmt: skip
        make_image(len(name), size[1], size[0]).save(folder / name)
    options = TargetOptions(features="", feature_views=2, feature_rank=4)
    result = generate(
        tiny_teacher(tmp_path), folder, tmp_path / "s", crops=3, targets=options, workers=2
    )
    assert not result.masked
    assert not verify(tmp_path / "s", full=True).problems
    sizes = LabelStore.open(tmp_path / "s").read_images().size
    assert sizes.max() == 10_000 and sizes.min() == 1


def test_more_classes_than_a_label_can_name_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    teacher = tiny_teacher(tmp_path)
    many = replace(teacher, spec=replace(teacher.spec, num_classes=65_536, classes=None))
    with pytest.raises(TeacherError, match="65536 classes; a store's labels can name 65535"):
        teacher_records(many, crops=4, top_k=None, batch_size=8)


def test_features_wider_than_the_teachers_are_refused_before_a_store_is_made(
    tmp_path: Path, image_folder: Path
) -> None:
    options = TargetOptions(features="", feature_rank=65)
    with pytest.raises(UsageError, match=r"--feature-rank is 65, .* has 64"):
        generate(tiny_teacher(tmp_path), image_folder, tmp_path / "s", targets=options, **SETTINGS)
    assert not (tmp_path / "s").exists()


class NoHead(torch.nn.Module):
    """A classifier whose logits no linear layer gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, 7]."""
        return x.flatten(1)[:, : 7 * 9].reshape(-1, 7, 9).amax(dim=2)


def test_a_teacher_without_pooled_features_is_refused(tmp_path: Path, image_folder: Path) -> None:
    from dataclasses import replace

    teacher = replace(tiny_teacher(tmp_path), model=NoHead().eval())
    with pytest.raises(TeacherError, match="has no pooled features"):
        generate(
            teacher, image_folder, tmp_path / "s", targets=TargetOptions(features=""), **SETTINGS
        )
    assert not (tmp_path / "s").exists()
