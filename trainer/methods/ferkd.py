"""FerKD: faster distillation by adapting labels to how sure they are (Shen 2023, ICCV).

By s, the largest probability of a crop's stored label: uninformative crops (s < low or s > top)
are left out, hard ones (s < middle) are asked for the image's own class, softened, and all others
for the stored label. The thresholds are parameters; the repository has no code and no values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from storage.errors import UsageError
from trainer.batch import Batch, TopKTarget
from trainer.labels import within
from trainer.losses import counted_mean, smoothed_cross_entropy_rows
from trainer.method_config import FerkdConfig, MixConfig
from trainer.methods.fkd import FKD


class FerKD(FKD):
    """FKD with labels adapted, or left out, by their largest probability."""

    def __init__(
        self,
        config: FerkdConfig,
        temperature: float = 1.0,
        mix: MixConfig | None = None,
        views_per_image: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(temperature, mix, views_per_image, seed)
        self._config = config

    def rows(self, logits: Tensor, label: TopKTarget, target: Tensor) -> Tensor:
        """Loss [B]: with the softened class where a label is unsure, else with the label."""
        soft = super().rows(logits, label, target)
        sure = label.probs[:, 0]
        hard = (sure >= self._config.low) & (sure < self._config.middle)
        if not bool(hard.any()):
            return soft
        if bool((target[hard] < 0).any()):
            raise UsageError(
                "ferkd.middle asks for the images' own classes, and some images have none: give "
                "an image folder with class folders, or --set ferkd.middle=0"
            )
        own = smoothed_cross_entropy_rows(logits, target.clamp(min=0), self._config.epsilon)
        return torch.where(hard, own, soft)

    def average(self, rows: Tensor, batch: Batch) -> Tensor:
        """Mean over the crops that count; 0 where none does."""
        assert batch.labels is not None
        label = batch.labels
        counts = within(label.probs[:, 0], self._config.low, self._config.top)
        return counted_mean(rows, counts if label.counts is None else counts * label.counts)
