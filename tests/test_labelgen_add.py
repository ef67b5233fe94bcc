"""`labelgen add`: a second teacher, targets and further views on what a sealed store has."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archive_helpers import flat_images, write_fkd
from conftest import make_image
from labelling import DESCRIPTION, NUM_CLASSES, plain_crops, tiny_teacher, write_weights
from safetensors.torch import save_file
from test_archives_fkd import import_fkd
from test_labelgen_cli import run as labelgen

from labelgen.adding import add
from labelgen.forward import Forward
from labelgen.run import generate
from labelgen.target_options import TargetOptions
from labelgen.teacher import load_teacher
from labelgen.teachers import resolve
from storage.errors import CorruptStore, StoreMismatch, UsageError
from storage.images import ImageStatus
from storage.origin import check_origin
from storage.store import LabelStore
from storage.verify import verify
from trainer.models import create

SETTINGS: dict[str, Any] = {"crops": 6, "batch_size": 8, "block_images": 4, "workers": 1}
FEATURES = TargetOptions(features="pooled", feature_views=3, feature_rank=8)


@pytest.fixture
def photos(image_folder: Path) -> Path:
    (image_folder / "class1" / "broken.jpg").write_bytes(b"no image")
    return image_folder


@pytest.fixture
def store(tmp_path: Path, photos: Path) -> LabelStore:
    """13 images, one of them bad, 6 views, labels of resnet8."""
    generate(tiny_teacher(tmp_path), photos, tmp_path / "old", **SETTINGS)
    return LabelStore.open(tmp_path / "old")


def contents(folder: Path) -> dict[str, str]:
    """Hex digest of every file of a store but its local notes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "local.json"
    }


def write_second(folder: Path) -> Any:
    """resnet14 with random weights, described as a file of ours."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        tensors = create("resnet14", NUM_CLASSES).state_dict()
    tensors["fc.weight"] *= 8
    path = folder / "second.safetensors"
    save_file(tensors, path, {"teachonce": json.dumps(DESCRIPTION | {"arch": "resnet14"})})
    return load_teacher(resolve(f"file:{path}"), device="cpu")


def sound_rows(store: LabelStore) -> list[int]:
    return np.flatnonzero(store.read_status() == ImageStatus.OK).tolist()


def test_a_second_teacher_labels_the_stored_views_and_nothing_old_changes(
    tmp_path: Path, photos: Path, store: LabelStore
) -> None:
    before, second = contents(store.path), write_second(tmp_path)
    result = add(second, store.path, tmp_path / "new", batch_size=8, workers=2)
    assert contents(store.path) == before
    assert (result.teachers, result.new_crops) == (("resnet14",), 12 * 6)
    new = LabelStore.open(tmp_path / "new")
    assert not verify(new.path, full=True).problems
    assert not check_origin(new, result.parent_root).problems
    after = contents(new.path)
    assert all(after[name] == digest for name, digest in before.items()
               if name.startswith(("images/", "views/", "labels/")))  # fmt: skip
    forward, codec = Forward(second, 1), new.spec.teachers["resnet14"].codec
    plane = new.read_plane(0, 6, "resnet14")
    for row in sound_rows(new):
        crops = plain_crops(new, second, photos, row)
        labels = codec.encode(forward.log_probs(forward.normalise(crops)).numpy())
        assert np.array_equal(plane.index[row], labels.index)
        assert (plane.code[row] != labels.code).mean() < 0.05  # other batches: last bits
    old = new.read_plane(0, 6, "resnet8")
    assert np.array_equal(old.code, store.read_plane(0, 6, "resnet8").code)


def test_features_added_are_those_that_a_run_with_features_makes(
    tmp_path: Path, photos: Path, store: LabelStore
) -> None:
    teacher = tiny_teacher(tmp_path)
    result = add(teacher, store.path, tmp_path / "new", targets=FEATURES, workers=1)
    assert (result.teachers, result.targets) == ((), ("features/pooled",))
    assert result.new_crops == 12 * 3  # only the views that have features
    generate(teacher, photos, tmp_path / "once", targets=FEATURES, **SETTINGS)
    new, once = LabelStore.open(tmp_path / "new"), LabelStore.open(tmp_path / "once")
    assert not verify(new.path, full=True).problems
    rows = np.array(sound_rows(new))
    for name in ("mean", "basis", "spectrum"):
        ours, theirs = (each.read_constant("features/pooled", name) for each in (new, once))
        assert np.allclose(ours, theirs, atol=1e-5)
    ours, theirs = (
        each.read_target("features/pooled", rows, None)["value"] for each in (new, once)
    )
    assert np.allclose(ours, theirs, rtol=2**-10, atol=1e-4)


def test_a_second_teacher_with_every_target_in_one_forward(
    tmp_path: Path, store: LabelStore
) -> None:
    everything = TargetOptions(
        features="", feature_views=2, feature_rank=4, dense="", dense_views=6,
        tokens="", token_views=1, token_rank=4, heads="", head_views=1,
    )  # fmt: skip
    second = write_second(tmp_path)
    result = add(second, store.path, tmp_path / "new", targets=everything, batch_size=8)
    assert set(result.targets) == {
        f"{k}/resnet14" for k in ("features", "dense", "tokens", "heads")
    }
    assert not verify(tmp_path / "new", full=True).problems
    new = LabelStore.open(tmp_path / "new")
    rows = np.array(sound_rows(new))
    logits = new.read_target("dense/resnet14", rows, None)["logits"]
    assert (logits.argmax(-1) == new.read_plane(0, 6, "resnet14").index[rows][..., 0]).mean() > 0.97


def test_an_interrupted_addition_goes_on_and_ends_with_the_same_root(
    tmp_path: Path, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path)
    whole = add(teacher, store.path, tmp_path / "whole", targets=FEATURES, workers=2)
    put_added = LabelStore.put_added

    def full_at_third_block(self: LabelStore, block: int, *args: Any, **more: Any) -> None:
        if block == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "x"))
        put_added(self, block, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "put_added", full_at_third_block)
        with pytest.raises(OSError, match="No space left"):
            add(teacher, store.path, tmp_path / "new", targets=FEATURES, workers=1)
    assert LabelStore.open(tmp_path / "new").missing_blocks() == [2, 3]
    resumed = add(teacher, store.path, tmp_path / "new", targets=FEATURES, workers=1)
    assert resumed.root == whole.root
    assert resumed.new_crops < whole.new_crops
    again = add(teacher, store.path, tmp_path / "new", targets=FEATURES, workers=1)
    assert (again.root, again.new_crops) == (whole.root, 0)
    with pytest.raises(StoreMismatch, match=r"features/pooled\.views is 2, not 3"):
        add(teacher, store.path, tmp_path / "new",
            targets=TargetOptions(features="pooled", feature_views=2, feature_rank=8))  # fmt: skip


def test_more_views_are_those_of_one_run_of_them_all(
    tmp_path: Path, photos: Path, store: LabelStore
) -> None:
    before, teacher = contents(store.path), tiny_teacher(tmp_path)
    result = add(teacher, store.path, tmp_path / "new", crops=11, workers=2)
    assert contents(store.path) == before
    assert (result.views, result.new_crops) == (11, 12 * 5)
    assert not (tmp_path / "new.views").exists()
    generate(teacher, photos, tmp_path / "once", **SETTINGS | {"crops": 11})
    new, once = LabelStore.open(tmp_path / "new"), LabelStore.open(tmp_path / "once")
    assert not verify(new.path, full=True).problems
    ours, theirs = (each.read_plane(0, 11, "resnet8") for each in (new, once))
    for part in ("box", "flip", "index", "code", "tail"):
        assert np.array_equal(getattr(ours, part), getattr(theirs, part)), part
    mine, other = new.read_images(), once.read_images()
    assert mine.key == other.key and np.array_equal(mine.digest, other.digest)
    # value for value, not file for file: the merged store says where it comes from
    assert new.attributes["origin"]["kind"] == "merge-views"


def test_targets_of_all_views_are_continued_and_those_of_the_first_stay(
    tmp_path: Path, photos: Path
) -> None:
    teacher = tiny_teacher(tmp_path)
    both = TargetOptions(
        features="pooled", feature_views=2, feature_rank=4, dense="all", dense_views=4,
        dense_encoding="fp32",
    )  # fmt: skip
    generate(teacher, photos, tmp_path / "old", targets=both, **SETTINGS | {"crops": 4})
    add(teacher, tmp_path / "old", tmp_path / "new", crops=7, workers=1)
    new, old = LabelStore.open(tmp_path / "new"), LabelStore.open(tmp_path / "old")
    assert not verify(new.path, full=True).problems
    assert {p: r.views for p, r in new.spec.targets.items()} == {
        "dense/all": 7, "features/pooled": 2,
    }  # fmt: skip
    rows = np.array(sound_rows(new))
    logits = new.read_target("dense/all", rows, None)["logits"]
    assert np.array_equal(logits[:, :4], old.read_target("dense/all", rows, None)["logits"])
    forward = Forward(teacher, 1)
    for i, row in enumerate(rows):
        live = forward.logits(forward.normalise(plain_crops(new, teacher, photos, int(row))))
        assert np.allclose(logits[i], live.numpy(), atol=1e-4)


def test_views_continue_where_a_cut_store_ends_in_the_samplers_stream(
    tmp_path: Path, photos: Path, store: LabelStore
) -> None:
    from storage.select import Selection, subset

    subset(store.path, tmp_path / "cut", Selection(views=(4, 6)))
    add(tiny_teacher(tmp_path), tmp_path / "cut", tmp_path / "new", data=photos, crops=4)
    generate(tiny_teacher(tmp_path), photos, tmp_path / "once", **SETTINGS | {"crops": 8})
    ours = LabelStore.open(tmp_path / "new").read_plane(0, 4, "resnet8")
    theirs = LabelStore.open(tmp_path / "once").read_plane(4, 4, "resnet8")
    assert np.array_equal(ours.box, theirs.box)
    assert np.array_equal(ours.code, theirs.code)


def test_moved_images_are_found_by_content(tmp_path: Path, photos: Path, store: LabelStore) -> None:
    teacher = tiny_teacher(tmp_path)
    straight = add(teacher, store.path, tmp_path / "a", targets=FEATURES, workers=1)
    (photos / "class0" / "image1.jpg").rename(photos / "class2" / "renamed.jpg")
    moved = add(teacher, store.path, tmp_path / "b", targets=FEATURES, workers=1)
    assert moved.root == straight.root


def test_a_changed_image_is_named_and_a_lost_one_too(
    tmp_path: Path, photos: Path, store: LabelStore
) -> None:
    teacher, photo = tiny_teacher(tmp_path), photos / "class0" / "image1.jpg"
    whole = photo.read_bytes()
    make_image(77, 50, 60).save(photo)
    with pytest.raises(StoreMismatch, match=r"class0/image1\.jpg: not the image that was labelled"):
        add(teacher, store.path, tmp_path / "new", targets=TargetOptions(dense=""), workers=1)
    photo.unlink()
    with pytest.raises(StoreMismatch, match=r"1 images .* are not in .*class0/image1\.jpg"):
        add(teacher, store.path, tmp_path / "new", targets=TargetOptions(dense=""), workers=1)
    photo.write_bytes(whole)
    add(teacher, store.path, tmp_path / "new", targets=TargetOptions(dense=""), workers=1)


def test_a_masked_image_that_can_be_read_now_stays_masked(
    tmp_path: Path, photos: Path, store: LabelStore
) -> None:
    make_image(78, 50, 60).save(photos / "class1" / "broken.jpg")
    add(write_second(tmp_path), store.path, tmp_path / "new", batch_size=8, workers=1)
    add(tiny_teacher(tmp_path), store.path, tmp_path / "more", crops=8, workers=1)
    for name in ("new", "more"):
        assert not verify(tmp_path / name, full=True).problems
        status = LabelStore.open(tmp_path / name).read_status()
        assert np.array_equal(status, store.read_status())


@pytest.mark.parametrize("flaw", ["nothing", "other weights", "too few", "present", "filter"])
def test_what_cannot_be_added_is_refused(tmp_path: Path, store: LabelStore, flaw: str) -> None:
    teacher, out = tiny_teacher(tmp_path), tmp_path / "new"
    if flaw == "nothing":
        with pytest.raises(UsageError, match=r"has labels of resnet8 already: say what else"):
            add(teacher, store.path, out)
    if flaw == "other weights":
        other = tiny_teacher(tmp_path, seed=9)
        with pytest.raises(StoreMismatch, match=r"another resnet8: digest is"):
            add(other, store.path, out, targets=FEATURES)
        with pytest.raises(StoreMismatch, match=r"another resnet8: digest is"):
            add(other, store.path, out, crops=9)
        with pytest.raises(UsageError, match="need labels of them all"):
            add(write_second(tmp_path), store.path, out, crops=9)
    if flaw == "too few":
        with pytest.raises(UsageError, match=r"6 views asked for, but .* has 6 already"):
            add(teacher, store.path, out, crops=6)
    if flaw == "present":
        add(teacher, store.path, out, targets=FEATURES)
        with pytest.raises(StoreMismatch, match="has features/pooled already"):
            add(teacher, out, tmp_path / "newer", targets=FEATURES)
        return
    if flaw == "filter":
        path = write_weights(tmp_path / "cubic.safetensors", interpolation="bicubic")
        cubic = load_teacher(resolve(f"file:{path}"), device="cpu")
        with pytest.raises(UsageError, match=r"bilinear crops.*--interpolation bilinear"):
            add(cubic, store.path, out, targets=FEATURES)
    assert not out.exists()


def test_damage_in_the_store_does_not_pass_into_the_new_one(
    tmp_path: Path, store: LabelStore
) -> None:
    file = max((store.path / "views").rglob("c/0/**/*"), key=lambda path: path.is_file())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptStore):
        add(tiny_teacher(tmp_path), store.path, tmp_path / "new", targets=FEATURES)


def test_the_command_line_adds_and_says_what(
    tmp_path: Path,
    store: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--teacher", tmp_path / "tiny.safetensors", "--labels", store.path)
    out = ("--out", tmp_path / "new", "--workers", 1)
    assert (
        labelgen(monkeypatch, "add", *options, *out, "--dense", "--dense-views", 2, "--json") == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["targets"] == ["dense/resnet8"]
    assert report["new_crops"] == 24
    assert labelgen(monkeypatch, "add", *options, *out) == 2
    error = capsys.readouterr().err
    assert error.startswith("labelgen: error: ") and error.count("\n") == 1


def test_a_teacher_is_added_to_the_crops_that_another_project_drew(tmp_path: Path) -> None:
    images = flat_images(tmp_path / "train", 12)
    truth = write_fkd(tmp_path / "fkd", images)
    imported, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "old")
    second = write_second(tmp_path)
    result = add(second, imported.path, tmp_path / "new", data=images, targets=FEATURES,
                 batch_size=8, workers=1)  # fmt: skip
    assert result.new_crops == 12 * 6
    new = LabelStore.open(tmp_path / "new")
    assert not verify(new.path, full=True).problems
    plane, forward = new.read_plane(0, 6, "resnet14"), Forward(second, 1)
    for row, key in enumerate(new.read_images().key):
        assert np.array_equal(plane.box[row], truth[key][0])
        crops = plain_crops(new, second, images, row)
        live = forward.log_probs(forward.normalise(crops)).numpy()
        assert (plane.index[row][..., 0] == live.argmax(-1)).all()
    with pytest.raises(UsageError, match="its views were drawn elsewhere"):
        add(second, imported.path, tmp_path / "more", data=images, crops=9)
