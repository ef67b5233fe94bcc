"""How `transfer detect` fine-tunes: published settings by name, and what goes over them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainer.checks import require
from trainer.config import PRECISIONS
from trainer.step_config import OptimConfig, ScheduleConfig
from transfer.detect.data import Sizes
from transfer.detect.presets import PRESETS, DetectorConfig, Preset
from transfer.options import TaskOptions

PUBLISHED_BATCH = 16  # photos, for which the learning rates are
RATES = {"sgd": 0.02, "adamw": 1e-4}
WARMUP_START = 1e-3  # share of the peak where the warm-up begins
TEST_SIDE, LONGEST = 800, 1333


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """What the user chose beside `TaskOptions`; None: as the preset has it.

    Attributes:
        iterations: length instead of epochs; rounded up to whole epochs.
        milestones: where the rate falls to a tenth, in the unit of the length.
        warmup_epochs: epochs until the full rate.
        short_sides: in pixels, one drawn for each photo and epoch.
        skip_ignored: leave boxes that evaluation ignores out of training; None: COCO's crowds
            yes, VOC's difficult ones no, as detectron2.
        overlays: validation photos to draw. evaluate_every: epochs; None: after the last alone.
    """

    preset: str = "short"
    detector: str = "faster-rcnn"
    head: str | None = None
    norm: str | None = None
    freeze_stages: int = 0
    width: int = 256
    anchor: int = 32
    iterations: int | None = None
    milestones: tuple[float, ...] | None = None
    warmup_epochs: float | None = None
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    short_sides: tuple[int, ...] | None = None
    test_side: int | None = None
    longest: int = LONGEST
    flip: float = 0.5
    skip_ignored: bool | None = None
    overlays: int = 8
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        require(
            self.preset in PRESETS,
            f"--preset is {self.preset!r}; expected one of {', '.join(PRESETS)}",
        )
        require(self.optimizer in RATES, f"--optimizer is {self.optimizer!r}; expected sgd, adamw")
        require(0 <= self.flip <= 1, f"--flip is {self.flip}; expected a probability")


@dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """How every start is fine-tuned, with nothing left open but the seed."""

    detector: DetectorConfig
    sizes: Sizes
    flip: float
    skip_ignored: bool
    epochs: int
    batch_size: int
    optim: OptimConfig
    schedule: ScheduleConfig
    precision: str
    clip_norm: float | None
    evaluate_every: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def batch_of(task: TaskOptions) -> int:
    """Photos of a step, of all processes together."""
    return task.batch_size or PUBLISHED_BATCH


def resolve(
    task: TaskOptions, options: DetectOptions, kind: str, epoch_steps: int, cuda: bool
) -> DetectSettings:
    """Settings of a run.

    Args:
        kind: of the training set, `coco` or `voc`. epoch_steps: steps of an epoch.
        cuda: whether it runs on a GPU, where bf16 is the default.
    Raises:
        UsageError: values that don't fit, each by its option's name.
    """
    preset = PRESETS[options.preset]
    require(
        task.epochs is None or options.iterations is None,
        "--epochs and --iterations both say how long: give one",
    )
    head = options.head or ("fpn" if options.detector != "faster-rcnn" else preset.head)
    test = options.test_side or max(options.short_sides or (TEST_SIDE,))
    epochs = _epochs(task, options, preset, epoch_steps)
    rate = RATES[options.optimizer] * batch_of(task) / PUBLISHED_BATCH
    lr = rate if task.lr is None else task.lr
    precision = task.precision_on(cuda)
    require(precision in PRECISIONS, f"--precision is {precision!r}")
    return DetectSettings(
        detector=DetectorConfig(
            detector=options.detector,
            head=head,
            norm=options.norm or preset.norm,
            freeze_stages=options.freeze_stages,
            width=options.width,
            anchor=options.anchor,
        ),
        sizes=Sizes(
            train=options.short_sides or preset.short_sides, test=test, longest=options.longest
        ),
        flip=options.flip,
        skip_ignored=kind == "coco" if options.skip_ignored is None else options.skip_ignored,
        epochs=epochs,
        batch_size=batch_of(task),
        optim=OptimConfig(
            name=options.optimizer,
            lr=lr,
            nesterov=False,
            weight_decay=options.weight_decay,
            decay_vectors=False,
        ),
        schedule=_schedule(options, preset, epochs, epoch_steps, lr),
        precision=precision,
        clip_norm=options.clip_norm,
        evaluate_every=options.evaluate_every or epochs,
    )


def _epochs(task: TaskOptions, options: DetectOptions, preset: Preset, epoch_steps: int) -> int:
    iterations = options.iterations or (None if task.epochs else preset.iterations)
    if iterations is not None:
        return math.ceil(iterations / epoch_steps)
    return task.epochs or preset.epochs


def _schedule(
    options: DetectOptions, preset: Preset, epochs: int, epoch_steps: int, lr: float
) -> ScheduleConfig:
    if options.milestones is None:
        milestones = tuple(share * epochs for share in preset.falls)
    else:
        unit = epoch_steps if options.iterations else 1
        milestones = tuple(place / unit for place in options.milestones)
    warmup = options.warmup_epochs
    if warmup is None:
        warmup = min(preset.warmup / epoch_steps, epochs / 2)  # of a run that is shorter than it
    return ScheduleConfig(
        kind="step",
        milestones=milestones,
        warmup_epochs=warmup,
        warmup_lr=lr * WARMUP_START,
    )
