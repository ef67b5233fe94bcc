"""The student's weights in an encoder of segmentation-models-pytorch, and what it then computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models.feature_tap import noise_batch
from trainer.models.tails import MAP, SEQUENCE, from_tokens, to_tokens
from trainer.models.taps import OUTPUT, Listener, Tap

LARGEST_DIFFERENCE = 1e-5  # of the encoder's maps from the student's, relative above 1


def load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], arch: str) -> None:
    """Give an encoder the student's weights, all of them that it has a place for.

    timm's networks of features flatten the names of sequences (`stages.0` -> `stages_0`), and smp
    puts `model.` before them.

    Raises:
        UsageError: a tensor of the encoder that the student has none for.
    """
    places = encoder.state_dict()
    flat = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    found = {name: flat.get(name.removeprefix("model.").replace(".", "_")) for name in places}
    wrong = [n for n, t in found.items() if t is None or t.shape != places[n].shape]
    if wrong:
        raise UsageError(
            f"{len(wrong)} of {len(places)} tensors of the encoder for {arch} are none of the "
            f"student's, such as {wrong[0]}: take another student"
        )
    # not the encoder's own load_state_dict, which changes the mapping it is given
    nn.Module.load_state_dict(encoder, found)


@torch.no_grad()
def check_encoder(encoder: nn.Module, student: nn.Module, input_size: int, arch: str) -> None:
    """See that every map of an encoder (stride 32) is one that the student computes itself.

    Raises:
        UsageError: one differs from all of the student's maps of its shape by more than
            LARGEST_DIFFERENCE.
    """
    own: dict[str, Tensor] = {}
    names = [name for name, _ in student.named_modules() if name]
    listener = Listener(student, [Tap(name, name, OUTPUT, _as_values) for name in names])
    listener.found = own
    images = noise_batch(input_size)[:1]
    was_training = student.training
    try:
        student.eval()(images)
    finally:
        listener.close()
        student.train(was_training)
    was_training = encoder.training
    maps = encoder.eval()(images)[1:]
    encoder.train(was_training)
    for number, found in enumerate(maps, start=1):
        if not found.numel():  # smp's placeholder where a network has no map of half the size
            continue
        limit = LARGEST_DIFFERENCE * max(1.0, float(found.abs().max()))
        alike = [m for m in _in_all_orders(own, found.shape) if m.shape == found.shape]
        near = [float((m - found).abs().max()) for m in alike]
        if not near or min(near) > limit:
            raise UsageError(
                f"the encoder for {arch} does not compute what the student does: map {number} "
                f"differs by {min(near, default=float('inf')):.1e}; take another student"
            )


def _in_all_orders(maps: Mapping[str, Tensor], shape: torch.Size) -> list[Tensor]:
    """Maps as they are; those with channels last, and the last tokens of sequences, put so."""
    found = []
    for value in maps.values():
        if value.ndim == 4:
            found += [value, value.permute(0, 3, 1, 2)]
        elif value.ndim == 3 and value.shape[1] >= shape[2:].numel():
            tokens = to_tokens(value, SEQUENCE, (shape[2], shape[3]))
            found.append(from_tokens(tokens, MAP, (shape[2], shape[3])))
    return found


def _as_values(value: Any) -> Tensor:
    """A copy of a module's output: a map or a sequence of tokens; nothing where it is neither."""
    if not isinstance(value, Tensor) or value.ndim not in (3, 4):
        return torch.empty(0)
    return value.detach().clone()
