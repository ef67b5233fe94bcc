"""What a training run is, as frozen values checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.checks import require
from trainer.method_config import (
    FerkdConfig,
    FkdSslConfig,
    HsakdConfig,
    HsakdTeacherConfig,
    KdepConfig,
    MealConfig,
    MixConfig,
    ScalekdConfig,
)
from trainer.pass_config import OrderConfig, ResolutionConfig
from trainer.step_config import LoopConfig, OptimConfig, ScheduleConfig

METHODS = ("fkd", "ferkd", "fkd-ssl", "hsakd", "hsakd-online", "hsakd-teacher", "kdep", "meal",
           "scalekd", "supervised")  # fmt: skip
FOLDER_METHODS = ("hsakd-online", "hsakd-teacher", "supervised")  # learn the folder's own classes
LABEL_METHODS = ("fkd", "ferkd", "meal", "scalekd")  # learn from top-k labels
# what methods learn from beside, or alone (fkd-ssl: what `fkd_ssl.kind` says)
TARGET_KINDS = {"fkd-ssl": "dense", "hsakd": "heads", "kdep": "features", "scalekd": "tokens"}
FULL = "full"  # the label type that is read from a dense target
FULL_METHODS = ("fkd", "ferkd", "meal")  # that can read it
PRECISIONS = ("fp32", "bf16")
EPOCH_COUNTINGS = ("passes", "views")
LABEL_TAILS = ("mean", "even")
TRACKERS = ("tensorboard", "wandb")  # trainer.trackers
LABEL_TYPES = ("marginal_smoothing", "marginal_renorm", "smoothing", "hard", FULL)


def default_precision(cuda: bool) -> str:
    """Of a forward pass on a GPU, or else on a CPU."""
    return "bf16" if cuda else "fp32"


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How stored labels are read (FKD's label types are decodings of one store).

    tail: `mean`, the image's mean tail, or `even`; None: what the store measured to be nearer
        (storage.tail_choice), and `even` where no mean tail serves.
    target: of label_type `full`, which dense logits of a store with several.
    """

    teacher: str | None = None  # None: the store's only one
    label_type: str = "marginal_smoothing"
    top_k: int | None = None  # None: all that are stored
    temperature: float = 1.0  # of the student's softmax
    tail: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        require(
            self.label_type in LABEL_TYPES,
            f"--label-type is {self.label_type!r}; expected one of {', '.join(LABEL_TYPES)}",
        )
        require(
            self.tail is None or self.tail in LABEL_TAILS,
            f"--label-tail is {self.tail!r}; expected one of {', '.join(LABEL_TAILS)}",
        )
        require(
            self.temperature > 0, f"--temperature is {self.temperature}; expected a positive number"
        )
        require(
            self.label_type != FULL or self.top_k is None,
            f"--label-k is {self.top_k}, and --label-type {FULL} has all classes: leave one out",
        )


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The network and the pixels it takes; written into its safetensors file."""

    arch: str
    num_classes: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    classes: tuple[str, ...] | None

    def __post_init__(self) -> None:
        require(self.num_classes >= 1, f"the student has {self.num_classes} classes")
        require(8 <= self.input_size <= 4096, f"--size is {self.input_size}; expected 8 to 4096")
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(
                len(values) == 3 and (name == "mean" or min(values) > 0),
                f"student.{name} is {list(values)}; expected three numbers"
                f"{', all above 0' * (name == 'std')}",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StudentConfig:
        """Inverse of `to_json` (lists become tuples)."""
        classes = values.get("classes")
        return cls(
            arch=str(values["arch"]),
            num_classes=int(values["num_classes"]),
            input_size=int(values["input_size"]),
            mean=_triple(values["mean"]),
            std=_triple(values["std"]),
            interpolation=str(values["interpolation"]),
            classes=None if classes is None else tuple(str(name) for name in classes),
        )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class RunChoices:
    """Settings of a run outside any section, as a recipe names them; None: chosen by the data."""

    method: str | None = None
    epochs: int | None = None
    batch_size: int | None = None  # crops per optimiser step
    views_per_image: int | None = None
    epoch_counting: str = "passes"  # or `views`, FKD's: a pass with V views counts V
    precision: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StudentChoices:
    """Section `student`: which network, for crops of which side; None: chosen by the data.

    init: safetensors file that its weights begin from; None: random.
    mean, std: of the pixels it is shown, by channel and in 0 to 1; None: the teacher's, else
        ImageNet's.
    """

    arch: str | None = None
    input_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    init: str | None = None


# Sections of a recipe, and of a run's config, by name.
SECTIONS: dict[str, Any] = {
    "student": StudentChoices,
    "labels": LabelConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "order": OrderConfig,
    "resolution": ResolutionConfig,
    "loop": LoopConfig,
    "mix": MixConfig,
    "ferkd": FerkdConfig,
    "fkd_ssl": FkdSslConfig,
    "meal": MealConfig,
    "kdep": KdepConfig,
    "hsakd": HsakdConfig,
    "hsakd_teacher": HsakdTeacherConfig,
    "scalekd": ScalekdConfig,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run; two runs with equal configs on equal data are equal."""

    method: str
    student: StudentConfig
    labels: LabelConfig | None
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    order: OrderConfig = field(default_factory=OrderConfig)
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    ferkd: FerkdConfig = field(default_factory=FerkdConfig)
    fkd_ssl: FkdSslConfig = field(default_factory=FkdSslConfig)
    meal: MealConfig = field(default_factory=MealConfig)
    kdep: KdepConfig = field(default_factory=KdepConfig)
    hsakd: HsakdConfig = field(default_factory=HsakdConfig)
    hsakd_teacher: HsakdTeacherConfig = field(default_factory=HsakdTeacherConfig)
    scalekd: ScalekdConfig = field(default_factory=ScalekdConfig)
    epochs: int
    batch_size: int  # crops per optimiser step
    views_per_image: int
    epoch_counting: str = "passes"
    seed: int = 0
    precision: str = "fp32"
    init: str | None = None  # SHA-256 of the file that the student's weights begin from
    data_identity: str  # the store's Merkle root, or the beton's fingerprint without a store

    def __post_init__(self) -> None:
        require(
            self.method in METHODS,
            f"--method is {self.method!r}; expected one of {', '.join(METHODS)}",
        )
        require(
            self.precision in PRECISIONS,
            f"--precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}",
        )
        require(
            self.epoch_counting in EPOCH_COUNTINGS,
            f"epoch_counting is {self.epoch_counting!r}; expected one of "
            f"{', '.join(EPOCH_COUNTINGS)}",
        )
        require(self.epochs >= 1, f"--epochs is {self.epochs}; expected at least 1")
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; expected at least 1")
        require(
            self.method not in LABEL_METHODS or self.labels is not None,
            f"--method {self.method} learns from a label store: give one with --labels",
        )
        require(
            self.labels is None or self.labels.label_type != FULL or self.method in FULL_METHODS,
            f"--label-type {FULL} is for {', '.join(FULL_METHODS)}; --method {self.method} reads "
            "another target",
        )
        require(
            self.mix.kind == "none" or self.labels is not None,
            f"mix.kind {self.mix.kind} mixes stored labels: give a label store with --labels",
        )
        require(
            self.mix.kind == "none" or self.mix.off_epochs < self.epochs,
            f"mix.off_epochs is {self.mix.off_epochs} of {self.epochs} epochs, and nothing would "
            "be mixed: train for more epochs, or set it lower",
        )
        require(
            self.method != "hsakd-teacher" or self.hsakd_teacher.mode == "joint" or bool(self.init),
            "hsakd_teacher.mode frozen keeps a finished network as it is: give its weights with "
            "--init",
        )
        require(
            self.mix.kind == "none" or self.method != "scalekd",
            f"mix.kind is {self.mix.kind}, and tokens of mixed crops aren't stored: leave it none",
        )
        require(
            self.resolution.start is None or TARGET_KINDS.get(self.method) != "tokens",
            f"resolution.start is {self.resolution.start}, and --method {self.method} learns from "
            "tokens of a fixed grid: leave the resolution section out",
        )
        require(
            not self.loop.freeze or self.method == "supervised",
            f"loop.freeze is for --method supervised; --method {self.method} teaches all of the "
            "student",
        )
        require(
            self.mix.partner == "batch" or self.views_per_image > 1,
            "mix.partner image needs several crops of an image in a batch: give --views-per-image "
            "2 or more",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for checkpoints and run folders."""
        return asdict(self)


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A run's config as an older release wrote it, with the settings that came later.

    Their defaults are what the releases before them did.
    """
    known = {
        name: asdict(config()) | (values.get(name) or {})
        for name, config in SECTIONS.items()
        if name != "student" and (name != "labels" or values.get("labels"))
    }
    return values | known


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config values under dotted names: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Every setting in which two config trees differ, as `name: ours, not theirs`."""
    a, b = flatten(ours), flatten(theirs)
    return [
        f"{name}: {a.get(name)!r}, not {b.get(name)!r}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
