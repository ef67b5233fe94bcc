"""A tiny seeded teacher on disk, and the plain loop that the labelling engine must equal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from labelgen.forward import Forward
from labelgen.teacher import Teacher, load_teacher
from labelgen.teachers import resolve
from storage.codecs import TopKLabels
from storage.images import content_digest
from storage.pixels import cut_view, decode_rgb, pad_image
from storage.store import LabelStore
from trainer.models import create

NUM_CLASSES = 7
SIZE = 16
DESCRIPTION = {
    "arch": "resnet8",
    "num_classes": NUM_CLASSES,
    "input_size": SIZE,
    "mean": [0.5, 0.4, 0.6],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bilinear",
    "classes": [f"class{i}" for i in range(NUM_CLASSES)],
}


def write_weights(path: Path, seed: int = 0, scale: float = 1.0, **description: object) -> Path:
    """A ResNet-8 with random weights, described as the trainer describes its students."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create("resnet8", NUM_CLASSES)
    tensors = model.state_dict()
    tensors["fc.weight"] *= 8 * scale  # so that probabilities are not all alike
    text = json.dumps(DESCRIPTION | description)
    save_file(tensors, path, {"teachonce": text})
    return path


def tiny_teacher(folder: Path, **changes: object) -> Teacher:
    """The teacher of `write_weights`, loaded on the CPU."""
    path = write_weights(folder / "tiny.safetensors", **changes)  # type: ignore[arg-type]
    return load_teacher(resolve(f"file:{path}"), device="cpu")


def plain_labels(store: LabelStore, teacher: Teacher, root: Path) -> tuple[np.ndarray, TopKLabels]:
    """Boxes [N, M, 4] and labels [N, M, ...] of sound images, made one step after the other."""
    boxes, log_probs = plain_outputs(store, teacher, root)
    return boxes, store.spec.teachers[teacher.spec.name].codec.encode(log_probs)


def plain_outputs(store: LabelStore, teacher: Teacher, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, M, 4] and log-probabilities [N, M, C] of sound images."""
    spec, codec = store.spec, store.spec.teachers[teacher.spec.name].codec
    batch_size = spec.teachers[teacher.spec.name].batch_size
    forward = Forward(teacher, codec.top_k)
    table = store.read_images()
    boxes, rows = [], []
    for block in range(store.blocks):
        crops = []
        for row in store.block_rows(block):
            data = (root / table.key[row]).read_bytes()
            image = decode_rgb(data)
            views = spec.sampler.draw(
                spec.seed, content_digest(data), image.height, image.width, 0, spec.num_views
            )
            boxes.append(views.box)
            padded = pad_image(image, spec.sampler.padding)
            crops += [
                cut_view(padded, box, bool(flip), teacher.spec.input_size)
                for box, flip in zip(views.box, views.flip, strict=True)
            ]
        empty = np.zeros_like(crops[0])
        for first in range(0, len(crops), batch_size):
            batch = crops[first : first + batch_size]
            pixels = np.stack(batch + [empty] * (batch_size - len(batch)))
            rows.append(forward.log_probs(forward.normalise(pixels))[: len(batch)].numpy())
    shape = (len(boxes), spec.num_views, -1)
    return np.stack(boxes), np.concatenate(rows).reshape(shape)


def plain_crops(store: LabelStore, teacher: Teacher, root: Path, row: int) -> np.ndarray:
    """The crops uint8 [M, S, S, 3] of a sound image, cut by its stored boxes."""
    spec = store.spec
    plane = store.read_plane(0, spec.num_views)
    image = decode_rgb((root / store.read_images().key[row]).read_bytes())
    padded = pad_image(image, spec.pixel.padding)
    size, interpolation = teacher.spec.input_size, spec.pixel.interpolation
    return np.stack(
        [
            cut_view(padded, box, bool(flip), size, interpolation)
            for box, flip in zip(plane.box[row], plane.flip[row], strict=True)
        ]
    )


def jpeg_bytes(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
