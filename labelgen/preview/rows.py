"""What a contact sheet shows, gathered from a live teacher or from a store. Neither draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from labelgen.class_names import class_names, readable_name
from storage.augment import Augment, replay_view
from storage.classes import map_classes
from storage.errors import BadImage, StoreMismatch, TeachonceError, UsageError
from storage.images import ImageFolder, ImageStatus, has_image, read_image
from storage.label_stream import row_labels
from storage.measure import decoded_entropy
from storage.pixels import pad_image
from storage.views import Sampler, Views

if TYPE_CHECKING:
    from labelgen.teacher import Teacher
    from storage.store import LabelStore

NUM_LABELS = 5
KEPT = 10  # classes of a live label, as `labelgen run` keeps by default

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShownView:
    """One crop with its label.

    Attributes:
        box: (top, left, height, width) in the padded image. crop: uint8 [S, S, 3].
        top: (class name, probability, whether it is the image's own class), falling.
        entropy: nats. tail: mass of all classes that the label doesn't keep.
        agrees: whether the first class is the image's own; None where that is unknown.
    """

    box: tuple[int, int, int, int]
    flip: bool
    crop: npt.NDArray[np.uint8]
    top: tuple[tuple[str, float, bool], ...]
    entropy: float
    tail: float
    agrees: bool | None


@dataclass(frozen=True)
class ShownImage:
    """One row of a sheet: the padded photo that the boxes lie in, and its views."""

    key: str
    class_name: str | None
    photo: Image.Image
    views: tuple[ShownView, ...]


@dataclass(frozen=True)
class Shown:
    """A whole sheet.

    Attributes:
        title: whose labels these are. notes: what else to know, such as how many are masked.
        passed_over: key and reason of every image that was drawn but can't be shown.
    """

    title: str
    images: tuple[ShownImage, ...]
    notes: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = field(default=())


class _PassedOver(Exception):
    """An image that can't be shown, and why."""


def live_rows(
    teacher: Teacher,
    folder: ImageFolder,
    sampler: Sampler,
    *,
    num_images: int,
    num_views: int,
    seed: int,
    keys: Sequence[str] = (),
    augment: Augment | None = None,
) -> Shown:
    """The first views that a run with this seed labels, with the labels that it would give.

    Images are drawn at random by the seed unless `keys` names them; bad ones are passed over.

    Raises:
        UsageError: a key that the folder doesn't have.
        TeachonceError: no image can be decoded.
    """
    mapped = map_classes(folder.classes, teacher.spec.classes)
    names = class_names(teacher.spec.classes, teacher.spec.num_classes)

    def show(row: int) -> ShownImage:
        photo, views = _draw(folder, row, sampler, augment, seed, num_views)
        spec, target = teacher.spec, folder.targets[row]
        crops = _cut(photo, views, spec.input_size, spec.interpolation, augment)
        index, probs, entropy, tail = _ask(teacher, crops)
        own = int(mapped[target]) if mapped is not None and target >= 0 else None
        return _shown(folder.keys[row], folder.classes, target, photo, views, crops,
                      names, index, probs, entropy, tail, own)  # fmt: skip

    rows = _chosen(folder.keys, keys, seed, str(folder.root))
    title = f"{teacher.spec.canonical} on {folder.root}"
    return _gather(title, show, rows, folder.keys, num_images, str(folder.root))


def stored_rows(
    store: LabelStore,
    data: Path,
    teacher: str,
    *,
    num_images: int,
    num_views: int,
    seed: int,
    keys: Sequence[str] = (),
) -> Shown:
    """The first views of a store with the labels that it holds; no teacher is run.

    Raises:
        UsageError: a key that the store doesn't have.
        StoreMismatch: an image at `data` is not the one that was labelled.
        TeachonceError: none of the store's images is at `data`.
    """
    images, record, pixel = store.read_images(), store.spec.teachers[teacher], store.spec.pixel
    names = class_names(record.classes, record.num_classes)
    classes = store.spec.dataset.get("classes") or ()
    mapped = map_classes(classes, record.classes)

    def show(row: int) -> ShownImage:
        status, key = ImageStatus(images.status[row]), images.key[row]
        if status != ImageStatus.OK:
            raise _PassedOver(f"masked ({status.name.lower()}): it has no labels")
        if not has_image(data, key):
            raise _PassedOver(f"not at {data}")
        found = read_image(data, key)
        if found.digest != images.digest[row].tobytes():
            raise StoreMismatch(
                f"{data / key} is not the image that {store.path} has labels of: give the labelled "
                "images with --data"
            )
        photo = pad_image(found.rgb(), pixel.padding)
        views, labels = row_labels(store, teacher, row, num_views)
        crops = _cut(photo, views, record.input_size, pixel.interpolation, store.spec.augment)
        probs, tail = (values.astype(np.float64) for values in record.codec.decode(labels))
        target = int(images.target[row])
        own = int(mapped[target]) if mapped is not None and target >= 0 else None
        return _shown(images.key[row], classes, target, photo, views, crops, names,
                      labels.index, probs, decoded_entropy(record.codec, probs, tail), tail,
                      own)  # fmt: skip

    masked = int((images.status != ImageStatus.OK).sum())
    notes = (f"{masked:,} of the store's {len(images.key):,} images are masked",) if masked else ()
    rows = _chosen(images.key, keys, seed, str(store.path))
    title = f"{record.spec}, from {store.path}"
    return _gather(title, show, rows, images.key, num_images, str(data), notes)


def _draw(
    folder: ImageFolder, row: int, sampler: Sampler, augment: Augment | None, seed: int, count: int
) -> tuple[Image.Image, Views]:
    try:
        found = folder.read(row)
        image, digest = found.rgb(), found.digest
        views = sampler.draw(seed, digest, image.height, image.width, 0, count)
    except (BadImage, UsageError) as error:  # UsageError: sides that no box can hold
        raise _PassedOver(str(error)) from error
    except OSError as error:
        raise _PassedOver(error.strerror or str(error)) from error
    if augment is not None:
        views = replace(views, draw=augment.draw(seed, digest, 0, count))
    return pad_image(image, sampler.padding), views


def _cut(
    photo: Image.Image, views: Views, size: int, interpolation: str, augment: Augment | None
) -> npt.NDArray[np.uint8]:
    """Crops uint8 [V, S, S, 3], bit for bit those of a run."""
    return np.stack([
        replay_view(photo, views.box[v], bool(views.flip[v]), size, interpolation, augment,
                    None if views.draw is None else views.draw[v])
        for v in range(len(views.flip))
    ])  # fmt: skip


def _ask(
    teacher: Teacher, crops: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.intp], Floats, Floats, Floats]:
    """Classes and probabilities [V, k], exact entropy [V] and mass of the other classes [V]."""
    from labelgen.forward import Forward, matmul_precision

    forward = Forward(teacher, min(KEPT, teacher.spec.num_classes))
    with matmul_precision(teacher.precision):
        logs = forward.log_probs(forward.normalise(crops)).double().cpu().numpy()
    probs = np.exp(logs)
    index = np.argsort(-logs, axis=-1, kind="stable")[:, :KEPT]
    kept = np.take_along_axis(probs, index, axis=-1)
    np.put_along_axis(rest := probs.copy(), index, 0, axis=-1)
    entropy = -(probs * np.maximum(logs, -700)).sum(axis=-1)
    return index, kept, entropy, rest.sum(axis=-1)


def _shown(
    key: str,
    classes: Sequence[str],
    target: int,
    photo: Image.Image,
    views: Views,
    crops: npt.NDArray[np.uint8],
    names: Sequence[str],
    index: npt.NDArray[Any],
    probs: Floats,
    entropy: Floats,
    tail: npt.NDArray[Any],
    own: int | None,
) -> ShownImage:
    shown = []
    for v, crop in enumerate(crops):
        ranked = list(zip(index[v].tolist(), probs[v].tolist(), strict=True))[:NUM_LABELS]
        shown.append(ShownView(
            box=tuple(views.box[v].tolist()), flip=bool(views.flip[v]), crop=crop,
            top=tuple((names[i], p, i == own) for i, p in ranked),
            entropy=float(entropy[v]), tail=float(tail[v]),
            agrees=None if own is None else ranked[0][0] == own,
        ))  # fmt: skip
    class_name = readable_name(classes[target]) if target >= 0 else None
    return ShownImage(key, class_name, photo, tuple(shown))


def _chosen(keys: Sequence[str], wanted: Sequence[str], seed: int, where: str) -> list[int]:
    """Rows in the order in which they are tried."""
    if not wanted:
        order = np.random.default_rng([seed, len(keys)]).permutation(len(keys))
        return [int(row) for row in order]
    place = {key: row for row, key in enumerate(keys)}
    for key in wanted:
        if key not in place:
            raise UsageError(f"{where} has no image {key!r}; keys look like {keys[0]!r}")
    return [place[key] for key in wanted]


def _gather(
    title: str,
    show: Callable[[int], ShownImage],
    rows: Sequence[int],
    keys: Sequence[str],
    num_images: int,
    where: str,
    notes: tuple[str, ...] = (),
) -> Shown:
    shown: list[ShownImage] = []
    passed: list[tuple[str, str]] = []
    for row in rows:
        if len(shown) == num_images:
            break
        try:
            shown.append(show(row))
        except _PassedOver as reason:
            passed.append((keys[row], str(reason)))
    if not shown:
        raise TeachonceError(f"no image of {where} can be decoded or found: give another folder")
    return Shown(title, tuple(shown), notes, tuple(passed))
