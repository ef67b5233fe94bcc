"""The `trainer` command: pack images, fit a student, evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.cli_common import (
    device_option,
    json_option,
    overwrite_option,
    print_result,
    reports,
    run_cli,
    take_sampler,
    view_options,
    workers_option,
)
from trainer.config import LABEL_TAILS, LABEL_TYPES, METHODS, PRECISIONS, TRACKERS
from trainer.step_config import OPTIMIZERS

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.replay.packing import PackReport
    from trainer.run import FitResult

FILE = click.Path(path_type=Path)


@click.group()
def cli() -> None:
    """Train students from stored labels, without the teacher."""


@cli.command()
@click.option("--data", help="Image folder; .parquet file or folder of them; .tar, or a pattern "
              "such as 'train-{0000..0146}.tar'; hf:FOLDER[:split] or hf:org/name[:split] "
              "[default: $TEACHONCE_DATA, else ./data].")  # fmt: skip
@click.option("--out", type=FILE, help="The .beton to write [default: named after --data].")
@click.option("--max-side", type=int, help="Re-encode: longest side in pixels at most.")
@click.option("--min-side", type=int, help="Re-encode: shortest side in pixels at most.")
@click.option("--quality", type=int, help="Re-encode: JPEG quality [default then: 90].")
@click.option("--check", type=click.Choice(["sample", "all"]), default="sample", show_default=True,
              help="Decode every image, or of plain JPEGs one in 64.")  # fmt: skip
@click.option("--label-column", help="Column of the labels, of parquet files and data sets.")
@click.option("--class-names", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="File with one class name a line, where labels are bare numbers.")  # fmt: skip
@workers_option
@overwrite_option
@json_option
def pack(data: str | None, out: Path | None, max_side: int | None, min_side: int | None,
         quality: int | None, check: str, label_column: str | None, class_names: Path | None,
         workers: int | None, overwrite: bool, as_json: bool) -> None:  # fmt: skip
    """Pack images into a .beton: source JPEG bytes unchanged, checked, with digests.

    With --max-side, --min-side or --quality all images are re-encoded: smaller, faster to train
    on, and images of their own. Label the beton itself (labelgen run --data X.beton) then.
    """
    import os

    from trainer.inputs import find_images, pack_with_progress
    from trainer.replay.reencode import Reencoding
    from trainer.sources import open_source

    sides = {"max_side": max_side, "min_side": min_side, "quality": quality}
    given = {name: value for name, value in sides.items() if value is not None}
    reencoding = Reencoding(**given) if given else None
    names = class_names.read_text("utf-8").split("\n") if class_names else None
    names = [name.strip() for name in names if name.strip()] if names else None
    source = open_source(str(find_images(data, None)), label_column, names)
    out = out or Path(f"{source.name}.beton")
    report = pack_with_progress(
        source, out, workers or os.cpu_count() or 1, overwrite, reencoding=reencoding, check=check
    )
    print_result(report.to_json(), as_json, _pack_text(report))


def _pack_text(report: PackReport) -> str:
    from trainer.report import format_table

    rows = [
        ("images", f"{report.num_rows}, {report.num_bytes / 1e6:,.1f} MB"),
        ("kept as JPEG" if report.reencoded is None else "re-encoded", str(report.kept_jpeg)),
        ("stored as raw pixels", str(report.stored_raw)),
    ]
    if report.duplicates:
        rows.append(("equal files", f"{len(report.duplicates)} groups, such as "
                     f"{' = '.join(report.duplicates[0][:2])}"))  # fmt: skip
    rows += [("masked", f"{key}: {reason}") for key, reason in report.masked[:20]]
    if len(report.masked) > 20:
        rows.append(("masked", f"and {len(report.masked) - 20} more, see {report.path}.json"))
    rows.append(("fingerprint", report.fingerprint))
    return format_table(f"{report.path}", rows)


@cli.command()
@click.option("--labels", help="Label store: a folder, or https://, s3://, gs://, hf:// address.")
@click.option("--data", help="Image folder or .beton [default: where the store was made from].")
@click.option("--val", type=FILE, help="ImageFolder tree or .beton, evaluated after each epoch.")
@click.option("--out", type=FILE, help="Run folder [default: runs/METHOD-STUDENT].")
@click.option(
    "--method", type=click.Choice(METHODS), help="[default: fkd with --labels, else supervised]"
)
@click.option("--student", help="r18, tv:NAME, timm:NAME, resnet20 ... [default: by image size]")
@click.option("--init", type=click.Path(), help="Safetensors that the student begins from.")
@click.option("--teacher", help="Which labels of a store with several.")
@click.option("--size", type=int, help="Side of the student's crops [default: the teacher's].")
@click.option(
    "--epochs", type=int, help="Passes over the images [default: until all stored views are used]."
)
@click.option("--batch-size", type=int, help="Crops a step [default: 128 on cpu, 1024 on cuda].")
@click.option(
    "--views-per-image", type=click.IntRange(1), help="Views of an image in a step [default: 4]."
)
@view_options
@click.option(
    "--label-type",
    type=click.Choice(LABEL_TYPES),
    help=f"How stored labels are read [default: {LABEL_TYPES[0]}].",
)
@click.option(
    "--label-k", type=click.IntRange(1), help="Classes to keep of the stored ones [default: all]."
)
@click.option(
    "--label-tail",
    type=click.Choice(LABEL_TAILS),
    help="Mass beyond the kept classes: as the image's mean tail lies, where the store has one and "
    "no kept class is left out; or evenly, as FKD [default: the one that the store measured to be "
    "nearer].",
)
@click.option("--temperature", type=float, help="Of the student's softmax [default: 1].")
@click.option("--optimizer", help=f"{', '.join(OPTIMIZERS)} or timm:NAME [default: sgd].")
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate [default: 0.1 per 512 crops; adamw 0.002 per 1024].",
)
@click.option("--weight-decay", type=float, help="[default: 1e-4; adamw 0.05]")
@click.option("--warmup-epochs", type=float, help="[default: 1/60 of the epochs]")
@click.option("--recipe", help="Recipe of the package, or a .toml file; flags go over it.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any setting of a recipe, as loop.ema_decay=0.999; goes over the recipe.",
)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="[default: bf16 on cuda, else fp32]"
)
@click.option(
    "--loader",
    type=click.Choice(["ffcv", "torch"]),
    default="ffcv",
    show_default=True,
    help="torch: plain DataLoader, same pixels, slower.",
)
@click.option(
    "--log",
    type=click.Choice(TRACKERS),
    multiple=True,
    help="Log there as well as to metrics.jsonl; may be given twice.",
)
@device_option
@workers_option
@click.option("--seed", type=click.IntRange(0), help="Of every random draw [default: 0].")
@overwrite_option
@json_option
def fit(
    labels: str | None,
    workers: int | None,
    as_json: bool,
    assignments: tuple[str, ...],
    seed: int | None,
    **options: Any,
) -> None:
    """Train a student. The same command again resumes a stopped run.

    --views and --scale to --flip say how crops are drawn without --labels; with labels the stored
    crops are replayed.
    """
    import os

    from trainer.request import FitRequest
    from trainer.run import fit as run_fit
    from trainer.settings import parse_assignments

    sampler = take_sampler(options)
    request = FitRequest(
        labels=labels, sampler=sampler, workers=workers or os.cpu_count() or 1, seed=seed,
        settings=parse_assignments(assignments), **options,
    )  # fmt: skip
    result = run_fit(request)
    if reports():
        print_result(result.to_json(), as_json, _fit_text(result))


def _fit_text(result: FitResult) -> str:
    from storage.progress import format_seconds
    from trainer.report import format_table

    rows = [
        ("student", f"{result.student.arch}, {result.parameters / 1e6:.2f} M parameters"),
        ("trained", f"{result.epochs} epochs, {result.steps} steps"),
    ]
    if result.crops:
        rate = result.crops / max(1e-9, result.seconds)
        rows.append(("time", f"{format_seconds(result.seconds)}, {rate:,.1f} crops/s"))
    if result.final_loss is not None:
        rows.append(("loss", f"{result.final_loss:.4f}"))
    if result.evaluation is not None:
        rows.append(("validation", _evaluation_text(result.evaluation)))
    rows += [("note", note) for note in result.notes]
    rows.append(("files", f"{result.out}/student.safetensors, metrics.jsonl, report.html"))
    return format_table("done", rows)


def _evaluation_text(evaluation: Evaluation) -> str:
    text = (
        f"top-1 {100 * evaluation.top1:.2f} %, top-5 {100 * evaluation.top5:.2f} %, "
        f"loss {evaluation.loss:.4f} on {evaluation.num_images} images"
    )
    for name, value in evaluation.further.items():
        text += f", {name} {100 * value:.2f} %"
    return text + (f" ({evaluation.masked} unreadable, left out)" if evaluation.masked else "")


@cli.command()
@click.argument("run", type=FILE)
@json_option
def report(run: Path, as_json: bool) -> None:
    """Make a run folder's report.html again, from its files alone; a run in progress has one."""
    from trainer.report_page import write_report

    path = write_report(run)
    print_result({"report": str(path)}, as_json, str(path))


@cli.command()
@click.argument("checkpoint", type=FILE)
@click.option("--val", type=FILE, required=True, help="ImageFolder tree, or a .beton of one.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@device_option
@workers_option
@json_option
def evaluate(checkpoint: Path, val: Path, batch_size: int, device: str, workers: int | None,
             as_json: bool) -> None:  # fmt: skip
    """Evaluate a student.safetensors on a folder of labelled images."""
    import os

    import torch

    from storage.images import scan_folder
    from trainer.checkpoint import load_student
    from trainer.evaluate import evaluate as run_evaluation
    from trainer.methods.hsakd import branch_scores
    from trainer.models.device import resolve_device

    where = resolve_device(device)
    student, config = load_student(checkpoint)
    student = student.to(where).to(memory_format=torch.channels_last)
    result = run_evaluation(
        student,
        scan_folder(val),
        config,
        device=where,
        batch_size=batch_size,
        workers=workers or os.cpu_count() or 1,
        further=branch_scores(student),
    )
    print_result(result.to_json(), as_json, f"{config.arch}: {_evaluation_text(result)}")


def main() -> None:
    """Entry point."""
    run_cli(cli, "trainer")


if __name__ == "__main__":
    main()
