"""match: what is exact, same, re-encoded, missing and extra, and what it says about classes."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import reuse_folders as folders
from click.testing import CliRunner
from PIL import Image
from store_helpers import make_teacher

from storage.commands.reuse import match as match_command
from storage.errors import UsageError
from storage.images import class_order_hash
from storage.local import write_local
from storage.match import match
from storage.match_classes import compare_classes
from storage.store import LabelStore

IMAGES = 60


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    folders.write_images(root / "images", IMAGES)
    return folders.write_store(root / "store.zarr", root / "images"), root / "images"


@pytest.fixture
def changed(labelled, tmp_path):
    return shutil.copytree(labelled[1], tmp_path / "changed")


def counts(report):
    return {
        name: len(getattr(report, name))
        for name in ("exact", "same_pixels", "re_encoded", "missing", "extra", "moved")
        if getattr(report, name)
    }


def test_the_labelled_folder_is_exact(labelled):
    report = match(*labelled)
    assert counts(report) == {"exact": IMAGES + 1} and report.exit_code == 0
    assert report.trainable == IMAGES + 1 and report.classes.state == "same"
    table = labelled[0].read_images()
    assert all(table.key[row] == key for key, row in report.exact.items())  # copies keep their row


def test_threads_change_nothing(labelled, changed):
    folders.everything(changed, random.Random(1))
    store, was = labelled
    assert match(store, changed, was=was) == match(store, changed, was=was, workers=3)


def test_deleted_and_new_files_are_missing_and_extra(labelled, changed):
    (changed / "1/00006.jpg").unlink()
    (changed / "1/new.jpg").write_bytes(folders.jpeg(Image.new("RGB", (5, 5))))
    report = match(labelled[0], changed)
    assert counts(report) == {"exact": IMAGES, "missing": 1, "extra": 1}
    assert report.exit_code == 1 and report.extra == ["1/new.jpg"]
    assert [report.keys[row] for row in report.missing] == ["1/00006.jpg"]


def test_a_lost_copy_is_not_missing_while_its_twin_is_there(labelled, changed):
    (changed / "3/copy0.jpg").unlink()
    assert counts(match(labelled[0], changed)) == {"exact": IMAGES}


def test_names_count_only_when_asked(labelled, changed):
    path = changed / "1/00006.jpg"
    path.write_bytes(folders.jpeg(Image.open(path), quality=30))
    report = match(labelled[0], changed)
    assert counts(report) == {"exact": IMAGES, "missing": 1, "extra": 1} and report.same_key == 1
    report = match(labelled[0], changed, by_key=True)
    assert counts(report) == {"exact": IMAGES, "re_encoded": 1} and report.exit_code == 1
    assert report.keys[report.re_encoded["1/00006.jpg"]] == "1/00006.jpg"
    assert report.trainable == IMAGES


def test_same_pixels_are_found_where_the_labelled_files_are_at_hand(labelled, changed):
    store, was = labelled
    path = changed / "1/00006.jpg"
    (changed / "2/other.png").write_bytes(folders.png(Image.open(path).convert("RGB")))
    path.unlink()
    unknown = match(store, changed)
    assert counts(unknown) == {"exact": IMAGES, "missing": 1, "extra": 1}
    assert unknown.pixels_unknown == 1
    report = match(store, changed, was=was)
    assert counts(report) == {"exact": IMAGES, "same_pixels": 1, "moved": 1}
    assert store.read_images().key[report.same_pixels["2/other.png"]] == "1/00006.jpg"
    assert report.moved == ["2/other.png"] and report.exit_code == 1


def test_the_store_s_hint_serves_unless_its_files_have_changed(labelled, changed, tmp_path):
    store, was = labelled
    path = changed / "1/00006.jpg"
    path.write_bytes(path.read_bytes() + b"junk")
    copy = LabelStore.open(shutil.copytree(store.path, tmp_path / "store"))
    write_local(copy.path, was, None)
    assert len(match(copy, changed).same_pixels) == 1
    write_local(copy.path, changed, None)  # the labelled file itself is gone
    report = match(copy, changed)
    assert counts(report) == {"exact": IMAGES, "missing": 1, "extra": 1}
    assert report.pixels_unknown == 1


@pytest.mark.parametrize(("deed", "expected"), [
    (folders.tag_orientation, {"exact": 41, "same_pixels": 20}),
    (folders.turn, {"exact": 41, "missing": 20, "extra": 20}),
    (folders.touch_pixels, {"exact": 41, "missing": 20, "extra": 20}),
    (folders.pad_class_names, {"exact": 61, "moved": 51}),
    (folders.shuffle, {"exact": 61}),
])  # fmt: skip
def test_what_is_done_to_a_folder_is_named(labelled, changed, deed, expected):
    """The deeds change every third file; copies of the first image hide one change or none."""
    deed(changed, random.Random(5))
    found = counts(match(labelled[0], changed, was=labelled[1]))
    for name, count in expected.items():
        assert abs(found[name] - count) <= 1, found
    assert set(found) - {"moved"} == set(expected) - {"moved"}


def test_class_folders_that_sort_differently_are_reported(labelled, changed):
    folders.pad_class_names(changed, random.Random(0))
    report = match(labelled[0], changed)
    assert report.classes.state == "different" and report.exit_code == 1
    assert report.classes.only_store == ["1", "10", "2", "20", "3"]  # 100 stays 100
    assert report.classes.store_hash == class_order_hash(folders.CLASSES)
    assert "001" in report.classes.only_data


def test_a_flat_folder_has_no_classes_to_compare(labelled, tmp_path):
    for number, path in enumerate(sorted(labelled[1].rglob("*.jpg"))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / f"flat/{number}.jpg")
    report = match(labelled[0], tmp_path / "flat")
    assert counts(report) == {"exact": IMAGES + 1} and report.classes.state == "unknown"


def test_hashes_that_don_t_bind_their_names_are_problems(labelled):
    spec = labelled[0].spec
    wrong = type(spec).from_settings(spec.settings(), {})
    wrong.dataset["class_order_hash"] = "0" * 64
    wrong.teachers["toy"] = make_teacher()  # says "cd" * 32
    report = compare_classes(wrong, folders.CLASSES)
    assert report.state == "same" and len(report.problems) == 2
    assert report.teachers == {"toy": False}
    assert compare_classes(spec, folders.CLASSES).problems == []


def test_masked_images_are_matched_but_not_trainable(tmp_path):
    from store_helpers import fill_store

    store = fill_store(tmp_path / "s", masked=[2])
    (tmp_path / "data/ant").mkdir(parents=True)
    (tmp_path / "data/ant/a.jpg").write_bytes(b"image 2")  # what its digest is made of
    (tmp_path / "data/ant/b.jpg").write_bytes(b"image 3")
    report = match(store, tmp_path / "data")
    assert report.exact == {"ant/a.jpg": 2, "ant/b.jpg": 3}
    assert report.trainable == 1 and report.masked == [2]


def test_files_that_can_t_be_read_are_extra(labelled, changed):
    (changed / "1/00006.jpg").unlink()
    (changed / "1/00006.jpg").symlink_to(changed / "nowhere.jpg")
    report = match(labelled[0], changed)
    assert counts(report) == {"exact": IMAGES, "missing": 1, "extra": 1}


def test_the_command_tells_people_and_programs_the_same(labelled, changed):
    store, was = labelled
    folders.re_encode(changed, random.Random(2))

    def invoke(*options):
        arguments = [str(store.path), str(changed), "--workers", "1", *options]
        return CliRunner().invoke(match_command, arguments, standalone_mode=False)

    result = invoke("--json", "--was", str(was), "--examples", "2")
    found = json.loads(result.stdout)
    assert result.return_value == 1 and found["ok"] is False
    assert found["trainable"] == found["exact"]["count"] and len(found["extra"]["examples"]) == 2
    text = invoke("--by-key").stdout
    for said in ("exact", "re-encoded", "not to be trusted", "same names in the same order",
                 f"training uses {found['trainable']} of the {found['files']} files"):  # fmt: skip
        assert said in text, said


def test_a_folder_without_images_is_misuse(labelled, tmp_path):
    with pytest.raises(UsageError):
        match(labelled[0], tmp_path / "none")
