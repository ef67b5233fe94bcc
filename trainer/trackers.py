"""Where a run's numbers go beside metrics.jsonl: TensorBoard, Weights & Biases.

Their packages are asked for, and loaded, only by a run that names them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from storage.errors import UsageError
from storage.extras import load_extra
from trainer.config import TRACKERS, flatten
from trainer.metrics import Tracker

TENSORBOARD_FOLDER, WANDB_ID = "tensorboard", "wandb-id"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what can't be logged to before a run begins.

    Raises:
        UsageError: an unknown name, or a package that isn't installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--log is {name!r}; expected one of {', '.join(TRACKERS)}")
        _load(name)


def open_trackers(
    names: Sequence[str], out: Path, config: dict[str, Any], resumed_step: int
) -> list[Tracker]:
    """The trackers of a run's first process.

    Args:
        out: the run's folder. config: nested settings, shown beside the curves.
        resumed_step: the next step to take, 0 for a run that begins.
    """
    makers: dict[str, Callable[..., Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
    }
    return [makers[name](out, config, resumed_step) for name in dict.fromkeys(names)]


class TensorBoard:
    """Event files in the run's folder, tags as `train/loss`."""

    def __init__(self, out: Path, config: dict[str, Any], resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _load("tensorboard")
        # what an earlier process wrote of steps that are taken again is hidden
        self._writer = SummaryWriter(
            str(out / TENSORBOARD_FOLDER), purge_step=resumed_step + (resumed_step > 0)
        )
        if not resumed_step:
            rows = [f"| {name} | {value} |" for name, value in flatten(config).items()]
            self._writer.add_text("settings", "\n".join(["| setting | value |", "|-|-|", *rows]))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one line."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class WeightsAndBiases:
    """One W&B run, named as the folder, that resumes with it; WANDB_MODE and its kin hold."""

    def __init__(self, out: Path, config: dict[str, Any], resumed_step: int) -> None:
        place = out / WANDB_ID
        if not resumed_step or not place.exists():
            place.write_text(secrets.token_hex(8))
        self._run = _load("wandb").init(
            project="teachonce",
            name=out.resolve().name,
            id=place.read_text().strip(),
            resume="allow",
            dir=str(out),
            config=flatten(config),
        )
        # its own step only rises; ours goes back where a run resumes
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log the numbers of one line."""
        named = {f"{kind}/{name}": value for name, value in values.items()}
        self._run.log({"step": step, **named})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _load(name: str) -> ModuleType:
    return load_extra(name, f"--log {name}", "log")
