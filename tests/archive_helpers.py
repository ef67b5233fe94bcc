"""Archives of other projects as their published generators write them, made up and small."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from conftest import write_folder
from PIL import Image

from storage.images import scan_folder


def flat_images(root: Path, count: int, classes: int = 4) -> Path:
    """Many tiny PNGs of known sizes, quick to write: class c has every c-th image."""
    for i in range(count):
        folder = root / f"n{i % classes:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = 20 + i % 37, 16 + (i * 7) % 53
        Image.new("L", (width, height), i % 256).save(folder / f"img_{i:05d}.png", compress_level=1)
    return root


def image_size(path):
    """(width, height)."""
    with Image.open(path) as image:
        return image.size


def random_crops(rng, views, height, width):
    """int [M, 4] (top, left, height, width) inside the image, aspect ratio near 1."""
    side = rng.integers(8, min(height, width) + 1, views)
    top = [rng.integers(0, height - s + 1) for s in side]
    left = [rng.integers(0, width - s + 1) for s in side]
    return np.stack([top, left, side, side], axis=1)


def teacher_probs(rng, views, classes, target):
    """float32 [M, C], the target's class first nearly always."""
    logits = rng.normal(0, 1.5, (views, classes)).astype(np.float32)
    logits[:, target % classes] += 5
    return torch.softmax(torch.from_numpy(logits), dim=1)


def quantise(probs, label_type):
    """FKD's label types from dense probabilities, as its paper defines them."""
    order = torch.argsort(probs, dim=1, descending=True)
    if label_type == "hard":
        return order[:, 0].numpy()
    if label_type == "full":
        return probs.numpy()
    K = {"smoothing": 1, "k5": 5, "k10": 10}[label_type]
    index = order[:, :K]
    both = torch.stack([index.float(), torch.gather(probs, 1, index)], dim=1)
    return (both[:, :, 0] if label_type == "smoothing" else both).numpy()


def write_fkd(root, images, label_type="k5", views=6, classes=20, fp16=False, tensors=False,
              legacy=False, seed=0):  # fmt: skip
    """An FKD archive of an image folder; returns the truth by key: (box, flip, labels)."""
    truth = {}
    folder = scan_folder(images)
    for row, key in enumerate(folder.keys):
        rng = np.random.default_rng([seed, row])
        width, height = image_size(folder.path(row))
        box = random_crops(rng, views, height, width)
        flip = rng.random(views) < 0.5
        labels = quantise(teacher_probs(rng, views, classes, folder.targets[row]), label_type)
        shares = torch.tensor(
            [[t / height, x / width, h / height, w / width] for t, x, h, w in box.tolist()]
        ).numpy()
        if fp16:
            shares, labels = np.float16(shares), np.float16(labels)
        state = [shares, flip, labels]
        if tensors:
            state = [torch.from_numpy(np.ascontiguousarray(part)) for part in state]
        name = key.split("/")[-1].split(".")[0]
        path = root / "imagenet" / "train" / key.split("/")[-2] / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        truth[key] = (box, flip, labels)
    return truth


class PublishedLoader:
    """FKD's training side as its layout is described: no code of ours, none of theirs.

    Item `i` of an ImageFolder is the image's label file at <root>/<split>/<class>/<name up to the
    first dot>.tar; coordinates become pixels by multiplying with (H, W, H, W), Pillow rounds.
    """

    def __init__(self, labels, images):
        self.labels, self.images = Path(labels), Path(images)
        self.paths = sorted(p for p in self.images.rglob("*") if p.is_file())

    def crops(self, i, size=8):
        """[(pixels, box, hard label?, soft label row)] of one image."""
        path = self.paths[i]
        name = "/".join(path.as_posix().split("/")[-3:]).split(".")[0] + ".tar"
        coords, flips, labels = torch.load(self.labels / name, weights_only=True)
        with Image.open(path) as file:
            image = file.convert("RGB")
        width, height = image.size
        found = []
        for (y, x, h, w), flip, label in zip(coords, flips, labels, strict=True):
            top, left = y.item() * height, x.item() * width
            bottom, right = top + h.item() * height, left + w.item() * width
            view = image.crop((left, top, right, bottom))
            box = [round(v) for v in (top, left, bottom, right)]
            view = view.resize((size, size), Image.Resampling.BILINEAR)
            if flip:
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            found.append((np.asarray(view), box, label))
        return found

    @staticmethod
    def recover(label, label_type, classes):
        """Dense label [C] of one stored one, as FKD's paper defines each type."""
        dense = torch.zeros(classes)
        if label_type == "hard":
            dense[int(label)] = 1
        elif label_type == "smoothing":
            dense[:] = (1 - label[1]) / (classes - 1)
            dense[int(label[0])] = label[1]
        elif label_type == "full":
            return label
        else:
            index, prob = label[0].long(), label[1]
            if label_type == "marginal_renorm":
                prob = prob / prob.sum()
            else:
                dense[:] = (1 - prob.sum()) / (classes - len(index))
            dense[index] = prob
        return dense


def saved(value, **options):
    """The bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


class Evil:
    """Runs a command when it is unpickled by Python itself."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


__all__ = ["Evil", "PublishedLoader", "flat_images", "saved", "write_fkd", "write_folder"]
