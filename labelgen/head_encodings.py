"""How each head of a teacher is kept, and what keeping only its largest logits costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labelgen.basis import CropSample
from labelgen.extract.base import Sources, TappedTeacher
from labelgen.extract.heads import HeadOutput
from labelgen.forward import Forward, matmul_precision
from labelgen.target_options import DEFAULT_HEAD_TOP_K, TOP_K, TargetOptions
from storage.errors import TeachonceError
from storage.targets.top_k_heads import INDEX, LOGIT, TAIL, TEMPERATURES, TopK

if TYPE_CHECKING:
    import threading

    from labelgen.teacher import Teacher

MEASURED_IMAGES = 256
_KEPT = {
    "pooled-int8": ("pooled", "int8"),
    "pooled-fp16": ("pooled", "fp16"),
    "pooled-fp32": ("pooled", "fp32"),
    "dense-int8": ("dense", "affine8"),
    "dense-fp32": ("dense", "fp32"),
    TOP_K: (TOP_K, "fp16"),
}
_INT8_BESIDE, _AFFINE8_BESIDE = 4, 8  # bytes beside a vector: its scale; scale and offset
_TOP_K_BYTES = 4  # class and logit
_TOP_K_BESIDE = 2 * len(TEMPERATURES)


@dataclass(frozen=True)
class HeadEncoding:
    """How a head is kept: `HeadSpec.encoding` and `stored`; k: logits kept, None for "all"."""

    encoding: str
    stored: str
    k: int | None = None

    def __str__(self) -> str:
        """As --head-encoding and --head-top-k say it."""
        if self.k is not None:
            return f"{TOP_K} of {self.k}"
        return next(name for name, kept in _KEPT.items() if kept == (self.encoding, self.stored))


def head_encoding(options: TargetOptions, width: int, classes: int) -> HeadEncoding:
    """How a head from `width` inputs to `classes` logits is kept.

    "auto" takes the smaller of inputs and logits in 8 bits; a head whose largest logits would need
    no less room than all of them in 8 bits keeps all of them.
    """
    pooled = width + _INT8_BESIDE, "pooled-int8"
    dense = classes + _AFFINE8_BESIDE, "dense-int8"
    chosen = options.head_encoding
    if chosen == "auto":
        return HeadEncoding(*_KEPT[min(pooled, dense)[1]])
    if chosen != TOP_K:
        return HeadEncoding(*_KEPT[chosen])
    k = options.head_top_k or DEFAULT_HEAD_TOP_K
    if _TOP_K_BYTES * k + _TOP_K_BESIDE >= dense[0]:
        return HeadEncoding(*_KEPT["dense-int8"])
    return HeadEncoding(*_KEPT[TOP_K], k)


def largest_logits(logits: Tensor, top_k: TopK) -> dict[str, Tensor]:
    """`INDEX` and `LOGIT` [..., k] and `TAIL` [..., t] of logits [..., C]: see storage's module.

    Of equal logits the first classes are kept.
    """
    ordered, index = logits.float().sort(dim=-1, descending=True, stable=True)
    below = ordered - ordered[..., :1]
    others = below[..., top_k.k :]
    tails = [torch.logsumexp(others / t, dim=-1) for t in top_k.temperatures]
    return {
        INDEX: index[..., : top_k.k].float(),
        LOGIT: below[..., : top_k.k],
        TAIL: torch.stack(tails, dim=-1),
    }


def spread_variation(logits: Tensor, k: int, temperature: float) -> Tensor:
    """Total variation [...] between softmax(logits / T) [..., C] and the same with the mass of all
    but the k largest spread evenly over these."""
    p = (logits.double() / temperature).softmax(dim=-1)
    others = p.sort(dim=-1, descending=True, stable=True).values[..., k:]
    return (others - others.mean(dim=-1, keepdim=True)).abs().sum(dim=-1) / 2


def measure_top_k(
    teacher: Teacher,
    sources: Sources,
    counts: Mapping[str, int],
    rotations: int,
    sample: CropSample,
    stop: threading.Event | None,
) -> dict[str, TopK]:
    """What is lost by keeping `counts` logits of some heads, by their name.

    One crop each of up to 256 images of the sample is looked at in all rotations. The rounding of
    the kept logits to float16 isn't counted: it moves a probability by less than 0.1 % of itself
    for logits within 2 T of the largest.

    Raises:
        TeachonceError: no image of the sample can be read.
        StoppedError: `stop` was set.
    """
    names = {name: str(HeadOutput(name, rotations, logits=True)) for name in counts}
    extractor, forward = TappedTeacher(teacher, sources, names.values()), Forward(teacher, 1)
    few = replace(sample, images=min(sample.images, MEASURED_IMAGES))
    sums = {name: torch.zeros(len(TEMPERATURES), dtype=torch.float64) for name in counts}
    crops = 0
    try:
        for pixels, _ in few.crops(teacher, 1, stop):
            if not len(pixels):
                continue
            with matmul_precision(teacher.precision), forward.autocast():
                outputs = extractor(forward.normalise(pixels))
            crops += len(pixels)
            for name, k in counts.items():
                rows = outputs[names[name]].cpu()
                found = [spread_variation(rows, k, t).mean(dim=-1).sum() for t in TEMPERATURES]
                sums[name] += torch.stack(found)
    finally:
        extractor.close()
    if not crops or not all(math.isfinite(float(total.sum())) for total in sums.values()):
        raise TeachonceError(
            f"the loss of --head-encoding {TOP_K} can't be measured: none of "
            f"{len(few.rows())} images of {sample.folder.root} can be read, or the teacher's "
            "logits are not finite"
        )
    return {
        name: TopK(
            k=k, temperatures=TEMPERATURES, crops=crops,
            variation=tuple(round(float(value), 6) for value in sums[name] / crops),
        )
        for name, k in counts.items()
    }  # fmt: skip
