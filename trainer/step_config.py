"""How a student learns from a batch: optimiser, learning rate, step."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.checks import require

OPTIMIZERS = ("sgd", "adamw")  # or timm:NAME
BATCH, SYNC = NORMS = ("batch", "sync")  # batch norms of several processes: trainer.norms
SCHEDULES = ("cosine", "step", "linear", "poly", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser: `sgd`, `adamw`, or `timm:NAME` for any of timm's.

    decay_vectors: whether biases, the scales of norms, and embeddings of positions and classes
        decay, too.
    """

    name: str = "sgd"
    lr: float = 0.1  # peak
    momentum: float = 0.9  # not read by adamw
    nesterov: bool = True  # sgd only
    weight_decay: float = 1e-4
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        require(
            self.name in OPTIMIZERS or self.name.startswith("timm:"),
            f"--optimizer is {self.name!r}; expected {', '.join(OPTIMIZERS)} or timm:NAME",
        )
        require(self.lr > 0, f"--lr is {self.lr}; expected a positive number")
        require(self.weight_decay >= 0, f"--weight-decay is {self.weight_decay}; expected >= 0")
        require(
            0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; expected 0 <= momentum < 1"
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over a run: a linear warm-up, then one of SCHEDULES.

    warmup_epochs: epochs until the peak, from `warmup_lr` on.
    step_epochs, gamma: of `step`: times gamma after each of these many epochs, or, where
        `milestones` are given, after each of those epochs.
    power: of `poly`.
    final_lr: where `cosine`, `linear` and `poly` end.
    """

    kind: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    step_epochs: float = 30.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.kind in SCHEDULES,
            f"schedule.kind is {self.kind!r}; expected one of {', '.join(SCHEDULES)}",
        )
        require(self.warmup_epochs >= 0, f"--warmup-epochs is {self.warmup_epochs}; expected >= 0")
        for name in ("warmup_lr", "final_lr"):
            value = getattr(self, name)
            require(value >= 0, f"schedule.{name} is {value}; expected >= 0")
        require(
            self.step_epochs > 0,
            f"schedule.step_epochs is {self.step_epochs}; expected a positive number of epochs",
        )
        require(0 < self.gamma <= 1, f"schedule.gamma is {self.gamma}; expected 0 < gamma <= 1")
        require(self.power > 0, f"schedule.power is {self.power}; expected a positive number")
        require(
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
    freeze: learn the student's last linear layer alone; all else stays as it is.
    evaluate_every: passes between evaluations; the last pass is always followed by one.
    norm: batch norms, of student and method, over the crops of each process (`batch`) or over
        those of all (`sync`, on GPUs).
    """

    accumulate: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    compile: bool = False
    freeze: bool = False
    evaluate_every: int = 1
    norm: str = BATCH

    def __post_init__(self) -> None:
        require(
            self.norm in NORMS, f"loop.norm is {self.norm!r}; expected one of {', '.join(NORMS)}"
        )
        require(
            self.evaluate_every >= 1,
            f"loop.evaluate_every is {self.evaluate_every}; expected >= 1",
        )
        require(
            not (self.freeze and self.compile),
            "loop.freeze and loop.compile don't go together: leave one out",
        )
        require(self.accumulate >= 1, f"loop.accumulate is {self.accumulate}; expected >= 1")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"loop.clip_norm is {self.clip_norm}; expected a positive number",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"loop.ema_decay is {self.ema_decay}; expected a number between 0 and 1",
        )


def default_optim(name: str, batch_size: int) -> OptimConfig:
    """Published settings scaled to the batch.

    SGD: 0.1 per 512 crops, Nesterov, weight decay 1e-4 (FKD's best ResNet setting, that of
    ReLabel). AdamW: 0.002 per 1024 crops, weight decay 0.05 on matrices only (FKD's ViT setting).
    """
    if name == "sgd":
        return OptimConfig(name=name, lr=0.1 * batch_size / 512)
    lr = 0.002 * batch_size / 1024
    return OptimConfig(name=name, lr=lr, weight_decay=0.05, decay_vectors=False)
