"""What is kept of a block's dense outputs: mean tails, and the crops of the certificate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelgen.blocks import Positions
from labelgen.forward import Outputs
from storage.certificate import LabelSample, sample_positions
from storage.codecs import TopKCodec
from storage.dictionary import DictionaryCodec
from storage.format import StoreSpec


class DenseOutputs:
    """Gathers from a block's batches, in their order.

    Tails are summed on the device, float32 [n, C]; nothing else of a batch outlives it but the
    sampled crops.
    """

    def __init__(self, spec: StoreSpec, rows: range, codec: TopKCodec) -> None:
        self._codec, self._num_views, self._images = codec, spec.num_views, len(rows)
        image, view = sample_positions(spec.num_images, spec.num_views, rows)
        self._sampled = image * spec.num_views + view  # positions in the block, rising
        self._dense = np.zeros((len(image), codec.num_classes), np.float32)
        self._mass: Tensor | None = None

    @property
    def wants_tails(self) -> bool:
        """Whether the codec keeps mean tails."""
        return isinstance(self._codec, DictionaryCodec) and self._codec.spread_classes > 0

    @torch.inference_mode()
    def add(
        self, images: Positions, views: Positions, good: npt.NDArray[np.bool_], outputs: Outputs
    ) -> None:
        """Outputs of some crops of the block, in their batch's order.

        Args:
            images, views: number of each crop's image in the block (rising), and its view.
            good: bool [count], which show a sound image.
        """
        places = images * self._num_views + views
        where = np.searchsorted(self._sampled, places)
        found = where < len(self._sampled)
        found[found] = self._sampled[where[found]] == places[found]
        if found.any():
            crops = torch.from_numpy(np.flatnonzero(found)).to(outputs.log_probs.device)
            self._dense[where[found]] = outputs.log_probs[crops].cpu().numpy()
        if self.wants_tails:
            self._add_tails(images, good, outputs)

    def _add_tails(self, images: Positions, good: npt.NDArray[np.bool_], outputs: Outputs) -> None:
        device, count = outputs.log_probs.device, len(good)
        if self._mass is None:
            shape = (self._images, self._codec.num_classes)
            self._mass = torch.zeros(shape, dtype=torch.float32, device=device)
        tails = outputs.tails[:count].nan_to_num(0.0)  # of masked images: 0 * NaN is NaN
        # one product a batch: sums by index_add_ come in any order on a GPU
        belongs = np.arange(images[0], images[-1] + 1)[:, None] == images
        belongs &= good
        sums = torch.from_numpy(belongs).to(device, torch.float32) @ tails
        self._mass[images[0] : images[-1] + 1] += sums

    def tail_mass(self) -> npt.NDArray[np.float32] | None:
        """float32 [n, C] of the whole block, None without mean tails."""
        return None if self._mass is None else self._mass.cpu().numpy()

    def sample(self, good: npt.NDArray[np.bool_]) -> LabelSample:
        """The sampled crops of the images that are sound, bool [n]."""
        image, view = self._sampled // self._num_views, self._sampled % self._num_views
        kept = good[image]
        return LabelSample(image[kept], view[kept], self._dense[kept])
