"""A loaded teacher: a frozen network in eval mode, for ever."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labelgen.teachers import TeacherSpec, resolve, unavailable
from labelgen.weights import load_into, tensor_digest
from storage.errors import TeacherError, UsageError
from storage.images import class_order_hash

if TYPE_CHECKING:
    import torch
    from torch import nn

    from storage.codecs import TopKCodec
    from storage.format import TeacherRecord

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A network ready to label.

    Attributes:
        model: uint8 crops are normalised outside; takes float [B, 3, S, S], gives [B, C].
        precision: one of PRECISIONS; bf16 and fp16 run under autocast.
        digest: hex SHA-256 of its tensors (labelgen.weights.tensor_digest).
    """

    spec: TeacherSpec
    model: nn.Module
    device: torch.device
    precision: str
    digest: str

    def record(self, *, codec: TopKCodec, batch_size: int) -> TeacherRecord:
        """What a store keeps about this teacher."""
        from storage.format import TeacherRecord

        spec = self.spec
        return TeacherRecord(
            name=spec.name,
            spec=spec.canonical,
            library=spec.library,
            version=spec.version,
            arch=spec.arch,
            digest=self.digest,
            licence=spec.licence,
            input_size=spec.input_size,
            mean=spec.mean,
            std=spec.std,
            interpolation=spec.interpolation,
            num_classes=spec.num_classes,
            classes=spec.classes,
            class_order_hash=class_order_hash(spec.classes) if spec.classes else None,
            precision=self.precision,
            batch_size=batch_size,
            codec=codec,
        )


def load_teacher(spec: TeacherSpec | str, device: str = "auto", precision: str = "fp32") -> Teacher:
    """Build the network, load its weights, put it on the device and look at one output.

    Raises:
        UsageError: unknown device or precision.
        TeacherError: weights that can't be had or don't fit; outputs that aren't [B, C] logits.
    """
    from trainer.models.device import resolve_device

    if isinstance(spec, str):
        spec = resolve(spec)
    target = resolve_device(device)
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if target.type == "cpu" and precision in ("tf32", "fp16"):
        raise UsageError(f"--precision {precision} needs a GPU; on a CPU use fp32 or bf16")
    model = _build(spec)
    digest = tensor_digest(model.state_dict())
    return wrap_model(model, spec, target, precision, digest)


def wrap_model(
    model: nn.Module, spec: TeacherSpec, device: torch.device, precision: str, digest: str
) -> Teacher:
    """Freeze a built network and check that it gives [B, C] logits at its input size."""
    import torch

    model = model.eval().requires_grad_(False)
    model = model.to(device=device, memory_format=torch.channels_last)
    teacher = Teacher(spec=spec, model=model, device=device, precision=precision, digest=digest)
    _check_output(teacher)
    return teacher


def _build(spec: TeacherSpec) -> nn.Module:
    from trainer.models import create

    if spec.file is not None:
        model = create(spec.arch, spec.num_classes)
        load_into(model, spec.file, spec.arch)
        return model
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces downloads on stdout
            if spec.library == "torchvision":
                from torchvision import models

                return models.get_model(spec.arch.removeprefix("tv:"), weights=spec.weights)
            import timm

            return timm.create_model(spec.weights, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:  # offline errors have no common base
        raise unavailable(spec, error) from error


def _check_output(teacher: Teacher) -> None:
    import torch

    size, expected = teacher.spec.input_size, teacher.spec.num_classes
    probe = torch.zeros(2, 3, size, size, device=teacher.device)
    try:
        with torch.inference_mode():
            output = teacher.model(probe.contiguous(memory_format=torch.channels_last))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise TeacherError(
            f"teacher {teacher.spec.canonical} can't take {size}x{size} pixels "
            f"({reason[0] if reason else type(error).__name__}): give its input size with --size"
        ) from error
    if not torch.is_tensor(output) or output.shape != (2, expected):
        shape = list(output.shape) if torch.is_tensor(output) else type(output).__name__
        raise TeacherError(
            f"teacher {teacher.spec.canonical} gives {shape} for 2 crops; expected logits "
            f"[2, {expected}]: only classifiers can label"
        )
