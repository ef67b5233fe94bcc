"""Labels of an open store, whatever codec they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.chunks import Array
from storage.codecs import TopKLabels, gaps_from_codes
from storage.dictionary import DictionaryCodec, ImageTail
from storage.errors import CorruptStore, UsageError
from storage.label_arrays import from_arrays
from storage.lists import Dictionaries, mean_tails

if TYPE_CHECKING:
    from storage.reading import StoreReading

LOGICAL = ("index", "gap")


class LabelReader:
    """Reads labels; keeps the images' lists, which every plane needs, in memory."""

    def __init__(self, store: StoreReading) -> None:
        self._store = store
        self._lists: dict[str, Dictionaries] = {}

    def parts(self, teacher: str) -> tuple[str, str, str]:
        """The arrays with a view axis: ids, values and tail."""
        codec = self._store.spec.teachers[teacher].codec
        return ("place", "fall", "tail") if isinstance(codec, DictionaryCodec) else (
            "index", "gap", "tail")  # fmt: skip

    def labels(self, teacher: str, arrays: list[Array], first: int = 0) -> TopKLabels:
        """Labels of the images from `first` on, from the arrays that `parts` names, which may be
        overwritten.

        Raises:
            CorruptStore: a label names a class beyond its image's list.
        """
        codec = self._store.spec.teachers[teacher].codec
        found = dict(zip(self.parts(teacher), arrays, strict=True))
        if not isinstance(codec, DictionaryCodec):
            return from_arrays(codec, found)
        try:
            return from_arrays(codec, found, self._all_lists(teacher), first, in_place=True)
        except ValueError as error:
            raise CorruptStore(
                f"{self._store.path / 'labels' / teacher}: {error}: run `labelstore verify --full`"
            ) from error

    def read_logical(self, path: str, rows: slice, views: slice | None) -> Array:
        """`labels/<teacher>/index` and `gap` of labels that are kept in another way."""
        folder, _, part = path.rpartition("/")
        teacher = folder.removeprefix("labels/")
        if teacher not in self._store.spec.teachers or part not in LOGICAL:
            raise UsageError(f"{self._store.path} has no array {path!r}")
        paths = [f"{folder}/{name}" for name in self.parts(teacher)]
        first = rows.indices(self._store.spec.num_images)[0]
        labels = self.labels(teacher, self._store.read_arrays(paths, rows, views), first)
        return labels.index if part == "index" else gaps_from_codes(labels.code)

    def image_tails(self, teacher: str) -> ImageTail | None:
        """Mean tails of all images; None where the codec keeps none. A block at a time."""
        codec = self._store.spec.teachers[teacher].codec
        if not isinstance(codec, DictionaryCodec) or not codec.spread_classes:
            return None
        paths = [f"labels/{teacher}/{part}" for part in ("classes", "spread")]
        found = [
            mean_tails(codec, *self._store.read_arrays(paths, where))
            for where in self._block_slices()
        ]
        return ImageTail(
            np.concatenate([tails.index for tails in found]),
            np.concatenate([tails.share for tails in found]),
        )

    def _all_lists(self, teacher: str) -> Dictionaries:
        if teacher not in self._lists:
            path = f"labels/{teacher}/classes"
            self._lists[teacher] = Dictionaries.join(
                [Dictionaries.pack(self._store.read_array(path, w)) for w in self._block_slices()]
            )
        return self._lists[teacher]

    def _block_slices(self) -> list[slice]:
        blocks = [self._store.block_rows(block) for block in range(self._store.blocks)]
        return [slice(rows.start, rows.stop) for rows in blocks]
