"""Mean tails of a store's images, laid out for training (storage.dictionary says what they are)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storage import LabelStore
from storage.dictionary import DictionaryCodec
from trainer.config import LabelConfig
from trainer.label_plane import class_numbers, on_device
from trainer.labels import with_mean_tail


@dataclass(frozen=True)
class MeanTails:
    """Mean tails by beton row.

    Attributes:
        index: uint16 [R, S]; share: float32 [R, S].
        weight: share of a label's tail that follows them.
        top_k: classes a label has; the mean tails are of the others.
    """

    index: npt.NDArray[np.uint16]
    share: npt.NDArray[np.float32]
    weight: float
    top_k: int

    def serve(self, labels: LabelConfig) -> bool:
        """Whether labels are to be read with mean tails: where no kept class joins the tail."""
        whole = labels.top_k in (None, self.top_k)
        return labels.tail == "mean" and labels.label_type == "marginal_smoothing" and whole

    def on(self, device: torch.device) -> TailTable:
        """The same where labels are decoded."""
        index, share = on_device(device, self.index, self.share)
        return TailTable(index, share, self.weight)


@dataclass(frozen=True)
class TailTable:
    """Mean tails on the device. index: int16 [R, S], the bits of uint16; share: float32 [R, S]."""

    index: Tensor
    share: Tensor
    weight: float

    def spread(
        self, rows: Tensor, views: int, index: Tensor, tail: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Spread the tails of the labels of `rows` int64 [b], `views` each.

        Args:
            index: int64 [b * views, k] kept classes; tail: [b * views].
        Returns:
            (mass to spread evenly [b * views], classes int64 [b * views, S], their mass beside).
        """
        rows = rows.to(self.index.device).repeat_interleave(views)
        listed = class_numbers(self.index[rows].to(tail.device))
        share = self.share[rows].to(tail.device)
        even, extra = with_mean_tail(index, tail, listed, share, self.weight)
        return even, listed, extra


def read_mean_tails(
    store: LabelStore, teacher: str, spread: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> MeanTails | None:
    """A store's mean tails; None where the teacher's labels have none.

    Args:
        spread: lays values in the store's order out by beton row.
    """
    tails, codec = store.read_image_tails(teacher), store.spec.teachers[teacher].codec
    if tails is None or not isinstance(codec, DictionaryCodec):
        return None
    return MeanTails(spread(tails.index), spread(tails.share), codec.spread_weight, codec.top_k)
