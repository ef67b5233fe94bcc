"""A folder of tiny images with a store whose labels say which image they are for; and what
people do to folders."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from store_helpers import make_spec, make_teacher

from storage.block import BlockData
from storage.codecs import TopKCodec, TopKLabels
from storage.format import keys_hash
from storage.images import ImageStatus, class_order_hash, scan_folder
from storage.sealing import seal
from storage.store import LabelStore

CLASSES = ("1", "10", "100", "2", "20", "3")  # sorted as text
ORIENTATION = 0x0112
NUM_CLASSES = 5000
JPEG_START = b"\xff\xd8"


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> bytes:
    """Size and samples as Pillow decodes them, nothing turned."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return repr(image.size).encode() + image.tobytes()


def write_images(root: Path, count: int) -> None:
    """`count` different JPEGs over the classes, some of them twice."""
    rng = np.random.default_rng(3)
    for number in range(count):
        side = (int(rng.integers(6, 9)), int(rng.integers(9, 12)))
        image = Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8))
        folder = root / CLASSES[number % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.jpg").write_bytes(jpeg(image))
    for number in range(0, count, 97):
        source = next(root.glob(f"*/{number:05d}.jpg"))
        (root / "3" / f"copy{number}.jpg").write_bytes(source.read_bytes())


def write_store(path: Path, root: Path) -> LabelStore:
    """A store of the folder: each label's only class is the number of the image's content."""
    folder = scan_folder(root)
    data = [folder.path(row).read_bytes() for row in range(len(folder))]
    digests = [hashlib.sha256(content).digest() for content in data]
    number = {digest: i for i, digest in enumerate(sorted(set(digests)))}
    teacher = make_teacher(
        num_classes=NUM_CLASSES, classes=None, class_order_hash=None,
        codec=TopKCodec(num_classes=NUM_CLASSES, top_k=1),
    )  # fmt: skip
    dataset = {
        "classes": folder.classes, "class_order_hash": class_order_hash(folder.classes),
        "keys_hash": keys_hash(folder.keys), "num_images": len(folder),
    }  # fmt: skip
    spec = make_spec(len(folder), 2, [teacher], block_images=256, dataset=dataset)
    store = LabelStore.create(path, spec)
    sizes = [Image.open(io.BytesIO(content)).size[::-1] for content in data]
    for block in range(store.blocks):
        rows = store.block_rows(block)
        n = len(rows)
        identity = np.array([number[digests[row]] for row in rows], np.uint16)
        size = np.array([sizes[row] for row in rows], np.uint16)
        box = np.zeros((n, 2, 4), np.uint16)
        box[..., 2:] = size[:, None]
        labels = TopKLabels(
            np.repeat(identity[:, None], 2, axis=1)[..., None],
            np.zeros((n, 2, 1), np.uint8), np.zeros((n, 2), np.uint8),
        )  # fmt: skip
        store.write_block(block, BlockData(
            np.stack([np.frombuffer(digests[row], np.uint8) for row in rows]),
            [folder.keys[row] for row in rows], size,
            np.array([folder.targets[row] for row in rows], np.int32),
            np.full(n, ImageStatus.OK, np.uint8), box, np.zeros((n, 2), np.uint8),
            {"toy": labels},
        ), "cpu")  # fmt: skip
    seal(store)
    return store


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def shuffle(root: Path, rng: random.Random) -> None:
    """Every name gets another file's content."""
    paths = _files(root)
    contents = [path.read_bytes() for path in paths]
    rng.shuffle(contents)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)


def rename(root: Path, rng: random.Random) -> None:
    """Every file gets a name of its own, often one that another file had, in any class."""
    paths = _files(root)
    names = [path.name for path in paths]
    rng.shuffle(names)
    for number, path in enumerate(paths):
        path.rename(path.with_name(f"moving{number}"))
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        target = root / rng.choice(CLASSES) / name
        if target.exists():
            target = target.with_name(f"again{number}.jpg")
        path.with_name(f"moving{number}").rename(target)


def duplicate(root: Path, rng: random.Random) -> None:
    """Copies under other names and in other classes."""
    for path in rng.sample(_files(root), len(_files(root)) // 6):
        shutil.copy(path, root / rng.choice(CLASSES) / f"double{path.name}")


def delete(root: Path, rng: random.Random) -> None:
    for path in rng.sample(_files(root), len(_files(root)) // 3):
        path.unlink()


def re_encode(root: Path, rng: random.Random) -> None:
    """Other pixels that look the same."""
    for path in rng.sample(_files(root), len(_files(root)) // 3):
        path.write_bytes(jpeg(Image.open(path), quality=60))


def repack(root: Path, rng: random.Random) -> None:
    """Other bytes, the same pixels: PNGs of the decoded images, comments, junk at the end."""
    for path in rng.sample(_files(root), len(_files(root)) // 3):
        data = path.read_bytes()
        kinds = [png(Image.open(path).convert("RGB")), data + b"junk"]
        if data.startswith(JPEG_START):
            kinds.append(data[:2] + b"\xff\xfe\x00\x07hello" + data[2:])
        path.write_bytes(rng.choice(kinds))


def tag_orientation(root: Path, rng: random.Random) -> None:
    """An EXIF orientation is put before the same coded pixels, as photo viewers do."""
    for path in rng.sample(_files(root), len(_files(root)) // 3):
        exif = Image.Exif()
        exif[ORIENTATION] = rng.choice([3, 6, 8])
        body = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        data = path.read_bytes()
        if data.startswith(JPEG_START):
            path.write_bytes(data[:2] + segment + data[2:])


def turn(root: Path, rng: random.Random) -> None:
    """Pixels are turned and saved without loss: another image, often of the same size."""
    for path in rng.sample(_files(root), len(_files(root)) // 3):
        how = rng.choice([Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180,
                          Image.Transpose.FLIP_LEFT_RIGHT])  # fmt: skip
        path.write_bytes(png(Image.open(path).convert("RGB").transpose(how)))


def touch_pixels(root: Path, rng: random.Random) -> None:
    """One level of one sample is another one."""
    for path in rng.sample(_files(root), len(_files(root)) // 3):
        values = np.array(Image.open(path).convert("RGB"))
        values[0, 0, 0] ^= 1
        path.write_bytes(png(Image.fromarray(values)))


def pad_class_names(root: Path, rng: random.Random) -> None:
    """1, 10, 100, 2 become 001, 010, 100, 002: another order."""
    for name in CLASSES:
        (root / name).rename(root / f"{int(name):03d}x")
    for name in CLASSES:
        (root / f"{int(name):03d}x").rename(root / f"{int(name):03d}")


def swap_classes(root: Path, rng: random.Random) -> None:
    """Folders 1, 10 and 100 go round."""
    (root / "1").rename(root / "moving")
    (root / "100").rename(root / "1")
    (root / "10").rename(root / "100")
    (root / "moving").rename(root / "10")


def cut_short(root: Path, rng: random.Random) -> None:
    """Truncated and empty files."""
    for path in rng.sample(_files(root), len(_files(root)) // 12):
        path.write_bytes(path.read_bytes()[: rng.choice([0, 30, 200])])


def everything(root: Path, rng: random.Random) -> None:
    """A bit of it all, in any order."""
    deeds = [shuffle, rename, duplicate, delete, re_encode, repack, tag_orientation, turn]
    for deed in rng.sample(deeds, len(deeds)):
        deed(root, rng)


def nothing(root: Path, rng: random.Random) -> None:
    """As it was."""


DEEDS: tuple[Callable[[Path, random.Random], None], ...] = (
    nothing, shuffle, rename, duplicate, delete, re_encode, repack, tag_orientation, turn,
    touch_pixels, pad_class_names, swap_classes, cut_short, everything,
)  # fmt: skip
