"""What a finished run shows: a table on the terminal and the curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def format_table(title: str, rows: list[tuple[str, str]]) -> str:
    """Two columns of text, the first padded."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def plot_curves(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
    """Loss by step and, where the run was evaluated, top-1 by step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in metrics if line["kind"] == "train"]
    evaluated = [line for line in metrics if line["kind"] == "eval"]
    figure = Figure(figsize=(10 if evaluated else 5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
    axes[0].plot([line["step"] for line in train], [line["loss"] for line in train], lw=1.2)
    axes[0].set(xlabel="step", ylabel="training loss (nats)", title="loss")
    if evaluated:
        steps = [line["step"] for line in evaluated]
        for name, style in (("top1", "o-"), ("top5", "s--")):
            values = [100 * line[name] for line in evaluated]
            axes[1].plot(steps, values, style, ms=4, lw=1.2, label=name)
        axes[1].set(xlabel="step", ylabel="%", title="validation accuracy")
        axes[1].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
