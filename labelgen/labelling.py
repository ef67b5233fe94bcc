"""What becomes of one batch: crops in, codes of labels and targets out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelgen.batch_size import Backoff
from labelgen.blocks import BlockBuffer, Positions
from labelgen.forward import Forward, Outputs, take_top_k
from labelgen.plan import Batch
from labelgen.tails import DenseOutputs
from labelgen.teacher import Teacher
from storage.codecs import TopKCodec
from storage.errors import TeacherError
from storage.images import ImageStatus

if TYPE_CHECKING:
    from labelgen.extract.base import Extractor
    from labelgen.target_plans import TargetPlan

# Fewer equal outputs than this may be chance (tiny data sets of near-copies).
CONSTANT_CROPS = 8
LOGITS = "logits"


@dataclass(frozen=True)
class Launched:
    """A batch whose forward pass has been started; on a GPU it may not have ended.

    Attributes:
        pixels: uint8 [B, S, S, 3], kept until the outputs have been looked at.
        outputs: what the extractor gave, by name. labels: by teacher.
        done: of the GPU's work on this batch.
    """

    batch: Batch
    pixels: npt.NDArray[np.uint8]
    outputs: dict[str, Tensor]
    labels: dict[str, Outputs]
    plans: Sequence[TargetPlan]
    done: torch.cuda.Event | None


class Labeller:
    """Forwards batches and turns their outputs into codes.

    On a GPU, `finish` of one batch does its work on a stream of its own, beside the forward pass
    of the batch launched after it.

    Args:
        codecs: of the labels wanted, by teacher: of the teacher, or of an ensemble and its members.
        plans: targets wanted; each for the views below its `views`.
        compiled: run the network through torch.compile.
    """

    def __init__(
        self,
        teacher: Teacher,
        codecs: Mapping[str, TopKCodec],
        plans: Sequence[TargetPlan] = (),
        *,
        compiled: bool = False,
    ) -> None:
        self._teacher, self._codecs, self._plans = teacher, codecs, plans
        self._forward, self._compiled = Forward(teacher, 1, compiled), compiled
        self._backoff = Backoff()
        self._extractors: dict[frozenset[str], Extractor] = {}
        on_gpu = teacher.device.type == "cuda"
        self._side = torch.cuda.Stream(teacher.device) if on_gpu else None  # type: ignore[no-untyped-call]

    @property
    def depth(self) -> int:
        """Batches that may be launched before the first of them is finished, less one."""
        return 0 if self._side is None else 1

    @property
    def parts(self) -> int:
        """Parts that a batch is forwarded in; more than 1 once memory ran out."""
        return self._backoff.parts

    def launch(self, batch: Batch, pixels: npt.NDArray[np.uint8]) -> Launched:
        """Start a batch's forward pass.

        Args:
            pixels: uint8 [B, S, S, 3]; what lies beyond the batch's crops is set to 0. They must
                stay as they are until `finish`.
        Raises:
            TeacherError: the device fails, or has no memory for a single crop.
        """
        pixels[batch.count :] = 0  # the last batch of a span has full size, always
        plans = [plan for plan in self._plans if plan.views >= batch.span.stop]
        wanted = frozenset(name for plan in plans for name in plan.outputs_needed) - {LOGITS}
        with self._device_errors():
            outputs = self._run(self._forward.upload(pixels), wanted)
            labels = {
                name: take_top_k(outputs[self._logits_of(name)], codec.top_k)
                for name, codec in self._codecs.items()
            }
            done = torch.cuda.Event() if self._side else None  # type: ignore[no-untyped-call]
            if done is not None:
                done.record()
        return Launched(batch, pixels, outputs, labels, plans, done)

    @torch.inference_mode()
    def _run(self, batch: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        if wanted and wanted not in self._extractors:
            from labelgen.extract.base import extractor_for

            self._extractors[wanted] = extractor = extractor_for(self._teacher, wanted)
            if self._compiled:
                extractor.compile(dynamic=False)

        def forward(part: Tensor) -> dict[str, Tensor]:
            normalised = self._forward.normalise_tensor(part)
            if wanted:
                with self._forward.autocast():
                    return self._extractors[wanted](normalised)
            if len(self._codecs) <= 1:
                return {LOGITS: self._forward.logits(normalised)}
            found = self._forward.member_logits(normalised)
            return {self._logits_of(name): logits for name, logits in found.items()}

        return self._backoff(forward, batch)

    def _logits_of(self, name: str) -> str:
        return LOGITS if name == self._teacher.spec.name else f"{LOGITS}/{name}"

    def finish(
        self, launched: Launched, buffer: BlockBuffer, keys: Sequence[str],
        dense: Mapping[str, DenseOutputs],
    ) -> int:  # fmt: skip
        """Wait for a batch's outputs, check them and put their codes into the block's buffer.

        Args:
            keys: of all images. dense: takes what the labels' certificates need, by teacher.
        Returns:
            crops of sound images.
        Raises:
            TeacherError: NaN, infinite or constant outputs, or the device fails.
        """
        batch = launched.batch
        images, views = positions(batch)
        good = buffer.status[images] == ImageStatus.OK
        with self._device_errors(), self._beside(launched), torch.inference_mode():
            for name, outputs in launched.labels.items():
                values = outputs.values[: batch.count].cpu().numpy()
                index = outputs.index[: batch.count].cpu().numpy()
                self._check(values, index, launched, good, keys, buffer.rows.start + images)
                dense[name].add(images, views, good, outputs)
                values = np.where(good[:, None], values, 0)
                rest = np.where(good, outputs.rest[: batch.count].cpu().numpy(), 1)
                # k numbers a crop: the host codes them while the device forwards the next batch
                labels = self._codecs[name].encode_topk(values, index, rest)
                buffer.add_labels(name, images, views, labels)
            for plan in launched.plans:
                self._add_target(plan, launched, buffer, images, views, good, keys)
        return int(good.sum())

    def _add_target(
        self, plan: TargetPlan, launched: Launched, buffer: BlockBuffer, images: Positions,
        views: Positions, good: npt.NDArray[np.bool_], keys: Sequence[str],
    ) -> None:  # fmt: skip
        rows = np.flatnonzero(good)
        if not len(rows):
            return
        picked = torch.from_numpy(rows).to(self._teacher.device)
        outputs = {name: launched.outputs[name][picked] for name in plan.outputs_needed}
        for name, values in outputs.items():
            finite = torch.isfinite(values).flatten(1).all(dim=1).cpu().numpy()
            if not finite.all():
                key = keys[buffer.rows.start + images[rows[int(finite.argmin())]]]
                raise self._not_finite(f"{name} outputs", key)
        buffer.add_target(plan.record.path, images[rows], views[rows], plan.encode(outputs))

    @contextmanager
    def _beside(self, launched: Launched) -> Iterator[None]:
        """On a GPU: on the side stream, once the batch's forward pass has ended."""
        if self._side is None or launched.done is None:
            yield
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(launched.done)
            yield
            self._side.synchronize()  # the batch's tensors must not be freed before

    @contextmanager
    def _device_errors(self) -> Iterator[None]:
        """What the device's driver (or a compiler) raises becomes one line with the way on."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            other = "without --compile" if self._compiled else "with another --device"
            raise TeacherError(
                f"the forward pass of {self._teacher.spec.canonical} failed on "
                f"{self._teacher.device} ({reason[:160]}): finished blocks are written; run the "
                f"same command again to resume, {other} if it happens again"
            ) from error

    def _check(
        self, values: npt.NDArray[np.float32], index: npt.NDArray[np.int64], launched: Launched,
        good: npt.NDArray[np.bool_], keys: Sequence[str], rows: Positions,
    ) -> None:  # fmt: skip
        broken = np.flatnonzero(good & ~np.isfinite(values).all(axis=1))
        if len(broken):
            raise self._not_finite("outputs", keys[rows[broken[0]]])
        kept = np.flatnonzero(good)
        pixels = launched.pixels[: launched.batch.count]
        if _is_constant(values[kept], index[kept]) and _differ(pixels[kept]):
            raise TeacherError(
                f"teacher {self._teacher.spec.canonical} gives the same output for {len(kept)} "
                f"different crops from {keys[rows[kept[0]]]} on: check its weights, mean and std"
            )

    def _not_finite(self, what: str, key: str) -> TeacherError:
        return TeacherError(
            f"teacher {self._teacher.spec.canonical} gives NaN or infinite {what}, first for "
            f"{key}: check its weights, and --precision ({self._teacher.precision}; fp16 "
            "overflows first)"
        )


def positions(batch: Batch) -> tuple[Positions, Positions]:
    """Number in the block of each crop's image, and its view: [count] each."""
    places = np.arange(batch.first, batch.first + batch.count, dtype=np.intp)
    return places // len(batch.span), batch.span.start + places % len(batch.span)


def _is_constant(values: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> bool:
    return len(values) >= CONSTANT_CROPS and bool(
        (values == values[0]).all() and (index == index[0]).all()
    )


def _differ(pixels: npt.NDArray[np.uint8]) -> bool:
    return bool((pixels != pixels[0]).any())
