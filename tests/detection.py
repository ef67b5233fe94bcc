"""Small detection data for tests: photos of coloured rectangles, as VOC folders and COCO files."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import models
from trainer.checkpoint import save_student
from trainer.config import StudentConfig

COLOURS = {"apple": (220, 40, 40), "leaf": (40, 180, 60)}
ARCH = "tv:shufflenet_v2_x0_5"  # the quickest that has all maps


def draw_photo(boxes, width=96, height=64, background=128):
    """RGB image; boxes: (name, left, top, right, bottom), right and bottom outside."""
    pixels = np.full((height, width, 3), background, np.uint8)
    for name, left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = COLOURS[name]
    return Image.fromarray(pixels)


def some_boxes(seed):
    """Two rectangles that don't meet."""
    rng = np.random.default_rng(seed)
    left, right = (int(v) for v in rng.integers(0, 12, 2))
    top = int(rng.integers(0, 20))
    names = rng.permutation(list(COLOURS))
    return [
        (str(names[0]), left, top, left + 30, top + 36),
        (str(names[1]), 50 + right, top + 4, 50 + right + 30, top + 36),
    ]


def voc_xml(boxes, width=96, height=64, difficult=()):
    """Annotation; boxes as in `draw_photo`, written in VOC's coordinates."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(i in difficult)}</difficult><bndbox>"
        f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        "</bndbox></object>"
        for i, (name, left, top, right, bottom) in enumerate(boxes)
    )
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"{objects}</annotation>"
    )


def write_voc(root: Path, train=4, val=2) -> Path:
    """A VOC folder of drawn photos."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    stems = [f"p{i:02d}" for i in range(train + val)]
    for i, stem in enumerate(stems):
        add_photo(root, stem, some_boxes(i))
    write_lists(root, train=stems[:train], val=stems[train:])
    return root


def add_photo(root: Path, stem, boxes, xml=None):
    draw_photo(boxes).save(root / "JPEGImages" / f"{stem}.jpg", quality=95, subsampling=0)
    (root / "Annotations" / f"{stem}.xml").write_text(xml or voc_xml(boxes))


def write_lists(root: Path, **stems):
    for name, ones in stems.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{s}\n" for s in ones))


def coco_values(photos):
    """COCO file of photos {file name: boxes as in `draw_photo`}."""
    names = list(COLOURS)
    annotations = [
        {
            "image_id": i,
            "category_id": 10 + names.index(name),
            "bbox": [left, top, right - left, bottom - top],
        }
        for i, boxes in enumerate(photos.values())
        for name, left, top, right, bottom in boxes
    ]
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(photos)],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations)],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(names)],
    }


def write_coco(folder: Path, values, name="boxes.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(values))
    return path


def student_config(arch=ARCH, classes=4):
    return StudentConfig(
        arch=arch, num_classes=classes, input_size=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4),
        interpolation="bilinear", classes=None,
    )  # fmt: skip


def write_student(path: Path, arch=ARCH, seed=3) -> Path:
    """A seeded, untrained student."""
    torch.manual_seed(seed)
    config = student_config(arch)
    save_student(path, models.create(arch, config.num_classes), config, {})
    return path
