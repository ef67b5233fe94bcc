"""The `transfer` command: put a student to work elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from storage.cli_common import (
    device_option,
    json_option,
    overwrite_option,
    print_result,
    run_cli,
    seed_option,
    workers_option,
)

FILE = click.Path(path_type=Path)
# Keys of transfer.export.TARGETS, kept here so that --help imports nothing.
TARGETS = ("torchvision", "timm", "hub", "onnx", "pt2", "detectron2", "semseg", "mmpretrain")


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, kind: Callable[[str], float]) -> None:
        self.kind = kind

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """`1,5,10` -> (1, 5, 10)."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas", param, ctx)


@click.group()
def cli() -> None:
    """Take a distilled student to other tasks and other libraries."""


@cli.command()
@click.argument("student", type=FILE)
@click.option("--data", required=True, help="Training images: class folders, or stl10:ROOT.")
@click.option("--val", required=True, help="Validation images, likewise; Tiny-ImageNet's val too.")
@click.option("--out", type=FILE, help="Folder of results and features [default: beside STUDENT].")
@click.option(
    "--compare",
    multiple=True,
    help="Another student's safetensors, or `random`: the same network untrained.",
)
@click.option(
    "--fit", type=click.Choice(["logistic", "ridge"]), default="logistic", show_default=True,
    help="Linear probe: L-BFGS, or ridge regression in closed form.",
)  # fmt: skip
@click.option("--weight-decay", "decays", type=Numbers(float), help="Swept [default: 1e-5 to 10].")
@click.option("--k", "ks", type=Numbers(int), default="10,20,50,100", show_default=True,
              help="Neighbours of k-NN.")  # fmt: skip
@click.option("--shots", type=Numbers(int), default=(), help="Images a class, such as 1,5,10.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True,
              help="Draws of every few-shot run.")  # fmt: skip
@click.option("--whole", is_flag=True,
              help="Resize the shorter side to the input itself, not to 8/7 of it.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@device_option
@workers_option
@seed_option
@overwrite_option
@json_option
def probe(
    student: Path,
    data: str,
    val: str,
    out: Path | None,
    compare: tuple[str, ...],
    fit: str,
    decays: tuple[float, ...] | None,
    ks: tuple[int, ...],
    shots: tuple[int, ...],
    seeds: int,
    whole: bool,
    batch_size: int,
    device: str,
    workers: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Judge a student's frozen features: linear probe, k-NN, few shots."""
    from transfer.probe import DECAYS, ProbeSettings
    from transfer.probe_run import ProbeRequest, describe, run_probe

    settings = ProbeSettings(
        fit=fit, decays=decays or DECAYS, ks=ks, shots=shots, seeds=seeds, seed=seed
    )
    report = run_probe(
        ProbeRequest(
            student=student,
            data=data,
            val=val,
            out=out,
            compare=compare,
            settings=settings,
            whole=whole,
            device=device,
            batch_size=batch_size,
            workers=2 if workers is None else workers,
            overwrite=overwrite,
        )
    )
    print_result(report.values, as_json, describe(report))


@cli.command()
@click.argument("checkpoint", type=FILE)
@click.option("--to", "target", type=click.Choice(TARGETS), required=True)
@click.option("--out", type=FILE, required=True, help="Folder to write.")
@click.option("--pixel-order", type=click.Choice(["rgb", "bgr"]),
              help="Order of the channels the other library feeds (detectron2: bgr).")  # fmt: skip
@click.option("--pixel-std", type=Numbers(float),
              help="Deviation it divides by, 3 numbers of 0..255 [default: the student's].",
              )  # fmt: skip
@overwrite_option
@json_option
def export(
    checkpoint: Path,
    target: str,
    out: Path,
    pixel_order: str | None,
    pixel_std: tuple[float, ...] | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a student.safetensors in another library's layout and compare the logits."""
    from transfer.export import export as run_export

    report = run_export(
        checkpoint, target, out, overwrite, pixel_order=pixel_order, pixel_std=pixel_std
    )
    result = {
        "folder": str(report.folder),
        "target": report.target,
        "max_difference": report.max_difference,
        "compared": report.compared,
        "files": list(report.files),
    }
    text = (
        f"{out}: {', '.join(report.files)}; {report.compared}: "
        f"largest logit difference {report.max_difference:.1e}"
    )
    print_result(result, as_json, text)


def main() -> None:
    """Entry point."""
    run_cli(cli, "transfer")
