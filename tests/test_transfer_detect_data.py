"""Photos with boxes: VOC folders, COCO files, what is left out of them, what is refused."""

import json

import detection
import numpy as np
import pytest
import torch

from storage.errors import UsageError
from transfer.detect.data import Sizes, TrainSamples, resized
from transfer.detect.sources import open_photos
from transfer.epochs import seeded_draws

BOMB = (
    '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>'
    "<annotation><object><name>&y;</name></object></annotation>"
)
FILE_ENTITY = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'


@pytest.fixture
def voc(tmp_path):
    return detection.write_voc(tmp_path / "voc")


@pytest.fixture
def coco(tmp_path):
    photos = {f"{i}.jpg": detection.some_boxes(i) for i in range(3)}
    for name, boxes in photos.items():
        detection.draw_photo(boxes).save(tmp_path / name)
    return tmp_path, detection.coco_values(photos)


def opened(source, images=None, split="train", classes=None):
    return open_photos([str(source)], images, split, classes)


def refused(*arguments, **options):
    with pytest.raises(UsageError) as caught:
        opened(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_voc_pixels_from_1_become_corners_from_0(voc):
    photos = opened(voc)
    assert photos.classes == ("apple", "leaf")
    names = {name: i + 1 for i, name in enumerate(photos.classes)}
    for i, photo in enumerate(photos.photos):
        wanted = detection.some_boxes(i)
        assert photo.boxes.tolist() == [list(map(float, box[1:])) for box in wanted]
        assert photo.labels.tolist() == [names[box[0]] for box in wanted]
    assert photos.found.lines == ()


def test_coco_and_voc_give_the_same_boxes(voc, coco):
    folder, values = coco
    ours = opened(detection.write_coco(folder, values), folder)
    theirs = opened(voc)
    for a, b in zip(ours.photos, theirs.photos[:3], strict=True):
        assert np.array_equal(a.boxes, b.boxes)
        assert [ours.classes[i - 1] for i in a.labels] == [theirs.classes[i - 1] for i in b.labels]


def test_unsound_boxes_are_counted_left_out_and_listed(voc):
    objects = [
        ("apple", 10, 10, 40, 40),
        ("apple", 10, 10, 11, 40),  # xmin = xmax in the file
        ("apple", 40, 10, 20, 30),
        ("leaf", 200, 10, 230, 40),
        ("leaf", 60, 30, 120, 50),  # reaches 24 pixels over the edge
    ]
    sound = detection.some_boxes(0)
    detection.add_photo(voc, "p00", sound, detection.voc_xml(objects))
    photos = opened(voc)
    assert photos.photos[0].boxes.tolist() == [[10, 10, 40, 40], [60, 30, 96, 50]]
    assert photos.found.counts == {
        "zero area": 1, "inverted": 1, "outside the image": 1, "cut at the image's edge": 1
    }  # fmt: skip
    assert "p00: apple [11, 11, 11, 40]: zero area" in photos.found.lines


@pytest.mark.parametrize(
    ("bbox", "why"),
    [
        ([10, 10, 0, 5], "zero area"),
        ([10, 10, -3, 5], "inverted"),
        ([96, 0, 5, 5], "outside the image"),
        ([float("nan"), 0, 5, 5], "not finite"),
        ([10**400, 0, 5, 5], "not finite"),
    ],
)
def test_unsound_coco_boxes_too(coco, bbox, why):
    folder, values = coco
    values["annotations"][1]["bbox"] = bbox
    photos = opened(detection.write_coco(folder, values), folder)
    assert photos.found.counts == {why: 1}
    assert photos.num_boxes == len(values["annotations"]) - 1


def test_crowds_and_difficult_ones_are_ignored_in_evaluation_only(voc, coco):
    boxes = detection.some_boxes(0)
    detection.add_photo(voc, "p00", boxes, detection.voc_xml(boxes, difficult=[1]))
    assert opened(voc).photos[0].ignored.tolist() == [False, True]
    folder, values = coco
    values["annotations"][0]["iscrowd"] = 1
    crowd = opened(detection.write_coco(folder, values), folder)
    assert crowd.photos[0].ignored.tolist() == [True, False]
    sizes = Sizes(train=(64,), test=64, longest=96)
    assert len(TrainSamples(crowd, sizes, 0.0, skip_ignored=True).sample(0)[1]["boxes"]) == 1
    assert len(TrainSamples(crowd, sizes, 0.0, skip_ignored=False).sample(0)[1]["boxes"]) == 2


def test_a_photo_without_boxes_is_background(voc):
    detection.add_photo(voc, "p01", [])
    photos = opened(voc)
    assert len(photos.photos) == 4 and len(photos.photos[1].labels) == 0
    sizes = Sizes(train=(64,), test=64, longest=96)
    _, target = TrainSamples(photos, sizes, 1.0, skip_ignored=False).sample(1)
    assert target["boxes"].shape == (0, 4) and target["labels"].dtype == torch.int64


def test_a_set_without_any_box_is_refused(voc):
    for stem in ("p00", "p01", "p02", "p03"):
        detection.add_photo(voc, stem, [])
    assert "has no usable box" in refused(voc)


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (BOMB, "document type"),
        (FILE_ENTITY, "document type"),
        (BOMB.encode("utf-16"), "document type"),
        ("<annotation><object>", "can't be read as a VOC annotation"),
        ("", "can't be read as a VOC annotation"),
        ("<other/>", "root isn't <annotation>"),
        ("<annotation>" + "<a>" * 40 + "</a>" * 40 + "</annotation>", "inside each other"),
        (b"\xff\xfe\x00", "can't be read as a VOC annotation"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "can't be read as a VOC"),
        ("<annotation><object><name>x</name></object></annotation>", "without one <name>"),
        ("<annotation><object>text</object></annotation>", "holds no elements"),
        ("<annotation><object><name>x</name><bndbox><xmin>a</xmin></bndbox></object>"
         "</annotation>", "expected numbers for xmin"),
    ],
)  # fmt: skip
def test_damaged_or_hostile_xml_is_refused_in_one_line(voc, xml, said):
    path = voc / "Annotations" / "p02.xml"
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    message = refused(voc)
    assert said in message and "p02.xml" in message


def drop_key(values, part, key):
    del values[part][0][key]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("categories"), "no COCO annotation file"),
        (lambda v: v.update(images=3), "no COCO annotation file"),
        (lambda v: v.update(images=[]), "isn't listed"),
        (lambda v: v["images"].append(v["images"][0]), "id 0 stands twice in images"),
        (lambda v: v["annotations"].append(v["annotations"][2]), "id 2 stands twice"),
        (lambda v: v["categories"].append({"id": 3, "name": "leaf"}), "a name of its own"),
        (lambda v: v["annotations"][0].update(image_id=77), "image_id 77, which isn't listed"),
        (lambda v: v["annotations"][0].update(category_id=None), "category_id None"),
        (lambda v: v["annotations"][0].update(bbox=[1, 2, 3]), "expected [left, top, width"),
        (lambda v: v["annotations"][0].update(bbox="1 2 3 4"), "expected [left, top, width"),
        (lambda v: drop_key(v, "images", "id"), "entry 0 of images has no whole number"),
        (lambda v: drop_key(v, "images", "file_name"), "has no file_name"),
        (lambda v: v["images"][0].update(file_name="../0.jpg"), "expected a path within"),
        (lambda v: v["images"][0].update(file_name="/etc/hostname"), "expected a path within"),
        (lambda v: v["images"][1].update(file_name="0.jpg"), "more than once"),
        (lambda v: v["images"][1].update(file_name="9.jpg"), "1 of 3 images"),
        (lambda v: v.update(annotations=[]), "has no usable box"),
    ],
)
def test_unsound_coco_files_are_refused_in_one_line(coco, change, said):
    folder, values = coco
    change(values)
    assert said in refused(detection.write_coco(folder, values), folder)


@pytest.mark.parametrize("text", ['{"images": [', "[" * 100_000, "\x00", "[]"])
def test_a_cut_or_foreign_json_is_refused_in_one_line(coco, text):
    folder, _ = coco
    path = folder / "boxes.json"
    path.write_text(text)
    assert "boxes.json" in refused(path, folder)


def test_missing_lists_folders_and_photos_name_the_way_out(voc, coco, tmp_path):
    assert "the folder has train, val" in refused(f"{voc}:test")
    assert "give a COCO annotation file, or a VOC folder" in refused(tmp_path)
    folder, values = coco
    assert "give it with --images" in refused(detection.write_coco(folder, values))
    (voc / "JPEGImages" / "p01.jpg").unlink()
    assert "1 of 4 images" in refused(voc)
    detection.write_lists(voc, train=["p00", "p00"])
    assert "more than once, such as p00" in refused(voc)
    detection.write_lists(voc, train=["../p00"])
    assert "expected a path within" in refused(voc)


def test_unreadable_photos_and_those_of_another_size_are_left_out_and_listed(voc):
    (voc / "JPEGImages" / "p00.jpg").write_bytes(b"no image")
    boxes = detection.some_boxes(1)
    detection.add_photo(voc, "p01", boxes, detection.voc_xml(boxes, width=64, height=96))
    photos = opened(voc)
    assert [photo.key for photo in photos.photos] == ["p02", "p03"]
    assert "p01: the file is 96x64, its annotation says 64x96" in photos.found.lines


def test_a_class_that_training_lacks_is_refused_in_validation(voc):
    assert "lack, such as 'leaf'" in refused(voc, split="val", classes=("apple",))
    assert opened(voc, split="val", classes=("x", "leaf", "apple")).classes[0] == "x"


def test_several_sources_are_joined(tmp_path):
    first, second = (detection.write_voc(tmp_path / name) for name in ("a", "b"))
    for i in range(6):  # names must differ
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (second / folder / f"p{i:02d}.{suffix}").rename(second / folder / f"q{i}.{suffix}")
    detection.write_lists(second, trainval=[f"q{i}" for i in range(6)])
    both = open_photos([str(first), f"{second}:trainval"], None, "train")
    assert [photo.key for photo in both.photos] == [
        *(f"p{i:02d}" for i in range(4)),
        *(f"q{i}" for i in range(6)),
    ]


def test_the_identity_changes_with_boxes_and_photos(voc):
    before = opened(voc).identity()
    assert opened(voc).identity() == before
    boxes = detection.some_boxes(1)
    boxes[0] = (boxes[0][0], boxes[0][1] + 1, *boxes[0][2:])
    detection.add_photo(voc, "p01", detection.some_boxes(1), detection.voc_xml(boxes))
    assert opened(voc).identity() != before


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short", [48, 64, 128])
def test_boxes_stay_on_what_they_frame(voc, flip, short):
    photos = opened(voc)
    samples = TrainSamples(photos, Sizes(train=(short,), test=64, longest=512), flip, False)
    for row in range(len(samples)):
        pixels, target = samples.sample(row)
        assert pixels.shape == (3, short, short * 3 // 2)
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            left, top, right, bottom = (round(v) for v in box)
            inside = pixels[:, top + 2 : bottom - 2, left + 2 : right - 2].float().mean((1, 2))
            wanted = torch.tensor(detection.COLOURS[photos.classes[label - 1]]).float()
            assert (inside - wanted).abs().max() < 12
            around = pixels[:, max(0, top - 3) : top - 1, left:right].float()
            assert not around.numel() or (around.mean((1, 2)) - 128).abs().max() < 40


def test_draws_are_a_pure_function_of_seed_epoch_and_photo(voc):
    photos = opened(voc)
    samples = TrainSamples(photos, Sizes(train=(48, 56, 64, 80), test=64, longest=512), 0.5, False)

    def drawn(seed, epoch, row):
        with seeded_draws(seed, epoch, row):
            return samples.sample(row)

    first = [drawn(0, epoch, 1) for epoch in range(12)]
    again = [drawn(0, epoch, 1) for epoch in reversed(range(12))][::-1]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert len({pixels.shape for pixels, _ in first}) > 1
    assert any(drawn(1, e, 1)[0].shape != first[e][0].shape for e in range(12))


def test_a_longer_side_is_bounded_and_the_shape_kept():
    sizes = Sizes(train=(800,), test=800, longest=1333)
    assert sizes.fit((640, 480), 800) == (1067, 800)
    assert sizes.fit((2000, 500), 800) == (1333, 333)
    with pytest.raises(UsageError, match="--test-side"):
        Sizes(train=(800,), test=16, longest=1333)


def test_a_photo_that_changed_since_it_was_listed_is_named(voc):
    photo = opened(voc).photos[0]
    sizes = Sizes(train=(64,), test=64, longest=96)
    photo.path.write_bytes(photo.path.read_bytes()[:400])
    with pytest.raises(UsageError, match=r"p00\.jpg can't be decoded"):
        resized(photo, sizes, 64)
    detection.draw_photo([], width=50).save(photo.path)
    with pytest.raises(UsageError, match="run again"):
        resized(photo, sizes, 64)


def test_large_ids_and_unlisted_fields_do_not_matter(coco):
    folder, values = coco
    values["info"] = {"description": "x"}
    values["annotations"][0]["id"] = 10**15
    values["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path = detection.write_coco(folder, values)
    assert opened(path, folder).num_boxes == len(json.loads(path.read_text())["annotations"])
