"""Data sets as they are published: splits, classes, and what is said where they aren't there."""

import hashlib
import pickle

import numpy as np
import pytest
from conftest import make_image
from PIL import Image
from torchvision import datasets

from storage.errors import UsageError
from transfer.images import as_folder, fingerprint, open_labelled
from transfer.published import NAMES
from transfer.splits import open_splits


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(seed, 20, 24).save(path)


def pairs(images):
    """(name, class) of every image."""
    return {(images.name(row), images.classes[t]) for row, t in enumerate(images.targets)}


def test_dtd_is_its_first_split_with_train_and_val_joined(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    # a class that val alone has shifts torchvision's numbers, not ours
    lists = {"train1": ["b/b_1.jpg"], "val1": ["a/a_1.jpg", "b/b_2.jpg"],
             "test1": ["b/b_3.jpg"], "train2": ["b/b_3.jpg"]}  # fmt: skip
    for name, lines in lists.items():
        (base / "labels" / f"{name}.txt").write_text("\n".join(lines))
    train, test = (open_labelled(f"dtd:{tmp_path}", split) for split in ("train", "test"))
    assert pairs(train) == {("b/b_1.jpg", "b"), ("a/a_1.jpg", "a"), ("b/b_2.jpg", "b")}
    assert pairs(test) == {("b/b_3.jpg", "b")}
    assert test.location == f"dtd:{tmp_path} (test)"


def test_caltech_is_cut_by_the_number_of_the_file(tmp_path):
    for number in range(1, 63):
        photo(tmp_path / f"caltech256/256_ObjectCategories/001.ak47/001_{number:04d}.jpg")
    photo(tmp_path / "caltech256/256_ObjectCategories/257.clutter/002_0001.jpg")
    train, test = (open_labelled(f"caltech256:{tmp_path}", split) for split in ("train", "test"))
    assert len(train.targets) == 61 and train.classes == ("001.ak47", "257.clutter")
    assert pairs(test) == {(f"001.ak47/001_{n:04d}.jpg", "001.ak47") for n in (61, 62)}
    assert train.decode(0).size == (24, 20)


def test_cub_follows_its_own_lists(tmp_path):
    base = tmp_path / "CUB_200_2011"
    base.mkdir()
    for name, lines in {
        "images": ["1 001.A/x.jpg", "2 001.A/y.jpg", "3 002.B/z.jpg"],
        "image_class_labels": ["1 1", "2 1", "3 2"],
        "train_test_split": ["1 1", "2 0", "3 1"],
        "classes": ["1 001.A", "2 002.B"],
    }.items():
        (base / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for root in (tmp_path, base):
        assert pairs(open_labelled(f"cub200:{root}", "train")) == {
            ("001.A/x.jpg", "001.A"),
            ("002.B/z.jpg", "002.B"),
        }
    assert pairs(open_labelled(f"cub200:{base}", "test")) == {("001.A/y.jpg", "001.A")}
    (base / "train_test_split.txt").write_text("1 1\n2 0\n")
    with pytest.raises(UsageError, match="its lists name different images"):
        open_labelled(f"cub200:{base}", "train")
    (base / "images.txt").write_text("1\n")
    with pytest.raises(UsageError, match=r"images.txt has a line '1'; expected a number and"):
        open_labelled(f"cub200:{base}", "train")


def test_pets_are_trainval_and_test(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    photo(base / "images" / "great_dane_1.jpg")
    (base / "annotations" / "trainval.txt").write_text("great_dane_1 1 2 1\nabyss_3 2 1 1\n")
    (base / "annotations" / "test.txt").write_text("great_dane_2 1 2 1\nabyss_4 2 1 1\n")
    train, test = (open_labelled(f"pets:{tmp_path}", split) for split in ("train", "test"))
    assert pairs(train) == {("great_dane_1.jpg", "Great Dane"), ("abyss_3.jpg", "Abyss")}
    assert pairs(test) == {("great_dane_2.jpg", "Great Dane"), ("abyss_4.jpg", "Abyss")}


def test_flowers_join_train_and_val(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    base = tmp_path / "flowers-102"
    for number in range(1, 5):
        photo(base / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(base / "setid.mat", {"trnid": [1, 3], "valid": [2, 5], "tstid": [4, 6]})
    savemat(base / "imagelabels.mat", {"labels": [1, 2, 102, 1, 2, 2]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    train, test = (open_labelled(f"flowers102:{tmp_path}", split) for split in ("train", "test"))
    names = datasets.Flowers102.classes
    assert {(n[6:11], c) for n, c in pairs(train)} == {
        ("00001", names[0]), ("00003", names[101]), ("00002", names[1]), ("00005", names[1]),
    }  # fmt: skip
    assert len(train.classes) == 102 and len(test.targets) == 2


def write_cifar(root, monkeypatch):
    """Ten images of two classes in CIFAR-10's published form, with their checksums."""
    base, rng = root / "cifar-10-batches-py", np.random.default_rng(0)
    base.mkdir(parents=True)
    entries = {}
    for name, count in (("data_batch_1", 6), ("test_batch", 4)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        entries[name] = {"data": pixels, "labels": [i % 2 for i in range(count)]}
    entries["batches.meta"] = {"label_names": ["cat", "dog"]}
    sums = {}
    for name, values in entries.items():
        (base / name).write_bytes(pickle.dumps(values))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(kind, "meta", meta)
    return entries


def test_cifar_becomes_image_files_of_the_same_pixels(tmp_path, monkeypatch):
    entries = write_cifar(tmp_path, monkeypatch)
    train, val = open_splits(f"cifar10:{tmp_path}", None)
    assert (train.images.classes, len(train.images.targets)) == (("cat", "dog"), 6)
    assert val.images.targets == (0, 1, 0, 1)
    folder = as_folder(val.images, tmp_path / "cache" / "val")
    expected = entries["test_batch"]["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for row in range(4):
        assert np.array_equal(np.asarray(Image.open(folder.path(row))), expected[row])
        assert np.array_equal(np.asarray(val.images.decode(row)), expected[row])
    before = folder.path(0).stat().st_mtime_ns
    assert as_folder(val.images, tmp_path / "cache" / "val") == folder
    assert folder.path(0).stat().st_mtime_ns == before  # written once
    folder.path(0).unlink()
    with pytest.raises(UsageError, match="other files than were written there"):
        as_folder(val.images, tmp_path / "cache" / "val")


def test_a_changed_pickle_is_never_loaded(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes() + b".")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UsageError, match=r"cifar10:.*can't be read"):
        open_labelled(f"cifar10:{tmp_path}", "test")


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_that_is_not_there_is_one_line_and_leaves_nothing(name, tmp_path):
    with pytest.raises(UsageError, match=rf"{name}:{tmp_path}/here.*nothing is downloaded"):
        open_labelled(f"{name}:{tmp_path}/here", "train")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def hub_set(tmp_path):
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"image": library.Image(), "label": library.ClassLabel(names=["ant", "bee"])}
    )
    photo(tmp_path / "files" / "0.jpg")
    photo(tmp_path / "files" / "1.png", 1)
    files = [str(tmp_path / "files" / name) for name in ("0.jpg", "1.png")]

    def split(labels, **more):
        columns = {"image": files, "label": labels} | more
        return library.Dataset.from_dict(columns, features=library.Features(
            features | {name: library.ClassLabel(names=["ant", "bee"]) for name in more}
        ))  # fmt: skip

    return library, split


def test_hugging_face_sets_keep_their_image_files(tmp_path, hub_set):
    library, split = hub_set
    saved = library.DatasetDict({"train": split([1, 0]), "validation": split([0, 1])})
    saved.save_to_disk(str(tmp_path / "saved"))
    train, val = open_splits(f"hf:{tmp_path / 'saved'}", None)
    assert (train.images.targets, val.images.targets) == ((1, 0), (0, 1))
    assert train.images.classes == ("ant", "bee")
    assert val.images.location == f"hf:{tmp_path / 'saved'}:validation"
    folder = as_folder(train.images, tmp_path / "cache")
    for row, name in enumerate(("0.jpg", "1.png")):
        assert folder.path(row).read_bytes() == (tmp_path / "files" / name).read_bytes()
    chosen = open_labelled(f"hf:{tmp_path / 'saved'}:train", "test")
    assert fingerprint(chosen) == fingerprint(train.images)
    with pytest.raises(UsageError, match=r"no split 'other': choose one with hf:.*train\|valid"):
        open_labelled(f"hf:{tmp_path / 'saved'}:other", "test")


def test_hugging_face_sets_are_read_from_parquet_files_and_of_one_split(tmp_path, hub_set):
    _, split = hub_set
    (tmp_path / "data").mkdir()
    split([1, 0]).to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    split([0, 0]).to_parquet(str(tmp_path / "data" / "test-00000-of-00001.parquet"))
    assert open_labelled(f"hf:{tmp_path}", "train").targets == (1, 0)
    assert open_labelled(f"hf:{tmp_path}", "test").targets == (0, 0)
    split([1, 1]).save_to_disk(str(tmp_path / "alone"))
    assert open_labelled(f"hf:{tmp_path / 'alone'}", "train").targets == (1, 1)


def test_hugging_face_sets_of_unclear_classes_are_refused(tmp_path, hub_set):
    library, split = hub_set
    split([1, 0], other=[0, 0]).save_to_disk(str(tmp_path / "two"))  # `label` is taken
    assert open_labelled(f"hf:{tmp_path / 'two'}", "train").targets == (1, 0)
    split([1, 0], other=[0, 0]).rename_column("label", "kind").save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"several such columns: choose one .* kind\|other"):
        open_labelled(f"hf:{tmp_path / 'none'}", "train")
    library.DatasetDict({"extra": split([1, 0])}).save_to_disk(str(tmp_path / "extra"))
    with pytest.raises(UsageError, match=r"has no split test or .* but extra: choose one with"):
        open_labelled(f"hf:{tmp_path / 'extra'}", "test")
    split([1, -1]).save_to_disk(str(tmp_path / "unlabelled"))
    with pytest.raises(UsageError, match="images without a class"):
        open_labelled(f"hf:{tmp_path / 'unlabelled'}", "train")


def test_a_folder_needs_images_to_judge_on(image_folder):
    with pytest.raises(UsageError, match="is one folder: give the images to judge on with --val"):
        open_splits(str(image_folder), None)
