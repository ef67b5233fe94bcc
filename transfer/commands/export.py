"""`transfer export`."""

from __future__ import annotations

from pathlib import Path

import click

from storage.cli_common import json_option, overwrite_option, print_result
from transfer.options import FILE, Numbers

# Keys of transfer.export.TARGETS, kept here so that --help imports nothing.
TARGETS = ("torchvision", "timm", "hub", "onnx", "pt2", "detectron2", "semseg", "mmpretrain")


@click.command()
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
