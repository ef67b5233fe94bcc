"""Segmentation data: masks read as they should be, and every way in which they can be wrong."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from storage.errors import UsageError
from tests.segment_sets import COLOURS, make_pair, write_classes, write_set
from transfer.epochs import EpochBatches, seeded_draws
from transfer.segment.augment import SegmentSamples, collate
from transfer.segment.data import notes_on, open_data, read_pair, scan
from transfer.segment.masks import read_classes
from transfer.segment.settings import IGNORED, SegmentSettings

PLAIN = {"blur": False, "photometric": False}


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set")


def first(root, split="train"):
    """(data, image, mask) of a split's first image."""
    data = open_data(str(root))
    return data, *read_pair(getattr(data, split)[0], data.table)


def rewrite(root, pixels, split="train", mode=None):
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    image.save(root / "masks" / split / "picture0.png")


def test_ids_become_class_numbers_and_ignored_ones_255(folder):
    write_classes(folder, names=["red", "nothing", "blue", "green"], ignore_index=[1, 77])
    ids = np.full((48, 64), 2, dtype=np.uint8)
    ids[0], ids[1], ids[2], ids[3] = 0, 1, 3, 77
    rewrite(folder, ids)
    data, _, mask = first(folder)
    assert data.table.names == ("red", "blue", "green")
    assert mask[:5, 0].tolist() == [0, IGNORED, 2, IGNORED, 1]


@pytest.mark.parametrize("kind", ["palette", "16 bit", "colours"])
def test_masks_of_other_kinds_say_the_same(folder, kind):
    _, _, wanted = first(folder)
    ids = np.where(wanted == IGNORED, 3, wanted)
    path = folder / "masks" / "train" / "picture0.png"
    if kind == "palette":
        image = Image.fromarray(ids, mode="P")
        image.putpalette([200, 3, 9] * 256)
        image.save(path)
    elif kind == "16 bit":
        Image.fromarray(ids.astype(np.uint16)).save(path)
    else:
        names = ["red", "green", "blue", "nothing"]
        write_classes(folder, names=names, ignore_index=3, colors=[*COLOURS, (0, 0, 0)])
        Image.fromarray(np.array([*COLOURS, (0, 0, 0)], dtype=np.uint8)[ids]).save(path)
    _, _, mask = first(folder)
    assert np.array_equal(mask, wanted)


def test_an_unknown_id_is_named_with_its_place(folder):
    ids = np.zeros((48, 64), dtype=np.uint8)
    ids[7, 9], ids[20, 3] = 9, 12
    rewrite(folder, ids)
    with pytest.raises(UsageError, match=r"picture0.png has ids that mean nothing: 9, 12 \(first "
                       r"at row 7, column 9\); .*classes.json knows 0 to 3"):  # fmt: skip
        first(folder)


def test_a_mask_of_another_size_than_its_image_is_refused(folder):
    rewrite(folder, np.zeros((64, 48), dtype=np.uint8))
    with pytest.raises(UsageError, match=r"picture0.png is 48x64 and its image 64x48: resize"):
        first(folder)


def test_a_mask_of_colours_without_their_meaning_is_refused(folder):
    rewrite(folder, np.zeros((48, 64, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match=r'holds colours \(RGB\).*"colors" in .*classes.json'):
        first(folder)
    names = ["red", "green", "blue", "nothing"]
    write_classes(folder, names=names, ignore_index=3, colors=[*COLOURS, (1, 2, 3)])
    with pytest.raises(UsageError, match=r"has 1 colours that .* doesn't know, such as \[0, 0, 0"):
        first(folder)


def test_a_mask_that_is_no_image_is_refused(folder):
    (folder / "masks" / "train" / "picture0.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"mask .*picture0.png can't be decoded"):
        first(folder)
    Image.new("LAB", (64, 48)).save(folder / "masks" / "train" / "picture0.png", format="TIFF")
    with pytest.raises(UsageError, match=r"pixels of mode LAB; expected one channel"):
        first(folder)


def test_images_without_masks_are_counted_and_one_is_named(folder):
    for name in ("picture1.png", "picture4.png"):
        (folder / "masks" / "train" / name).unlink()
    with pytest.raises(UsageError, match=r"no mask for 2 of the 6 training images .*picture1.png"):
        open_data(str(folder))


@pytest.mark.parametrize("split", ["training", "validation"])
def test_an_empty_split_is_refused(folder, split):
    place = folder / "images" / {"training": "train", "validation": "val"}[split]
    for file in place.iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=f"has no {split} images"):
        open_data(str(folder))
    place.rmdir()
    with pytest.raises(UsageError, match=r"has no folder images/(train|val)"):
        open_data(str(folder))


def test_a_missing_folder_names_the_layouts(tmp_path):
    with pytest.raises(UsageError, match=r"no folder at .*nowhere: .*voc:ROOT, cityscapes:ROOT"):
        open_data(f"voc:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing: write what the ids"),
        ("{", "can't be read as JSON"),
        ("[]", "does not say what the masks mean"),
        ('{"names": ["a", "b"], "ignore_index": "x"}', "does not say"),
        ('{"names": ["a", "b"], "ignore_index": -1}', "does not say"),
        ('{"names": ["a", "b"], "colors": [[1, 2, 3]]}', "1 colors for 2 names"),
        ('{"names": ["a", "b"], "ignore_index": 0}', "1 classes to learn; expected 2 to 254"),
    ],
)
def test_a_table_of_classes_that_says_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_classes(path)


def test_images_that_do_not_decode_are_left_out_and_listed(folder):
    (folder / "images" / "train" / "picture2.png").write_bytes(b"\x89PNG broken")
    data = open_data(str(folder))
    train, val = (scan(pairs, data.table, "some") for pairs in (data.train, data.val))
    assert len(train.pairs) == 5 and train.bad == ("images/train/picture2.png",)
    assert (
        "training images that can't be decoded are left out: images/train/picture2.png"
        in (notes_on(data.table, train, val)[0])
    )
    for path in (folder / "images" / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="none of the 3 validation images can be decoded"):
        scan(data.val, data.table, "validation")


def test_classes_of_one_split_alone_are_said(folder):
    for path in (folder / "masks" / "train").iterdir():
        ids = np.asarray(Image.open(path)).copy()
        ids[ids == 1] = 0
        Image.fromarray(ids).save(path)
    for path in (folder / "masks" / "val").iterdir():
        ids = np.asarray(Image.open(path)).copy()
        ids[ids == 2] = 1
        Image.fromarray(ids).save(path)
    data = open_data(str(folder))
    train, val = (scan(pairs, data.table, "some") for pairs in (data.train, data.val))
    notes = notes_on(data.table, train, val)
    assert notes[0].startswith("in validation masks but in no training mask: green; these")
    assert notes[1].startswith("in no validation mask: blue; these")


def test_masks_without_any_class_are_refused(folder):
    for path in (folder / "masks" / "val").iterdir():
        Image.fromarray(np.full((48, 64), 3, dtype=np.uint8)).save(path)
    data = open_data(str(folder))
    with pytest.raises(UsageError, match="none of the 3 validation masks has a pixel of a class"):
        scan(data.val, data.table, "validation")


def test_a_scan_counts_pixels_and_knows_changed_files(folder):
    data = open_data(str(folder))
    before = scan(data.train, data.table, "training")
    masks = [read_pair(pair, data.table)[1] for pair in data.train]
    wanted = [sum(int((mask == c).sum()) for mask in masks) for c in range(3)]
    assert before.pixels.tolist() == wanted
    assert scan(data.train, data.table, "training").digest == before.digest
    rewrite(folder, np.zeros((48, 64), dtype=np.uint8))
    assert scan(data.train, data.table, "training").digest != before.digest


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_voc_is_read_with_its_augmented_masks_where_they_are(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", ["a"]), ("val", ["b"]), ("trainval", ["a", "b"])):
        (lists / f"{name}.txt").write_text("\n".join(stems) + "\n")
    ids = np.zeros((8, 8), dtype=np.uint8)
    ids[0], ids[1] = 20, 255
    for stem in "abc":
        save(base / "JPEGImages" / f"{stem}.jpg", np.zeros((8, 8, 3), dtype=np.uint8))
        save(base / "SegmentationClass" / f"{stem}.png", ids)
    data, _, mask = first(f"voc:{tmp_path}")
    assert [pair.image.stem for pair in data.train] == ["a"]
    assert "10,582" in data.notes[0]
    assert mask[:3, 0].tolist() == [20, IGNORED, 0]
    (lists / "trainaug.txt").write_text(
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/c.jpg "
        "/SegmentationClassAug/c.png\n"
    )
    for stem in "ac":
        save(base / "SegmentationClassAug" / f"{stem}.png", ids)
    data = open_data(f"voc:{tmp_path}")
    assert [pair.mask.parent.name for pair in data.train] == ["SegmentationClassAug"] * 2
    assert [pair.image.stem for pair in data.val] == ["b"] and not data.notes
    shutil.rmtree(lists)
    with pytest.raises(UsageError, match=r"is not VOC 2012's segmentation .*expected VOCdevkit"):
        open_data(f"voc:{tmp_path}")


def test_cityscapes_ids_become_its_nineteen_classes(tmp_path):
    ids = np.array([[0, 7, 26, 33, 255, 34 - 1, 1, 8]], dtype=np.uint8)
    for split in ("train", "val"):
        for stem in ("town_1", "town_0"):
            save(tmp_path / "leftImg8bit" / split / "town" / f"{stem}_leftImg8bit.png",
                 np.zeros((1, 8, 3), dtype=np.uint8))  # fmt: skip
            save(tmp_path / "gtFine" / split / "town" / f"{stem}_gtFine_labelIds.png", ids)
    data, _, mask = first(f"cityscapes:{tmp_path}")
    assert len(data.table.names) == 19 and data.table.names[:2] == ("road", "sidewalk")
    assert mask[0].tolist() == [IGNORED, 0, 13, 18, IGNORED, 18, IGNORED, 1]
    assert [pair.image.stem[:6] for pair in data.train] == ["town_0", "town_1"]
    with pytest.raises(UsageError, match="is not Cityscapes"):
        open_data(f"cityscapes:{tmp_path / 'gtFine'}")


def test_ade20k_has_150_classes_from_1_on(tmp_path):
    for split in ("training", "validation"):
        save(tmp_path / "images" / split / "a.jpg", np.zeros((1, 3, 3), dtype=np.uint8))
        save(tmp_path / "annotations" / split / "a.png", np.array([[0, 1, 150]], dtype=np.uint8))
    _, _, mask = first(f"ade20k:{tmp_path}", "val")
    assert mask[0].tolist() == [IGNORED, 0, 149]
    rows = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0\t0\t0\tthing{i}, other" for i in range(150))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    assert open_data(f"ade20k:{tmp_path}").table.names[1] == "thing1"


def samples(folder, **changes):
    data = open_data(str(folder))
    settings = SegmentSettings(**{"crop": 64, **changes})
    return SegmentSamples(data.train, data.table, settings, (0.0, 0.0, 0.0))


def test_image_and_mask_are_cut_alike(tmp_path):
    folder = write_set(tmp_path / "set", sides=(120, 160))
    for row in range(6):
        with seeded_draws(3, 1, row):
            crop, target = samples(folder, **PLAIN).sample(row)
        assert crop.shape == (3, 64, 64) and target.shape == (64, 64)
        colours = torch.tensor([*COLOURS, (0, 0, 0)])
        distance = (crop[None].int() - colours[:, :, None, None]).abs().sum(dim=1)
        nearest = distance.argmin(dim=0)
        counts = target != IGNORED
        assert counts.any()
        assert (nearest[counts] == target[counts]).float().mean() > 0.9  # all but blended edges


def test_what_lies_outside_the_image_is_the_mean_colour_and_ignored(folder):
    data = open_data(str(folder))
    settings = SegmentSettings(crop=128, scale=(1, 1), rotate=0, flip=False)
    maker = SegmentSamples(data.train, data.table, settings, (0.2, 0.4, 0.6))
    image, mask = make_pair(0, 48, 64)
    with seeded_draws(0, 0, 0):
        crop, target = maker.augment(image, mask)
    inside = target != IGNORED
    assert int(inside.sum()) == 48 * 64
    rows, columns = (torch.nonzero(inside.any(dim=d)).flatten() for d in (1, 0))
    assert (int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) == (47, 63)
    assert np.array_equal(target[inside].reshape(48, 64).numpy(), mask)
    assert torch.equal(crop[:, ~inside].unique(dim=1), torch.tensor([[51], [102], [153]]))


def test_augmentation_is_a_function_of_seed_epoch_and_image(folder):
    def batch(seed, epoch):
        data = EpochBatches(samples(folder), collate, seed=seed, batch_size=6)
        return next(iter(data.batches(epoch, 0)))

    one, again = batch(0, 1), batch(0, 1)
    assert torch.equal(one.images, again.images) and torch.equal(one.target, again.target)
    assert not torch.equal(one.images, batch(0, 2).images)
    assert not torch.equal(one.images, batch(1, 1).images)


def test_each_augmentation_can_be_left_out(folder):
    off = {"scale": (1.0, 1.0), "rotate": 0.0, "blur": False, "photometric": False, "flip": False}
    _, image, _ = first(folder)
    wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for name in [None, *off]:
        changed = off if name is None else {k: v for k, v in off.items() if k != name}
        same = True
        for epoch in range(6):
            with seeded_draws(0, epoch, 0):
                crop, target = samples(folder, **changed, crop=64).sample(0)
            rows = crop[:, (target != IGNORED).any(dim=1)]
            same &= rows.shape[1:] == (46, 64) and torch.equal(rows, wanted[:, 2:])
        assert same == (name is None), name
