"""How `transfer classify` fine-tunes: published settings by data set, and what goes over them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import UsageError
from storage.views import PaddedCrop, RandomResizedCrop
from trainer.checks import require
from trainer.config import PRECISIONS, StudentConfig
from trainer.step_config import SCHEDULES
from transfer.options import TaskOptions

TOP1, CLASS_MEAN = "top1", "class_mean"
METRICS = (TOP1, CLASS_MEAN)
VIEWS = ("random-resized-crop", "padded-crop")
PIXELS = ("student", "published")
NATIVE_SIDE = 32  # of CIFAR networks, which learn from padded crops

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is published for a data set; by default what KDEP's scripts have for all four of theirs.

    They are the best settings of Salman et al. 2020 (arXiv:2007.08489): SGD without Nesterov's
    change, weight decay on all parameters, a tenth of the rate after each third of the epochs.

    Attributes:
        metric: the headline. pixels: mean and deviation that the network was shown, None where
            none is known.
    """

    metric: str = TOP1
    epochs: int = 150
    batch_size: int = 64
    lr: float = 0.001
    weight_decay: float = 5e-4
    pixels: tuple[Triple, Triple] | None = None


_RAW: tuple[Triple, Triple] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PRESETS = {
    "cifar100": Preset(pixels=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))),
    "dtd": Preset(pixels=_RAW),
    "caltech256": Preset(pixels=_RAW),
    "cub200": Preset(pixels=_RAW),
    "flowers102": Preset(metric=CLASS_MEAN),
    "pets": Preset(metric=CLASS_MEAN),
}


def preset_of(data: str) -> Preset:
    """The preset of a location: by the data set's name, else KDEP's common settings."""
    return PRESETS.get(data.partition(":")[0], Preset())


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """What the user chose beside `TaskOptions`; None: as published, or as the student needs.

    Attributes:
        size: side of the crops. views: how they are drawn, one of VIEWS. scale: share of the
            image that a random crop shows. pixels: whose mean and deviation. sweep: learning
            rates to choose from on held-out training images; sweep_epochs: of these runs.
    """

    size: int | None = None
    metric: str | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "step"
    step_epochs: float | None = None
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    views: str | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    padding: int = 4
    pixels: str = PIXELS[0]
    freeze: bool = False
    sweep: tuple[float, ...] = ()
    sweep_epochs: int | None = None
    evaluate_every: int | None = None
    loader: str = "ffcv"


@dataclass(frozen=True, kw_only=True)
class ClassifySettings:
    """How one student is fine-tuned, with nothing left open but the seed."""

    metric: str
    size: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    momentum: float
    nesterov: bool
    schedule: str
    step_epochs: float
    gamma: float
    warmup_epochs: float
    sampler: RandomResizedCrop | PaddedCrop
    pixels: tuple[Triple, Triple] | None  # None: every start's own
    freeze: bool
    evaluate_every: int
    precision: str
    sweep: tuple[float, ...] = ()
    sweep_epochs: int = field(default=1)

    def __post_init__(self) -> None:
        require(self.metric in METRICS, f"--metric is {self.metric!r}; expected one of "
                f"{', '.join(METRICS)}")  # fmt: skip
        require(self.schedule in SCHEDULES, f"--schedule is {self.schedule!r}; expected one of "
                f"{', '.join(SCHEDULES)}")  # fmt: skip
        require(self.precision in PRECISIONS, f"--precision is {self.precision!r}; expected one of "
                f"{', '.join(PRECISIONS)}")  # fmt: skip
        require(self.sweep_epochs >= 1, f"--sweep-epochs is {self.sweep_epochs}; expected >= 1")
        require(
            len(set(self.sweep)) == len(self.sweep) and all(lr > 0 for lr in self.sweep),
            f"--sweep is {list(self.sweep)}; expected different learning rates above 0",
        )
        require(
            len(self.sweep) != 1, f"--sweep has one rate: give it as --lr {self.lr}, or several"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; with a sweep there is no one learning rate."""
        rate = None if self.sweep else self.lr
        return asdict(self) | {"sampler": self.sampler.to_json(), "lr": rate}

    def fit_settings(self, student: StudentConfig) -> dict[str, Any]:
        """Settings of `trainer fit` by dotted name.

        Args:
            student: how the start is fed.
        """
        mean, std = self.pixels or (student.mean, student.std)
        return {
            "method": "supervised",
            "student.arch": student.arch,
            "student.input_size": self.size,
            "student.mean": list(mean),
            "student.std": list(std),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "views_per_image": 1,
            "precision": self.precision,
            "optim.name": "sgd",
            "optim.lr": self.lr,
            "optim.momentum": self.momentum,
            "optim.nesterov": self.nesterov,
            "optim.weight_decay": self.weight_decay,
            "optim.decay_vectors": True,
            "schedule.kind": self.schedule,
            "schedule.step_epochs": self.step_epochs,
            "schedule.gamma": self.gamma,
            "schedule.warmup_epochs": self.warmup_epochs,
            "loop.freeze": self.freeze,
            "loop.evaluate_every": self.evaluate_every,
        }


def resolve(
    data: str, student: StudentConfig, task: TaskOptions, options: ClassifyOptions, *, cuda: bool
) -> ClassifySettings:
    """Fill in what the user left open.

    Args:
        cuda: whether the networks run on a GPU.
    Raises:
        UsageError: values out of range, or published pixels of a data set that has none here.
    """
    preset = preset_of(data)
    size = options.size or student.input_size
    epochs = task.epochs or preset.epochs
    if options.pixels == "published" and preset.pixels is None:
        known = ", ".join(name for name, one in PRESETS.items() if one.pixels)
        raise UsageError(f"--pixels published is known of {known}; {data} is none of them")
    decay = preset.weight_decay if options.weight_decay is None else options.weight_decay
    return ClassifySettings(
        metric=options.metric or preset.metric,
        size=size,
        epochs=epochs,
        batch_size=task.batch_size or preset.batch_size,
        lr=task.lr or preset.lr,
        weight_decay=decay,
        momentum=options.momentum,
        nesterov=options.nesterov,
        schedule=options.schedule,
        step_epochs=options.step_epochs or epochs / 3,  # 50 of the published 150
        gamma=options.gamma,
        warmup_epochs=options.warmup_epochs,
        sampler=_sampler(options, size),
        pixels=preset.pixels if options.pixels == "published" else None,
        freeze=options.freeze,
        evaluate_every=options.evaluate_every or max(1, epochs // 30),  # 5 of 150
        precision=task.precision_on(cuda),
        sweep=options.sweep,
        sweep_epochs=options.sweep_epochs or epochs,
    )


def _sampler(options: ClassifyOptions, size: int) -> RandomResizedCrop | PaddedCrop:
    views = options.views or (VIEWS[1] if size <= NATIVE_SIDE else VIEWS[0])
    if views == VIEWS[1]:
        return PaddedCrop(padding=options.padding)
    return RandomResizedCrop(scale=options.scale)
