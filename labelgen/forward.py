"""From uint8 crops to the k most probable classes and the mass of the rest, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelgen.ensemble import MeanOfProbabilities
from storage.errors import TeacherError

if TYPE_CHECKING:
    from labelgen.teacher import Teacher


@dataclass(frozen=True)
class Outputs:
    """What a batch of B crops gives, on the device.

    values: float32 [B, k] largest log-probabilities, falling; index: int64 [B, k] their classes.
    rest: float32 [B] sum of all other probabilities (1 - sum of the k loses small ones).
    log_probs: float32 [B, C]; tails: the probabilities, 0 for the k largest.
    """

    values: Tensor
    index: Tensor
    rest: Tensor
    log_probs: Tensor
    tails: Tensor


class Forward:
    """A teacher's forward pass with what comes before and after it.

    Crops go in as uint8 [B, S, S, 3]; seen as [B, 3, S, S] they are channels_last already.

    Args:
        top_k: classes that `__call__` gives.
        compiled: run the network through torch.compile, for batches of one fixed size.
    Raises:
        TeacherError: a part of the teacher is in train mode.
    """

    def __init__(self, teacher: Teacher, top_k: int, compiled: bool = False) -> None:
        _require_eval(teacher)
        self._teacher, self._top_k = teacher, top_k
        self._network = _compile(teacher.model, compiled)
        if isinstance(teacher.model, MeanOfProbabilities):
            self._members = _compile(teacher.model.member_log_probs, compiled)
        mean = torch.tensor(teacher.spec.mean, dtype=torch.float64)
        std = torch.tensor(teacher.spec.std, dtype=torch.float64)
        # one row of pixels at a time: five times as fast on a CPU as by channels of channels_last
        repeat = teacher.spec.input_size
        self._scale = (1 / (255 * std)).float().repeat(repeat).to(teacher.device)
        self._shift = (-mean / std).float().repeat(repeat).to(teacher.device)

    @torch.inference_mode()
    def normalise(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """(pixels / 255 - mean) / std as float32 [B, 3, S, S] in channels_last, on the device."""
        return self.normalise_tensor(self.upload(pixels))

    def upload(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Crops on the device; to a GPU by way of pinned memory, without waiting for it."""
        batch = torch.from_numpy(pixels)
        if self._teacher.device.type != "cuda":
            return batch.to(self._teacher.device)
        return batch.pin_memory().to(self._teacher.device, non_blocking=True)

    @torch.inference_mode()
    def normalise_tensor(self, batch: Tensor) -> Tensor:
        """`normalise` of uint8 [B, S, S, 3] that is on the device already."""
        if self._teacher.spec.channel_order == "bgr":  # mean and std are in that order too
            batch = batch.flip(-1)
        rows = batch.reshape(-1, len(self._scale)).to(torch.float32)
        return rows.mul_(self._scale).add_(self._shift).view(batch.shape).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def logits(self, batch: Tensor) -> Tensor:
        """Float32 logits [B, C] of a normalised batch."""
        with self.autocast():
            logits: Tensor = self._network(batch)
        return logits.float()

    @torch.inference_mode()
    def member_logits(self, batch: Tensor) -> dict[str, Tensor]:
        """Float32 log-probabilities [B, C] of an ensemble and of each member, by name."""
        with self.autocast():
            log_probs: list[Tensor] = self._members(batch)
            mean = MeanOfProbabilities.mean(log_probs)
        names = [member.spec.name for member in self._teacher.members]
        return dict(zip([self._teacher.spec.name, *names], [mean, *log_probs], strict=True))

    def log_probs(self, batch: Tensor) -> Tensor:
        """Float32 log-probabilities [B, C] of a normalised batch."""
        return torch.log_softmax(self.logits(batch), dim=1)

    def __call__(
        self, pixels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k largest log-probabilities [B, k], falling, and their classes [B, k].

        Equal ones stand in order of their class id. A NaN comes first, so that it is seen.
        """
        found = take_top_k(self.logits(self.normalise(pixels)), self._top_k)
        return found.values.cpu().numpy(), found.index.cpu().numpy()

    def autocast(self) -> AbstractContextManager[object]:
        """Half precision where the teacher asks for it."""
        precision = self._teacher.precision
        if precision in ("bf16", "fp16"):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float16
            return torch.autocast(self._teacher.device.type, dtype=dtype)
        return nullcontext()


@torch.inference_mode()
def take_top_k(logits: Tensor, k: int) -> Outputs:
    """The k most probable classes of float32 logits [B, C], and all that they are taken from."""
    log_probs = torch.log_softmax(logits, dim=1)
    values, index = top_k_by_id(log_probs, k)
    tails = log_probs.exp().scatter_(1, index, 0.0)
    return Outputs(values, index, tails.sum(dim=1), log_probs, tails)


def top_k_by_id(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, falling; equal values by rising index.

    torch.topk leaves the order of ties open, at the last place kept too. It is used all the same
    where the k + 1 largest are all different, which is nearly always: on a CPU it takes an eighth
    of the time of `_top_k_of_keys`. On a GPU, to look whether they are would be to wait for it.

    Args:
        values: float32 [B, C].
    Returns:
        values float32 [B, k] and index int64 [B, k].
    """
    if values.is_cuda:
        return _top_k_of_keys(values, k)
    largest, index = values.topk(min(k + 1, values.shape[1]), dim=1)
    if bool((largest[:, 1:] == largest[:, :-1]).any()):
        return _top_k_of_keys(values, k)
    return largest[:, :k], index[:, :k]


def _top_k_of_keys(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k_by_id` by keys of which no two are equal: the float's bits, made to sort as
    integers, and the index share one int64."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: -0.0 equals 0.0 but has other bits
    rising = (bits ^ ((bits >> 31) & 0x7FFF_FFFF)).to(torch.int64)
    by_id = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    keys = (rising << 32) | by_id
    index = (values.shape[1] - 1) - (keys.topk(k, dim=1).values & 0xFFFF_FFFF)
    return values.gather(1, index), index


def _require_eval(teacher: Teacher) -> None:
    """In train mode an answer depends on the other crops of its batch, and on chance."""
    for name, module in teacher.model.named_modules():
        if module.training:
            raise TeacherError(
                f"teacher {teacher.spec.canonical} is in train mode ({name or 'all of it'}); "
                "expected eval mode in all its parts: call teacher.model.eval()"
            )


def _compile(function: Callable[[Tensor], Any], compiled: bool) -> Callable[[Tensor], Any]:
    return torch.compile(function, dynamic=False) if compiled else function


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """TF32 on for `tf32` and off for all others, restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
