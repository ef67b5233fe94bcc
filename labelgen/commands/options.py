"""What the commands of `labelgen` share: the teacher's options, signals, short texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.cli_common import DEFAULT_STORE, with_options

if TYPE_CHECKING:
    from labelgen.teacher import Teacher

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
    click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), default=None,
                 help="Order in which the network takes the channels, and --mean and --std are."),
    click.option("--class-offset", type=click.IntRange(0), default=None,
                 help="First outputs to drop [default: 1, the background, of 1001 classes]."),
    click.option("--class-names", type=click.Path(exists=True, dir_okay=False), default=None,
                 help="Text file with the teacher's classes, one a line, in order."),
    click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
                 default="fp32", show_default=True, help="Arithmetic of the forward pass."),
)  # fmt: skip


def teacher_options(required: bool) -> Callable[[F], F]:
    """--teacher and all that describes one; the values go to `load_teacher_from`."""

    def decorate(command: F) -> F:
        command = with_options(_TEACHER_OPTIONS)(command)
        return click.option(
            "--teacher", "teacher_name", required=required, metavar="NAME",
            help="Alias (r152), tv:NAME@WEIGHTS, timm:NAME, hf-hub:REPO@REV, local-dir:FOLDER, "
            "file:weights.safetensors or ensemble:A+B; see labelgen teachers.",
        )(command)  # fmt: skip

    return decorate


def label_options(out_help: str) -> Callable[[F], F]:
    """--data, --out, --crops and --top-k: what is labelled, and how much of it is kept."""
    options = (
        click.option("--data", type=click.Path(), default=None,
                     help="Image folder or .beton [default: $TEACHONCE_DATA, else ./data]."),
        click.option("--out", type=click.Path(), default=DEFAULT_STORE, show_default=True,
                     help=out_help),
        click.option("--crops", type=click.IntRange(1), default=500, show_default=True,
                     help="Views labelled of every image."),
        click.option("--top-k", type=click.IntRange(1), default=None,
                     help="Classes kept a label [default: 10, or all if there are fewer]."),
    )  # fmt: skip

    return with_options(options)


def load_teacher_from(
    teacher_name: str,
    weights: str | None,
    arch: str | None,
    size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    interpolation: str | None,
    channel_order: str | None,
    class_offset: int | None,
    class_names: str | None,
    device: str,
    precision: str,
) -> Teacher:
    """The teacher that `teacher_options` (and --device) describe."""
    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve

    names = Path(class_names).read_text().splitlines() if class_names else None
    spec = resolve(
        teacher_name, weights=weights, arch=arch, size=size, mean=mean, std=std,
        interpolation=interpolation, class_names=names, channel_order=channel_order,
        class_offset=class_offset,
    )  # fmt: skip
    return load_teacher(spec, device=device, precision=precision)


class _BatchSize(click.ParamType):  # type: ignore[type-arg]
    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        return None if value == "auto" else click.IntRange(1).convert(value, param, ctx)


def batch_options(command: F) -> F:
    """--batch-size, --compile: how crops are forwarded."""
    options = (
        click.option("--batch-size", type=_BatchSize(), default=None,
                     help="Crops a forward pass [default: auto, which is 64 on a CPU and, on a "
                          "GPU, as many as bring more crops a second]."),
        click.option("--compile", "compiled", is_flag=True,
                     help="Run the network through torch.compile; recorded in the store."),
        click.option("--keep-members", is_flag=True,
                     help="Keep labels of each of an ensemble's teachers too."),
    )  # fmt: skip
    return with_options(options)(command)


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
