"""What each method can be told; the defaults are the published numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from storage.thresholds import Thresholds
from trainer.checks import require

HSAKD_TEACHER_MODES = ("joint", "frozen")
KDEP_ALIGNMENTS = ("svd", "svd-bottom", "svd-middle", "svd-random", "channels-variance",
                   "channels-mean", "channels-random", "nearest", "linear", "conv1x1")  # fmt: skip
KDEP_SCALINGS = ("pts", "none", "relu", "variance", "variance-linear", "variance-channels")
FKD_SSL_KINDS = ("dense", "features")
FKD_SSL_HEADS = ("mlp", "linear", "none")
SCALEKD_LOGITS = ("auto", "labels", "mean")
SCALEKD_TASKS = ("ce", "bce")
SCALEKD_NORMS = ("batch", "layer")
MIX_KINDS = ("none", "mixup", "cutmix", "both")
MIX_PARTNERS = ("batch", "image")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup and CutMix of crops and their stored labels (trainer.mix); the numbers are FKD's.

    kind: `both` chooses CutMix with `switch_prob`, else Mixup, once a batch.
    partner: any crop of the `batch`, or another of the same `image` (FerKD's SelfMix).
    off_epochs: the last epochs, in which nothing is mixed (ReLabel's setting with CutMix: 5).
    """

    kind: str = "none"
    prob: float = 1.0
    switch_prob: float = 0.5
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    partner: str = "batch"
    off_epochs: int = 0

    def __post_init__(self) -> None:
        require(
            self.off_epochs >= 0, f"mix.off_epochs is {self.off_epochs}; expected 0 or more epochs"
        )
        require(
            self.kind in MIX_KINDS,
            f"mix.kind is {self.kind!r}; expected one of {', '.join(MIX_KINDS)}",
        )
        require(
            self.partner in MIX_PARTNERS,
            f"mix.partner is {self.partner!r}; expected one of {', '.join(MIX_PARTNERS)}",
        )
        for name in ("prob", "switch_prob"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"mix.{name} is {value}; expected 0 to 1")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            require(value > 0, f"mix.{name} is {value}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class FerkdConfig(Thresholds):
    """FerKD's adaptation of labels by s, the largest probability of the stored label.

    A crop with s < low or s > top is left out; one with low <= s < middle is asked for its image's
    own class with 1 - epsilon; all others for the stored label. The published thresholds are not
    in its repository: the defaults leave nothing out and change nothing.
    """


@dataclass(frozen=True, kw_only=True)
class FkdSslConfig:
    """FKD-SSL: a self-supervised teacher's embedding as a distribution over its coordinates.

    kind: of the target: `dense`, the teacher's outputs; `features`, its pooled feature.
    target: which one of a store with several.
    temperature: of both softmaxes. unit: whether embeddings are scaled to length 1 before; not
        for outputs that are scores of prototypes already.
    head: from the student's pooled feature to the embedding: `mlp`, two layers as MoCo v2 has
        them; `linear`; `none`, for a student as wide as the embedding.
    """

    kind: str = "dense"
    target: str | None = None
    temperature: float = 0.2
    unit: bool = True
    head: str = "mlp"

    def __post_init__(self) -> None:
        for name, known in (("kind", FKD_SSL_KINDS), ("head", FKD_SSL_HEADS)):
            value = getattr(self, name)
            require(
                value in known, f"fkd_ssl.{name} is {value!r}; expected one of {', '.join(known)}"
            )
        require(
            self.temperature > 0,
            f"fkd_ssl.temperature is {self.temperature}; expected a positive number",
        )


@dataclass(frozen=True, kw_only=True)
class MealConfig:
    """Fast MEAL V2: whether the discriminator takes part, and its weight."""

    discriminator: bool = True
    discriminator_weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.discriminator_weight >= 0,
            f"meal.discriminator_weight is {self.discriminator_weight}; expected >= 0",
        )


@dataclass(frozen=True, kw_only=True)
class KdepConfig:
    """KDEP's loss on features.

    target: which features of a store with several.
    loss_weight: 3 (teacher MS-R50) or 20 (SP-R50) as published.
    alignment: `svd`, the first components of the store's projection as they are; `linear`, a
        learnt map from the student's feature to all of them; others of the paper's ablation
        (trainer.methods.kdep_alignment).
    scaling: `pts`, power temperature scaling with `temperature` T and `power` n; `none`; `relu`;
        `variance...`, variance matching.
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
            require(value in known, f"kdep.{name} is {value!r}; expected one of {', '.join(known)}")
        for name in ("loss_weight", "temperature", "power"):
            value = getattr(self, name)
            require(value > 0, f"kdep.{name} is {value}; expected a positive number")
        require(
            not self.scaling.startswith("variance") or self.alignment.startswith("svd"),
            f"kdep.scaling {self.scaling} is of components, and kdep.alignment {self.alignment} "
            "gives none: use an svd alignment",
        )


@dataclass(frozen=True, kw_only=True)
class HsakdConfig:
    """HSAKD's students: T of the KL terms; target: which heads of a store with several."""

    target: str | None = None
    temperature: float = 3.0

    def __post_init__(self) -> None:
        require(
            0 < self.temperature < math.inf,
            f"hsakd.temperature is {self.temperature}; expected a positive number",
        )


@dataclass(frozen=True, kw_only=True)
class HsakdTeacherConfig:
    """HSAKD's teacher: `joint`, all together; `frozen`, branches alone on a finished network."""

    mode: str = "joint"

    def __post_init__(self) -> None:
        require(
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
            require(
                value in known, f"scalekd.{name} is {value!r}; expected one of {', '.join(known)}"
            )
        weights = (*self.weights("spat"), *self.weights("alt"))
        require(min(weights) >= 0, f"scalekd's weights are {weights}; expected none below 0")
        require(max(weights) > 0, "scalekd's weights are all 0: use --method fkd for labels alone")
        for name in ("kd_weight", "smoothing"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"scalekd.{name} is {value}; expected 0 to 1")
        for name in ("s3_heads", "s4_heads", "softmax_scale"):
            value = getattr(self, name)
            require(value > 0, f"scalekd.{name} is {value}; expected a positive number")
        require(
            self.task == "ce" or not self.smoothing,
            f"scalekd.smoothing is {self.smoothing}, and scalekd.task bce has none",
        )

    def weights(self, view: str) -> tuple[float, float]:
        """Of stage 3 and stage 4 in a view, "spat" or "alt"."""
        spat = self.s3_spat_weight, self.s4_spat_weight
        return spat if view == "spat" else (self.s3_alt_weight, self.s4_alt_weight)
