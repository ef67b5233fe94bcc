"""What a training run is, as frozen values checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import UsageError

METHODS = ("fkd", "ferkd", "hsakd", "hsakd-online", "hsakd-teacher", "kdep", "meal", "scalekd",
           "supervised")  # fmt: skip
FOLDER_METHODS = ("hsakd-online", "hsakd-teacher", "supervised")  # learn the folder's own classes
LABEL_METHODS = ("fkd", "ferkd", "meal", "scalekd")  # learn from top-k labels
# what methods learn from beside, or alone
TARGET_KINDS = {"hsakd": "heads", "kdep": "features", "scalekd": "tokens"}
HSAKD_TEACHER_MODES = ("joint", "frozen")
KDEP_ALIGNMENTS = ("svd", "linear")
KDEP_SCALINGS = ("pts", "none")
SCALEKD_LOGITS = ("auto", "labels", "mean")
SCALEKD_TASKS = ("ce", "bce")
SCALEKD_NORMS = ("batch", "layer")
OPTIMIZERS = ("sgd", "adamw")  # or timm:NAME
SCHEDULES = ("cosine", "step", "linear", "constant")
PRECISIONS = ("fp32", "bf16")
EPOCH_COUNTINGS = ("passes", "views")
MIX_KINDS = ("none", "mixup", "cutmix", "both")
MIX_PARTNERS = ("batch", "image")
LABEL_TAILS = ("mean", "even")
TRACKERS = ("tensorboard", "wandb")  # trainer.trackers
LABEL_TYPES = ("marginal_smoothing", "marginal_renorm", "smoothing", "hard")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser: `sgd`, `adamw`, or `timm:NAME` for any of timm's.

    decay_vectors: whether biases and the scales of norms decay, too.
    """

    name: str = "sgd"
    lr: float = 0.1  # peak
    momentum: float = 0.9  # not read by adamw
    nesterov: bool = True  # sgd only
    weight_decay: float = 1e-4
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        _require(
            self.name in OPTIMIZERS or self.name.startswith("timm:"),
            f"--optimizer is {self.name!r}; expected {', '.join(OPTIMIZERS)} or timm:NAME",
        )
        _require(self.lr > 0, f"--lr is {self.lr}; expected a positive number")
        _require(self.weight_decay >= 0, f"--weight-decay is {self.weight_decay}; expected >= 0")
        _require(
            0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; expected 0 <= momentum < 1"
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over a run: a linear warm-up, then one of SCHEDULES.

    warmup_epochs: epochs until the peak, from `warmup_lr` on.
    step_epochs, gamma: of `step`: times gamma after each of these many epochs, or, where
        `milestones` are given, after each of those epochs.
    final_lr: where `cosine` and `linear` end.
    """

    kind: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    step_epochs: float = 30.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _require(
            self.kind in SCHEDULES,
            f"schedule.kind is {self.kind!r}; expected one of {', '.join(SCHEDULES)}",
        )
        _require(self.warmup_epochs >= 0, f"--warmup-epochs is {self.warmup_epochs}; expected >= 0")
        for name in ("warmup_lr", "final_lr"):
            value = getattr(self, name)
            _require(value >= 0, f"schedule.{name} is {value}; expected >= 0")
        _require(
            self.step_epochs > 0,
            f"schedule.step_epochs is {self.step_epochs}; expected a positive number of epochs",
        )
        _require(0 < self.gamma <= 1, f"schedule.gamma is {self.gamma}; expected 0 < gamma <= 1")
        _require(
            list(self.milestones) == sorted(set(self.milestones)),
            f"schedule.milestones are {list(self.milestones)}; expected rising epochs",
        )


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a step is taken.

    accumulate: pieces a batch is cut into, whose gradients are added before the step.
    clip_norm: largest norm of all gradients together; None clips nothing.
    ema_decay: of a moving average of the student's weights, evaluated beside it; None keeps none.
    compile: torch.compile the student (its first steps are slow).
    """

    accumulate: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        _require(self.accumulate >= 1, f"loop.accumulate is {self.accumulate}; expected >= 1")
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"loop.clip_norm is {self.clip_norm}; expected a positive number",
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"loop.ema_decay is {self.ema_decay}; expected a number between 0 and 1",
        )


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup and CutMix of crops and their stored labels (trainer.mix); the numbers are FKD's.

    kind: `both` chooses CutMix with `switch_prob`, else Mixup, once a batch.
    partner: any crop of the `batch`, or another of the same `image` (FerKD's SelfMix).
    """

    kind: str = "none"
    prob: float = 1.0
    switch_prob: float = 0.5
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    partner: str = "batch"

    def __post_init__(self) -> None:
        _require(
            self.kind in MIX_KINDS,
            f"mix.kind is {self.kind!r}; expected one of {', '.join(MIX_KINDS)}",
        )
        _require(
            self.partner in MIX_PARTNERS,
            f"mix.partner is {self.partner!r}; expected one of {', '.join(MIX_PARTNERS)}",
        )
        for name in ("prob", "switch_prob"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"mix.{name} is {value}; expected 0 to 1")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            _require(value > 0, f"mix.{name} is {value}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class FerkdConfig:
    """FerKD's adaptation of labels by s, the largest probability of the stored label.

    A crop with s < low or s > top is left out; one with low <= s < middle is asked for its image's
    own class with 1 - epsilon; all others for the stored label. The published thresholds are not
    in its repository: the defaults leave nothing out and change nothing.
    """

    low: float = 0.0
    middle: float = 0.0
    top: float = 1.0
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _require(
            0 <= self.low <= self.middle <= self.top <= 1,
            f"ferkd.low, middle and top are {self.low}, {self.middle} and {self.top}; expected "
            "0 <= low <= middle <= top <= 1",
        )
        _require(0 <= self.epsilon < 1, f"ferkd.epsilon is {self.epsilon}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class MealConfig:
    """Fast MEAL V2: whether the discriminator takes part, and its weight."""

    discriminator: bool = True
    discriminator_weight: float = 1.0

    def __post_init__(self) -> None:
        _require(
            self.discriminator_weight >= 0,
            f"meal.discriminator_weight is {self.discriminator_weight}; expected >= 0",
        )


@dataclass(frozen=True, kw_only=True)
class KdepConfig:
    """KDEP's loss on features.

    target: which features of a store with several.
    loss_weight: 3 (teacher MS-R50) or 20 (SP-R50) as published.
    alignment: `svd`, the first components of the store's projection as they are; `linear`, a
        learnt map from the student's feature to all of them (the paper's parametric baseline).
    scaling: `pts`, power temperature scaling with `temperature` T and `power` n; `none`.
    """

    target: str | None = None
    loss_weight: float = 3.0
    alignment: str = "svd"
    scaling: str = "pts"
    temperature: float = 0.1
    power: float = 3.0

    def __post_init__(self) -> None:
        for name, known in (("alignment", KDEP_ALIGNMENTS), ("scaling", KDEP_SCALINGS)):
            value = getattr(self, name)
            _require(
                value in known, f"kdep.{name} is {value!r}; expected one of {', '.join(known)}"
            )
        for name in ("loss_weight", "temperature", "power"):
            value = getattr(self, name)
            _require(value > 0, f"kdep.{name} is {value}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class HsakdConfig:
    """HSAKD's students: T of the KL terms; target: which heads of a store with several."""

    target: str | None = None
    temperature: float = 3.0

    def __post_init__(self) -> None:
        _require(
            self.temperature > 0,
            f"hsakd.temperature is {self.temperature}; expected a positive number",
        )


@dataclass(frozen=True, kw_only=True)
class HsakdTeacherConfig:
    """HSAKD's teacher: `joint`, all together; `frozen`, branches alone on a finished network."""

    mode: str = "joint"

    def __post_init__(self) -> None:
        _require(
            self.mode in HSAKD_TEACHER_MODES,
            f"hsakd_teacher.mode is {self.mode!r}; expected one of "
            f"{', '.join(HSAKD_TEACHER_MODES)}",
        )


@dataclass(frozen=True, kw_only=True)
class ScalekdConfig:
    """ScaleKD's losses and projectors.

    target: which tokens of a store with several.
    s3_..., s4_...: weights of a mean over tokens (times T of the published sums over T tokens), of
        the tokens as they are (spat) and less their mean (alt); 0 leaves one out.
    kd_weight: a of the logit term; the task's own loss weighs 1 - a. logits: the teacher's from
        the stored `labels`, from the stored `mean` token, or from the mean where it has them.
    s3_heads, s4_heads, softmax_scale, norm: of the projectors' attention and stem.
    task: "ce" with label `smoothing`, or "bce" summed over classes.
    """

    target: str | None = None
    s3_spat_weight: float = 3.92
    s3_alt_weight: float = 2.94
    s4_spat_weight: float = 3.92
    s4_alt_weight: float = 2.94
    kd_weight: float = 0.5
    logits: str = "auto"
    s3_heads: int = 8
    s4_heads: int = 8
    softmax_scale: float = 5.0
    norm: str = "batch"
    task: str = "ce"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (
            ("logits", SCALEKD_LOGITS), ("task", SCALEKD_TASKS), ("norm", SCALEKD_NORMS),
        ):  # fmt: skip
            value = getattr(self, name)
            _require(
                value in known, f"scalekd.{name} is {value!r}; expected one of {', '.join(known)}"
            )
        weights = (*self.weights("spat"), *self.weights("alt"))
        _require(min(weights) >= 0, f"scalekd's weights are {weights}; expected none below 0")
        _require(max(weights) > 0, "scalekd's weights are all 0: use --method fkd for labels alone")
        for name in ("kd_weight", "smoothing"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"scalekd.{name} is {value}; expected 0 to 1")
        for name in ("s3_heads", "s4_heads", "softmax_scale"):
            value = getattr(self, name)
            _require(value > 0, f"scalekd.{name} is {value}; expected a positive number")
        _require(
            self.task == "ce" or not self.smoothing,
            f"scalekd.smoothing is {self.smoothing}, and scalekd.task bce has none",
        )

    def weights(self, view: str) -> tuple[float, float]:
        """Of stage 3 and stage 4 in a view, "spat" or "alt"."""
        spat = self.s3_spat_weight, self.s4_spat_weight
        return spat if view == "spat" else (self.s3_alt_weight, self.s4_alt_weight)


def default_optim(name: str, batch_size: int) -> OptimConfig:
    """Published settings scaled to the batch.

    SGD: 0.1 per 512 crops, Nesterov, weight decay 1e-4 (FKD's best ResNet setting, that of
    ReLabel). AdamW: 0.002 per 1024 crops, weight decay 0.05 on matrices only (FKD's ViT setting).
    """
    if name == "sgd":
        return OptimConfig(name=name, lr=0.1 * batch_size / 512)
    lr = 0.002 * batch_size / 1024
    return OptimConfig(name=name, lr=lr, weight_decay=0.05, decay_vectors=False)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How stored top-k labels are read (FKD's label types are decodings of one store)."""

    teacher: str | None = None  # None: the store's only one
    label_type: str = "marginal_smoothing"
    top_k: int | None = None  # None: all that are stored
    temperature: float = 1.0  # of the student's softmax
    tail: str = "mean"  # the image's mean tail where the store has one and no class is cut

    def __post_init__(self) -> None:
        _require(
            self.label_type in LABEL_TYPES,
            f"--label-type is {self.label_type!r}; expected one of {', '.join(LABEL_TYPES)}",
        )
        _require(
            self.tail in LABEL_TAILS,
            f"--label-tail is {self.tail!r}; expected one of {', '.join(LABEL_TAILS)}",
        )
        _require(
            self.temperature > 0, f"--temperature is {self.temperature}; expected a positive number"
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
        _require(self.num_classes >= 1, f"the student has {self.num_classes} classes")
        _require(8 <= self.input_size <= 4096, f"--size is {self.input_size}; expected 8 to 4096")
        for name in ("mean", "std"):
            values = getattr(self, name)
            _require(
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
    "loop": LoopConfig,
    "mix": MixConfig,
    "ferkd": FerkdConfig,
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
    loop: LoopConfig = field(default_factory=LoopConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    ferkd: FerkdConfig = field(default_factory=FerkdConfig)
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
        _require(
            self.method in METHODS,
            f"--method is {self.method!r}; expected one of {', '.join(METHODS)}",
        )
        _require(
            self.precision in PRECISIONS,
            f"--precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}",
        )
        _require(
            self.epoch_counting in EPOCH_COUNTINGS,
            f"epoch_counting is {self.epoch_counting!r}; expected one of "
            f"{', '.join(EPOCH_COUNTINGS)}",
        )
        _require(self.epochs >= 1, f"--epochs is {self.epochs}; expected at least 1")
        _require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; expected at least 1")
        _require(
            self.method not in LABEL_METHODS or self.labels is not None,
            f"--method {self.method} learns from a label store: give one with --labels",
        )
        _require(
            self.mix.kind == "none" or self.labels is not None,
            f"mix.kind {self.mix.kind} mixes stored labels: give a label store with --labels",
        )
        _require(
            self.method != "hsakd-teacher" or self.hsakd_teacher.mode == "joint" or bool(self.init),
            "hsakd_teacher.mode frozen keeps a finished network as it is: give its weights with "
            "--init",
        )
        _require(
            self.mix.kind == "none" or self.method != "scalekd",
            f"mix.kind is {self.mix.kind}, and tokens of mixed crops aren't stored: leave it none",
        )
        _require(
            self.mix.partner == "batch" or self.views_per_image > 1,
            "mix.partner image needs several crops of an image in a batch: give --views-per-image "
            "2 or more",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for checkpoints and run folders."""
        return asdict(self)


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
