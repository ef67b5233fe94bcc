"""What sets the passes of a run apart from one another: order of the images, size of the crops."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.checks import require

ORDERS = ("random", "quasi-random")
PAGE_MIB = 8  # of a page of a beton


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """In which order a pass visits the images.

    kind: `random`, any order alike; `quasi-random`, whole pages of the file (8 MiB) in random
        order, images drawn from those that are open.
    memory_mib: of `quasi-random`: MiB of pages that a process has open at a time.
    """

    kind: str = "random"
    memory_mib: int = 1024

    def __post_init__(self) -> None:
        require(
            self.kind in ORDERS,
            f"order.kind is {self.kind!r}; expected one of {', '.join(ORDERS)}",
        )
        require(
            self.memory_mib >= PAGE_MIB,
            f"order.memory_mib is {self.memory_mib}; expected a page of {PAGE_MIB} MiB or more",
        )

    @property
    def open_pages(self) -> int:
        """Pages of the file that may be open."""
        return self.memory_mib // PAGE_MIB


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig:
    """Side of the crops that the student is trained on, by epoch (progressive resizing).

    start: side until `begin_epoch`; None: student.input_size throughout.
    end: side from `end_epoch` on. Between the two it lies on a straight line, rounded to
        multiples of `step` (the schedule of FFCV's ImageNet recipes, Leclerc et al. 2023,
        arXiv:2306.12517).
    """

    start: int | None = None
    end: int | None = None
    begin_epoch: int = 0
    end_epoch: int | None = None
    step: int = 32

    def __post_init__(self) -> None:
        require(self.step >= 1, f"resolution.step is {self.step}; expected at least 1 pixel")
        require(
            self.begin_epoch >= 0,
            f"resolution.begin_epoch is {self.begin_epoch}; expected 0 or more",
        )
        require(
            self.start is not None or (self.end is None and self.end_epoch is None),
            "resolution.end and resolution.end_epoch need resolution.start: the side of the first "
            "crops",
        )
        for name in ("start", "end"):
            side = getattr(self, name)
            require(
                side is None or (8 <= side <= 1024 and side % self.step == 0),
                f"resolution.{name} is {side}; expected 8 to 1024 pixels, a multiple of "
                f"resolution.step {self.step}",
            )
        require(
            self.end_epoch is None or self.end_epoch >= self.begin_epoch,
            f"resolution.end_epoch is {self.end_epoch}; expected resolution.begin_epoch "
            f"{self.begin_epoch} or later",
        )

    def side(self, epoch: int) -> int | None:
        """Side of the crops in an epoch, None where no schedule is set.

        All fields are set where `start` is (trainer.request fills them in).
        """
        if self.start is None:
            return None
        assert self.end is not None and self.end_epoch is not None
        if epoch >= self.end_epoch:
            return self.end
        share = max(0, epoch - self.begin_epoch) / max(1, self.end_epoch - self.begin_epoch)
        return round((self.start + share * (self.end - self.start)) / self.step) * self.step
