"""What a training run is, as frozen values checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import UsageError

METHODS = ("fkd", "supervised")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("fp32", "bf16")
LABEL_TAILS = ("mean", "even")
LABEL_TYPES = ("marginal_smoothing", "marginal_renorm", "smoothing", "hard")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and learning-rate schedule (linear warm-up, cosine to zero)."""

    name: str = "sgd"
    lr: float = 0.1  # peak
    momentum: float = 0.9  # sgd only
    nesterov: bool = True  # sgd only
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        _require(
            self.name in OPTIMIZERS,
            f"--optimizer is {self.name!r}; expected one of {', '.join(OPTIMIZERS)}",
        )
        _require(self.lr > 0, f"--lr is {self.lr}; expected a positive number")
        _require(self.weight_decay >= 0, f"--weight-decay is {self.weight_decay}; expected >= 0")
        _require(self.warmup_epochs >= 0, f"--warmup-epochs is {self.warmup_epochs}; expected >= 0")


def default_optim(name: str, batch_size: int, epochs: int) -> OptimConfig:
    """Published settings scaled to the batch.

    SGD: 0.1 per 512 crops, Nesterov, weight decay 1e-4 (FKD's best ResNet setting, that of
    ReLabel). AdamW: 0.002 per 1024 crops, weight decay 0.05 (FKD's ViT setting). Warm-up: 5 of
    300 epochs in both; the same share here.
    """
    warmup_epochs = epochs / 60
    if name == "adamw":
        lr = 0.002 * batch_size / 1024
        return OptimConfig(name=name, lr=lr, weight_decay=0.05, warmup_epochs=warmup_epochs)
    return OptimConfig(name=name, lr=0.1 * batch_size / 512, warmup_epochs=warmup_epochs)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How stored top-k labels are read (FKD's label types are decodings of one store)."""

    teacher: str
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
class TrainConfig:
    """A whole training run; two runs with equal configs on equal data are equal."""

    method: str
    student: StudentConfig
    labels: LabelConfig | None
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int
    batch_size: int  # crops per optimiser step
    views_per_image: int
    seed: int = 0
    precision: str = "fp32"
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
        _require(self.epochs >= 1, f"--epochs is {self.epochs}; expected at least 1")
        _require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; expected at least 1")
        _require(
            self.method != "fkd" or self.labels is not None,
            "--method fkd learns from a label store: give one with --labels",
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
