"""The FFCV field of a beton's images: source bytes, size, digest and status of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from ffcv.fields.base import ARG_TYPE, Field

from storage.beton import IMAGE_RECORD
from trainer.replay.encode import EncodedImage


class SourceImageField(Field):
    """Keeps an image's source bytes (or raw pixels) with the digest of its file.

    Read by `trainer.replay.decoder.ReplayDecoder`, which must be given: the views to cut come
    from the epoch's plan.
    """

    @property
    def metadata_type(self) -> np.dtype[Any]:
        """Record of one row; `ptr` and `size` are 0 where `status` is not OK."""
        return IMAGE_RECORD

    @staticmethod
    def from_binary(binary: Any) -> SourceImageField:
        """The field has no arguments."""
        return SourceImageField()

    def to_binary(self) -> Any:
        """The field has no arguments."""
        return np.zeros(1, dtype=ARG_TYPE)[0]

    def encode(self, destination: Any, image: EncodedImage, malloc: Any) -> None:
        """Store the payload and fill the row's record (for FFCV's own writer)."""
        pointer = 0
        if image.payload:
            pointer, storage = malloc(len(image.payload))
            storage[:] = np.frombuffer(image.payload, np.uint8)
        record = destination[0]
        for name in ("mode", "status", "warns", "height", "width"):
            record[name] = getattr(image, name)
        record["digest"] = np.frombuffer(image.digest, np.uint8)
        record["ptr"], record["size"] = pointer, len(image.payload)

    def get_decoder_class(self) -> Any:
        """FFCV asks for it to recognise the decoder at the head of a pipeline."""
        from trainer.replay.decoder import ReplayDecoder

        return ReplayDecoder
