"""What the four command lines share: options, error lines, exit codes, JSON output.

Exit codes: 0 done, 1 failed, 2 misused, 3 incomplete. Results go to stdout, everything else
to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.errors import TeachonceError, UsageError

if TYPE_CHECKING:
    from storage.views import CentreCrop, PaddedCrop, RandomResizedCrop

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORE = "store.zarr"
DATA_ENVIRONMENT = "TEACHONCE_DATA"


def run_cli(command: click.Command, prog_name: str) -> None:
    """Run a click command; errors meant for users become one line and an exit code."""
    try:
        code = command.main(prog_name=prog_name, standalone_mode=False)
    except click.exceptions.Abort:
        _fail(prog_name, "interrupted: run the same command again to go on", 1)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        sys.exit(error.exit_code)
    except TeachonceError as error:
        _fail(prog_name, " ".join(str(error).split()), error.exit_code)
    except MemoryError:
        _fail(prog_name, "out of memory: try a smaller --batch-size or fewer --workers", 1)
    except OSError as error:
        _fail(prog_name, _describe_os_error(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(prog_name: str, message: str, code: int) -> None:
    click.echo(f"{prog_name}: error: {message}", err=True)
    sys.exit(code)


def _describe_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    what = error.strerror or str(error) or type(error).__name__
    hint = ""
    if error.errno == 28:
        hint = "; free some space and run the same command again: what is written stays valid"
    return f"{where}{what}{hint}"


def reports() -> bool:
    """Whether this process prints the result: of torchrun's processes the first one does."""
    return os.environ.get("RANK", "0") == "0"


def print_result(result: dict[str, Any], as_json: bool, text: str) -> None:
    """The command's result on stdout: JSON with `--json`, else text for people."""
    click.echo(json.dumps(result, indent=2) if as_json else text)


def resolve_data(data: str | None) -> Path:
    """The image folder: `--data`, else $TEACHONCE_DATA, else ./data."""
    chosen = data or os.environ.get(DATA_ENVIRONMENT) or "data"
    path = Path(chosen)
    if not path.exists():
        source = "--data" if data else f"${DATA_ENVIRONMENT}" if chosen != "data" else "the default"
        raise UsageError(
            f"no image folder at {path} ({source}): give one with --data FOLDER "
            f"or set ${DATA_ENVIRONMENT}"
        )
    return path


def json_option(command: F) -> F:
    """--json: machine-readable result on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        command
    )


def seed_option(command: F) -> F:
    """--seed: the only source of chance."""
    return click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                        help="Seed of every random draw.")(command)  # fmt: skip


def workers_option(command: F) -> F:
    """--workers: processes or threads that decode images."""
    help_text = "Workers that decode images [default: number of cores]."
    return click.option("--workers", type=click.IntRange(1), help=help_text)(command)


def device_option(command: F) -> F:
    """--device: where networks run."""
    return click.option("--device", default="auto", show_default=True,
                        help="auto, cpu, cuda or cuda:N.")(command)  # fmt: skip


def overwrite_option(command: F) -> F:
    """--overwrite: permission to replace what exists."""
    return click.option("--overwrite", is_flag=True,
                        help="Replace what exists at the output.")(command)  # fmt: skip


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[F], F]:
    """Options and arguments shared by commands, which get them in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def view_options(command: F) -> F:
    """--views and what it needs: how views are drawn; see `sampler_from_options`."""
    options = (
        click.option(
            "--views",
            type=click.Choice(["random-resized-crop", "padded-crop", "centre"]),
            default="random-resized-crop",
            show_default=True,
            help="How crops are drawn; padded-crop is for small images, centre for evaluation.",
        ),
        click.option(
            "--scale",
            type=float,
            nargs=2,
            default=(0.08, 1.0),
            show_default=True,
            help="Smallest and largest share of the image (random-resized-crop; FKD: .08 .936).",
        ),
        click.option(
            "--ratio",
            type=float,
            nargs=2,
            default=(3 / 4, 4 / 3),
            help="Smallest and largest width / height (random-resized-crop) [default: 3/4 4/3].",
        ),
        click.option(
            "--padding",
            type=click.IntRange(0, 64),
            default=4,
            show_default=True,
            help="Border in pixels (padded-crop).",
        ),
        click.option(
            "--crop-ratio",
            type=float,
            default=0.875,
            show_default=True,
            help="Side of the central square beside the image's shorter side (centre).",
        ),
        click.option(
            "--flip/--no-flip",
            default=True,
            show_default=True,
            help="Mirror half of the crops (random-resized-crop, centre).",
        ),
    )
    return with_options(options)(command)


def take_sampler(options: dict[str, Any]) -> RandomResizedCrop | PaddedCrop | CentreCrop:
    """The view sampler of a command's options, of which `view_options`' own are taken out."""
    names = ("views", "scale", "padding", "flip", "ratio", "crop_ratio")
    return sampler_from_options(*(options.pop(name) for name in names))


def sampler_from_options(
    views: str,
    scale: tuple[float, float],
    padding: int,
    flip: bool,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    crop_ratio: float = 0.875,
) -> RandomResizedCrop | PaddedCrop | CentreCrop:
    """The view sampler that `view_options` describe."""
    from storage.views import CentreCrop, PaddedCrop, RandomResizedCrop

    if views == "padded-crop":
        return PaddedCrop(padding=padding)
    if views == "centre":
        return CentreCrop(crop_ratio=crop_ratio, flip=flip)
    return RandomResizedCrop(scale=scale, ratio=ratio, flip_probability=0.5 if flip else 0.0)


def show_blocks(done: int, blocks: int) -> None:
    """Count blocks on a terminal, in one line."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {blocks} blocks", err=True, nl=done == blocks)
