"""Listing image folders."""

import pytest
from conftest import make_image

from storage.errors import UsageError
from storage.images import NO_TARGET, class_order_hash, scan_folder


def put(root, *keys):
    for key in keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(0, 8, 8).save(path)


def test_a_tree_has_its_sorted_top_folders_as_classes(tmp_path):
    put(tmp_path, "b/2.png", "a/deep/er/1.JPEG", "10/x.png", "9/x.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    folder = scan_folder(tmp_path)
    assert folder.classes == ("10", "9", "a", "b")
    assert folder.keys == ("10/x.png", "9/x.png", "a/deep/er/1.JPEG", "b/2.png")
    assert folder.targets == (0, 1, 2, 3)
    assert folder.path(2).is_file()


def test_a_flat_folder_has_no_classes(tmp_path):
    put(tmp_path, "2.png", "1.jpg")
    folder = scan_folder(tmp_path)
    assert folder.keys == ("1.jpg", "2.png")
    assert set(folder.targets) == {NO_TARGET}
    assert folder.classes == ()


def test_hidden_files_are_passed_over(tmp_path):
    put(tmp_path, "a/1.png", "a/.2.png", ".cache/3.png")
    assert scan_folder(tmp_path).keys == ("a/1.png",)


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(UsageError, match=r"holds no images .*\.jpeg"):
        scan_folder(tmp_path)


def test_a_missing_folder_names_the_flag(tmp_path):
    with pytest.raises(UsageError, match="--data"):
        scan_folder(tmp_path / "nowhere")


def test_images_beside_class_folders_are_refused(tmp_path):
    put(tmp_path, "a/1.png", "stray.png")
    with pytest.raises(UsageError, match=r"stray\.png"):
        scan_folder(tmp_path)


def test_the_class_hash_binds_the_order():
    assert class_order_hash(["1", "10", "2"]) != class_order_hash(["1", "2", "10"])
