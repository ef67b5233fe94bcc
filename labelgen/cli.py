"""The `labelgen` command line. Heavy imports stay inside the commands."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from storage.cli_common import (
    DEFAULT_STORE,
    device_option,
    json_option,
    overwrite_option,
    print_result,
    resolve_data,
    run_cli,
    sampler_from_options,
    seed_option,
    view_options,
    workers_option,
)

F = TypeVar("F", bound=Callable[..., Any])

_TEACHER_OPTIONS = (
    click.option("--weights", type=click.Path(), default=None,
                 help="Weights file (safetensors) in place of the published ones."),
    click.option("--arch", default=None, metavar="NAME",
                 help="Architecture of a weights file: tv:NAME, timm:NAME or resnet20 ..."),
    click.option("--size", type=click.IntRange(1), default=None,
                 help="Side of a crop in pixels [default: the teacher's input size]."),
    click.option("--mean", type=float, nargs=3, default=None,
                 help="Channel means, for pixels in 0..1 [default: the teacher's own]."),
    click.option("--std", type=float, nargs=3, default=None,
                 help="Channel deviations, for pixels in 0..1 [default: the teacher's own]."),
    click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), default=None,
                 help="Filter that resizes crops [default: the teacher's own]."),
    click.option("--class-names", type=click.Path(exists=True, dir_okay=False), default=None,
                 help="Text file with the teacher's classes, one a line, in order."),
    click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
                 default="fp32", show_default=True, help="Arithmetic of the forward pass."),
)  # fmt: skip


def _teacher_options(required: bool) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(_TEACHER_OPTIONS):
            command = option(command)
        return click.option(
            "--teacher", "teacher_name", required=required, metavar="NAME",
            help="Alias (r152), tv:NAME@WEIGHTS, timm:NAME or file:weights.safetensors.",
        )(command)  # fmt: skip

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Label images once with a teacher, for any number of students."""


@cli.command()
@_teacher_options(required=True)
@click.option("--data", type=click.Path(), default=None,
              help="Image folder [default: $TEACHONCE_DATA, else ./data].")  # fmt: skip
@click.option("--out", type=click.Path(), default=DEFAULT_STORE, show_default=True,
              help="Label store to write, or to go on with.")  # fmt: skip
@click.option("--crops", type=click.IntRange(1), default=500, show_default=True,
              help="Views labelled of every image.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1), default=None,
              help="Classes kept a label [default: 10, or all if there are fewer].")  # fmt: skip
@view_options
@click.option("--batch-size", type=click.IntRange(1), default=None,
              help="Crops a forward pass [default: 64 on a CPU, 256 on a GPU].")  # fmt: skip
@click.option("--block-images", type=click.IntRange(1), default=None,
              help="Images written at once; a killed run loses one such block.")  # fmt: skip
@seed_option
@workers_option
@device_option
@overwrite_option
@json_option
def run(
    data: str | None,
    out: str,
    crops: int,
    top_k: int | None,
    batch_size: int | None,
    block_images: int | None,
    seed: int,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
    views: str,
    scale: tuple[float, float],
    padding: int,
    flip: bool,
    **teacher_options: Any,
) -> None:
    """Label every image of a folder; run it again to go on after an interruption."""
    folder = resolve_data(data)
    with stop_on_signals() as stop:
        from labelgen.run import generate

        teacher = _load_teacher(**teacher_options)
        result = generate(
            teacher, folder, out, crops=crops, top_k=top_k, seed=seed,
            sampler=sampler_from_options(views, scale, padding, flip), batch_size=batch_size,
            block_images=block_images, workers=workers, overwrite=overwrite, stop=stop,
        )  # fmt: skip
    agreement = result.measured.get("top1_agreement")
    lines = [
        f"store      {result.store}",
        f"teacher    {teacher.spec.canonical}",
        f"images     {result.images:,} ({len(result.masked)} masked, "
        f"{result.duplicates} duplicates)",
        f"crops      {result.crops:,} ({result.new_crops:,} new, "
        f"{result.crops_per_second:,.1f} crops/s)",
        f"agreement  {_percent(agreement)}",
        f"root       {result.root}",
    ]
    report = {
        "store": str(result.store),
        "teacher": teacher.spec.canonical,
        "images": result.images,
        "masked": result.masked,
        "duplicates": result.duplicates,
        "crops": result.crops,
        "new_crops": result.new_crops,
        "seconds": round(result.seconds, 3),
        "crops_per_second": round(result.crops_per_second, 3),
        "resumed_blocks": result.resumed,
        "measured": dict(result.measured),
        "root": result.root,
    }
    print_result(report, as_json, "\n".join(lines))


@cli.command()
@json_option
def teachers(as_json: bool) -> None:
    """List the short names of teachers and how to name any other."""
    from labelgen.grammar import ALIASES

    width = max(map(len, ALIASES))
    lines = [f"{alias:<{width}}  {name}" for alias, name in ALIASES.items()]
    lines += [
        "",
        "also: tv:NAME[@WEIGHTS] (torchvision), timm:NAME[.TAG], file:weights.safetensors",
        "(--arch tv:NAME, timm:NAME or resnet20 ...); --weights FILE replaces any weights",
    ]
    print_result({"aliases": ALIASES}, as_json, "\n".join(lines))


@cli.command()
@click.option("--labels", type=click.Path(), default=None,
              help="Show what this store holds; no teacher is run.")  # fmt: skip
@_teacher_options(required=False)
@click.option("--data", type=click.Path(), default=None,
              help="Image folder [default: $TEACHONCE_DATA, else ./data].")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False), default="preview.png", show_default=True,
              help="PNG to write.")  # fmt: skip
@click.option("--images", type=click.IntRange(1, 100), default=6, show_default=True,
              help="Images shown, one a row, drawn by the seed.")  # fmt: skip
@click.option("--crops", type=click.IntRange(1, 20), default=5, show_default=True,
              help="Views shown of each: the first that `run` would label.")  # fmt: skip
@view_options
@seed_option
@device_option
@overwrite_option
@json_option
def preview(
    labels: str | None,
    data: str | None,
    out: str,
    images: int,
    crops: int,
    seed: int,
    overwrite: bool,
    as_json: bool,
    views: str,
    scale: tuple[float, float],
    padding: int,
    flip: bool,
    **teacher_options: Any,
) -> None:
    """Draw a contact sheet: crops with a teacher's labels, live or from a store."""
    path = Path(out)
    if path.exists() and not overwrite:
        raise click.UsageError(
            f"{path} exists: choose another --out, or replace it with --overwrite"
        )
    if labels is None and teacher_options["teacher_name"] is None:
        raise click.UsageError("give a store with --labels, or a teacher with --teacher")
    from labelgen.preview import contact_sheet, stored_sheet
    from storage.images import scan_folder

    if labels is not None:
        from storage.store import LabelStore

        store = LabelStore.open(labels)
        folder = resolve_data(data) if data else store.local_data_folder() or resolve_data(data)
        teacher_name = teacher_options["teacher_name"] or next(iter(store.spec.teachers))
        sheet, shown = stored_sheet(
            store, folder, teacher_name, num_images=images,
            num_views=min(crops, store.spec.num_views), seed=seed,
        )  # fmt: skip
    else:
        sheet, shown = contact_sheet(
            _load_teacher(**teacher_options), scan_folder(resolve_data(data)),
            sampler_from_options(views, scale, padding, flip),
            num_images=images, num_views=crops, seed=seed,
        )  # fmt: skip
    sheet.save(path, format="PNG")
    report = {"out": str(path), "images": shown, "crops": crops}
    print_result(report, as_json, f"{path}: {len(shown)} images, {crops} crops each")


def _load_teacher(
    teacher_name: str,
    weights: str | None,
    arch: str | None,
    size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    interpolation: str | None,
    class_names: str | None,
    device: str,
    precision: str,
) -> Any:
    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve

    names = Path(class_names).read_text().splitlines() if class_names else None
    spec = resolve(
        teacher_name, weights=weights, arch=arch, size=size, mean=mean, std=std,
        interpolation=interpolation, class_names=names,
    )  # fmt: skip
    return load_teacher(spec, device=device, precision=precision)


def _percent(agreement: float | None) -> str:
    if agreement is None:
        return "not measured: the folder's classes are not the teacher's by name"
    return f"{100 * agreement:.1f} % of crops have the image's own class first"


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event; the second of them acts as it always does."""
    import signal

    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask_to_stop(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask_to_stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point of `labelgen`."""
    run_cli(cli, "labelgen")
