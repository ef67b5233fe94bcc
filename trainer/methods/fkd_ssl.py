"""FKD-SSL: a self-supervised teacher's stored embedding (Shen & Xing 2022, arXiv:2112.01528).

The loss is S2-BNN's "distillation only" (Shen et al. 2021, arXiv:2102.08946), on which the authors
of FKD say that theirs is built: both embeddings have length 1, and the student's softmax over its
coordinates at temperature 0.2 is asked for the teacher's. No label is read; the projection is part
of the method, so that the student that is kept is the plain network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError
from storage.targets.dense import LOGITS, dense_settings
from storage.targets.features import VALUE, feature_settings
from trainer.batch import Batch
from trainer.method_config import FkdSslConfig
from trainer.methods.base import Method
from trainer.models.feature_tap import FeatureTap
from trainer.targets import StoredTarget


class FkdSsl(Method):
    """Cross-entropy of two softmaxes over the coordinates of embeddings.

    Args:
        tap: on what the student's classifier reads. stored: the teacher's outputs or features.
    Raises:
        UsageError: no projection is asked for and the student isn't as wide as the embedding.
    """

    trains_whole_student = False

    def __init__(self, config: FkdSslConfig, tap: FeatureTap, stored: StoredTarget) -> None:
        super().__init__()
        self._config, self._tap = config, tap
        self.embed = Embedding(stored)
        width = self.embed.width
        if config.head == "none" and tap.width != width:
            raise UsageError(
                f"fkd_ssl.head is none, and the student's features have {tap.width} components "
                f"and the teacher's embedding {width}: use mlp or linear"
            )
        self.head = projection(config.head, tap.width, width)

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"embedding": -1/B sum softmax(t / T) log softmax(s / T)}, in nats."""
        assert batch.targets is not None
        with self._tap.listening() as found:
            student(batch.images)
        wanted = self.embed(batch.targets[self.embed.part])
        return {"embedding": self.embedding_loss(self.head(found.feature), wanted)}

    def embedding_loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean over crops; no factor T^2.

        Args:
            found, wanted: float32 [B, D] of the student and of the teacher, of any length.
        """
        if self._config.unit:
            found, wanted = F.normalize(found, dim=-1), F.normalize(wanted, dim=-1)
        temperature = self._config.temperature
        return F.cross_entropy(found / temperature, (wanted / temperature).softmax(dim=-1))


class Embedding(nn.Module):
    """The teacher's embedding [B, D] from what is stored of it.

    A dense target is the embedding. Features are put back into the teacher's own coordinates,
    over which the softmax is taken: f = z V^T + mu, exact where all D components are stored.
    """

    _basis: Tensor | None
    _mean: Tensor | None

    def __init__(self, stored: StoredTarget) -> None:
        super().__init__()
        record = stored.record
        self._scaling: tuple[float, float] | None = None
        basis = mean = None
        if record.kind == "dense":
            self.width = dense_settings(record).classes
        else:
            settings = feature_settings(record)
            self.width = settings.width
            basis = torch.tensor(stored.constant("basis"))
            mean = torch.tensor(stored.constant("mean"))
            if settings.temperature is not None and settings.power is not None:
                self._scaling = (settings.temperature, settings.power)
        self.part = LOGITS if record.kind == "dense" else VALUE
        self.register_buffer("_basis", basis, persistent=False)
        self.register_buffer("_mean", mean, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [B, D] of stored values [B, r]."""
        if self._basis is None or self._mean is None:
            return values
        if self._scaling is not None:
            temperature, power = self._scaling
            values = torch.copysign(temperature * values.abs().pow(power), values)
        return values @ self._basis.T + self._mean


def projection(kind: str, width: int, out: int) -> nn.Module:
    """From a pooled feature to an embedding; trained with the student, and not kept."""
    if kind == "none":
        return nn.Identity()
    last = nn.Linear(width, out)
    return last if kind == "linear" else nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
