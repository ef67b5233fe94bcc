"""A loaded teacher: a frozen network in eval mode, for ever."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelgen.fitting import load_into
from labelgen.grammar import FOLDER
from labelgen.libraries import FOLDER_WEIGHTS
from labelgen.teachers import TeacherSpec, resolve, unavailable
from labelgen.weights import read_weights, tensor_digest
from storage.errors import TeacherError, UsageError
from storage.images import class_order_hash

if TYPE_CHECKING:
    import torch
    from torch import nn

    from storage.codecs import TopKCodec
    from storage.teacher_record import TeacherRecord

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A network ready to label.

    Attributes:
        model: uint8 crops are normalised outside; takes float [B, 3, S, S] with the channels in
            spec.channel_order, gives [B, C] (an ensemble's: log of the mean probability, float32).
        precision: one of PRECISIONS; bf16 and fp16 run under autocast.
        digest: hex SHA-256 of its tensors (labelgen.weights.tensor_digest), those of dropped
            classes included; an ensemble's: labelgen.ensemble.ensemble_digest.
        members: an ensemble's teachers, whose networks are inside `model`; () for one network.
    """

    spec: TeacherSpec
    model: nn.Module
    device: torch.device
    precision: str
    digest: str
    members: tuple[Teacher, ...] = ()

    def record(self, *, codec: TopKCodec, batch_size: int) -> TeacherRecord:
        """What a store keeps about this teacher."""
        from storage.teacher_record import TeacherRecord

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
            channel_order=spec.channel_order,
            class_offset=spec.class_offset,
            revision=spec.revision,
            members=tuple(member.describe() for member in self.members),
        )

    def describe(self) -> dict[str, Any]:
        """What a store keeps about one network of an ensemble."""
        spec = self.spec
        return {
            "spec": spec.canonical,
            "library": spec.library,
            "version": spec.version,
            "digest": self.digest,
            "licence": spec.licence,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "channel_order": spec.channel_order,
            "class_offset": spec.class_offset,
            "revision": spec.revision,
        }


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
    load = _load_ensemble if spec.members else _load
    return load(spec, target, precision)


def _load(spec: TeacherSpec, device: torch.device, precision: str) -> Teacher:
    model = _build(spec)
    digest = tensor_digest(model.state_dict())
    if spec.class_offset:
        _drop_classes(model, spec)
    return wrap_model(model, spec, device, precision, digest)


def _load_ensemble(spec: TeacherSpec, device: torch.device, precision: str) -> Teacher:
    from labelgen.ensemble import MeanOfProbabilities, ensemble_digest

    members = tuple(_load(member, device, precision) for member in spec.members)
    model = MeanOfProbabilities([member.model for member in members], spec.members)
    return wrap_model(model, spec, device, precision, ensemble_digest(members), members)


def wrap_model(
    model: nn.Module,
    spec: TeacherSpec,
    device: torch.device,
    precision: str,
    digest: str,
    members: tuple[Teacher, ...] = (),
) -> Teacher:
    """Freeze a built network and check that it gives [B, C] logits at its input size."""
    import torch

    model = model.eval().requires_grad_(False)
    model = model.to(device).to(memory_format=torch.channels_last)
    teacher = Teacher(
        spec=spec, model=model, device=device, precision=precision, digest=digest, members=members
    )
    _check_output(teacher)
    return teacher


def _build(spec: TeacherSpec) -> nn.Module:
    """The network with its weights, background classes still on."""
    from trainer.models import create

    outputs = spec.num_classes + spec.class_offset
    if spec.file is not None:
        model = create(spec.arch, outputs)
        load_into(model, spec.file, spec.arch)
        return model
    weights = spec.weights or ""
    source, _, folder = weights.partition(":")
    if source == FOLDER:
        return _build_from_folder(spec, Path(folder), outputs)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces downloads on stdout
            if spec.library == "torchvision":
                from torchvision import models

                return models.get_model(  # type: ignore[no-any-return]
                    spec.arch.removeprefix("tv:"), weights=spec.weights
                )
            import timm

            # every output: timm would drop the classes that its configuration says, ours are kept
            # to be dropped in one place
            every = {"num_classes": outputs, "label_offset": 0} if spec.class_offset else None
            return timm.create_model(weights, pretrained=True, pretrained_cfg_overlay=every)
    except (OSError, RuntimeError, ValueError) as error:  # offline errors have no common base
        raise unavailable(spec, error) from error


def _build_from_folder(spec: TeacherSpec, folder: Path, outputs: int) -> nn.Module:
    """timm builds what config.json says; the tensors go in as those of any other file."""
    import timm

    file = read_weights(folder / FOLDER_WEIGHTS)
    model = timm.create_model(f"{FOLDER}:{folder}", pretrained=False, num_classes=outputs)
    load_into(model, file, spec.arch)
    return model


def _drop_classes(model: nn.Module, spec: TeacherSpec) -> None:
    """Cut the first `class_offset` outputs off the head.

    Raises:
        TeacherError: the head is no linear layer or convolution with as many outputs.
    """
    from torch import nn

    outputs = spec.num_classes + spec.class_offset
    heads = [
        module
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] == outputs
    ]
    if not heads:
        raise TeacherError(
            f"teacher {spec.canonical} has no linear head of {outputs} outputs to drop "
            f"{spec.class_offset} of: leave out --class-offset"
        )
    head = heads[-1]
    for parameter in (head.weight, head.bias):
        if parameter is not None:
            parameter.data = parameter.data[spec.class_offset :].clone()
    if isinstance(head, nn.Linear):
        head.out_features = spec.num_classes
    else:
        head.out_channels = spec.num_classes


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
