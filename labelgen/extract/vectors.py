"""storage.targets.vectors on the device: the same IEEE operations, so the same bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from storage.errors import UsageError
from storage.targets.record import VectorPart
from storage.targets.vectors import (
    AFFINE_STEPS,
    INT8_STEPS,
    LARGEST_NUMBER,
    LIMIT,
    SMALLEST_SCALE,
)


def encode_tensors(part: VectorPart, values: Tensor) -> dict[str, Tensor]:
    """`encode_vectors` of finite float32 [..., *part.shape] on any device: its arrays by name.

    Raises:
        UsageError: a shape that isn't the part's, or values that the encoding can't hold (as
            `encode_vectors` has it).
    """
    if values.dtype != torch.float32 or values.shape[-len(part.shape) :] != part.shape:
        raise UsageError(
            f"{part.name} is {values.dtype} {list(values.shape)}; expected float32 "
            f"[..., {', '.join(map(str, part.shape))}]"
        )
    if part.encoding == "uint16":
        return {part.name: _uint16(part, values)}
    _check_range(part, values)
    if part.encoding == "fp32":
        return {part.name: values}
    if part.encoding == "fp16":
        return {part.name: values.half()}
    if part.encoding == "int8":
        return _int8(part.name, values)
    return _affine8(part.name, values)


def _check_range(part: VectorPart, values: Tensor) -> None:
    # 65520 is the first number that rounds to float16's infinity
    limits = {"fp32": float("inf"), "fp16": 65_520.0}
    limit = limits.get(part.encoding, float(LIMIT))
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not (largest < limit or (largest == limit and part.encoding not in limits)):
        raise UsageError(
            f"{part.name} has a value of size {largest:g}, which {part.encoding} can't hold: "
            "look at the teacher, or use fp32"
        )


def _uint16(part: VectorPart, values: Tensor) -> Tensor:
    numbers = values.to(torch.int32)
    if ((numbers != values) | (numbers < 0) | (numbers > LARGEST_NUMBER)).any():
        raise UsageError(
            f"{part.name} has values that uint16 can't hold; expected whole numbers of 0 to "
            f"{LARGEST_NUMBER}"
        )
    return numbers.to(torch.uint16)


def _int8(name: str, values: Tensor) -> dict[str, Tensor]:
    scale = _scale(values.abs().amax(dim=-1), INT8_STEPS)
    steps = _steps(values, scale).clamp_(-INT8_STEPS, INT8_STEPS)
    return {name: steps.to(torch.int8), f"{name}_scale": scale}


def _affine8(name: str, values: Tensor) -> dict[str, Tensor]:
    offset = values.amin(dim=-1)
    scale = _scale(values.amax(dim=-1) - offset, AFFINE_STEPS)
    steps = _steps(values - offset[..., None], scale).clamp_(0, AFFINE_STEPS)
    return {name: steps.to(torch.uint8), f"{name}_scale": scale, f"{name}_offset": offset}


def _scale(extent: Tensor, steps: int) -> Tensor:
    # by a tensor: a division by a number may become a product with its inverse
    scale = extent / torch.full_like(extent, steps)
    return torch.where(scale < float(SMALLEST_SCALE), torch.zeros_like(scale), scale)


def _steps(values: Tensor, scale: Tensor) -> Tensor:
    divisor = torch.where(scale == 0, torch.full_like(scale, float("inf")), scale)
    return torch.round(values / divisor[..., None])
