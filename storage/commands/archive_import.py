"""labelstore import: stores of labels that other projects published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.cli_common import (
    json_option,
    print_result,
    resolve_data,
    show_blocks,
    with_options,
)

if TYPE_CHECKING:
    from storage.archives.importing import Declared, Records
    from storage.archives.report import ImportReport
    from storage.archives.source import ArchiveSource
    from storage.images import ImageFolder

F = TypeVar("F", bound=Callable[..., Any])
MakeRecords = Callable[["ArchiveSource", "ImageFolder", "ImportReport"], "Records"]


@click.group("import")
def import_group() -> None:
    """Make a store of labels that another project published.

    No pickle is ever run. Bad files are listed and their images masked; what a format doesn't say
    (teacher, pixels) is declared by options and written down as not verified.
    """


def _import_options(input_size: int, interpolation: str) -> Callable[[F], F]:
    """Options that all imports share; defaults are what the format's own generator used."""
    options = (
        click.argument("archive", type=click.Path()),
        click.option("--out", type=click.Path(), required=True, help="Store to write."),
        click.option("--data", type=click.Path(), default=None,
                     help="Image folder that was labelled [default: $TEACHONCE_DATA or ./data]."),
        click.option("--teacher", default="unknown", show_default=True,
                     help="Which network made the labels (declared)."),
        click.option("--licence", default="unknown", show_default=True,
                     help="Licence of that network's weights (declared)."),
        click.option("--input-size", type=click.IntRange(1), default=input_size,
                     show_default=True, help="Side of its input in pixels (declared)."),
        click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]),
                     default=interpolation, show_default=True,
                     help="Resampling of its crops (declared)."),
        click.option("--class-names", type=click.Path(exists=True, dir_okay=False),
                     default=None, help="File of its class names in order, one a line."),
        click.option("--step", type=click.FloatRange(0.05, 1), default=0.25, show_default=True,
                     help="Log-probabilities are kept in steps of this many nats."),
        click.option("--report", "report_file", type=click.Path(dir_okay=False), default=None,
                     help="Write every problem to this JSON file."),
        json_option,
    )  # fmt: skip

    return with_options(options)


_CLASSES = click.option("--num-classes", type=click.IntRange(2), default=1000, show_default=True,
                        help="Classes of the teacher.")  # fmt: skip
_CROPS = click.option("--crops", type=click.IntRange(1), default=None,
                      help="Crops kept of each image [default: as most files have].")  # fmt: skip


@import_group.command("fkd")
@_import_options(475, "bicubic")
@_CLASSES
@_CROPS
@click.option("--label-type", default="marginal_smoothing", show_default=True,
              type=click.Choice(["marginal_smoothing", "marginal_renorm", "smoothing", "hard",
                                 "full"]), help="Which of FKD's types the files hold.")  # fmt: skip
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="Temperature of the teacher's softmax (declared); only 1 can be kept.",
)
@click.option("--top-k", type=click.IntRange(1), default=None,
              help="Classes kept of full labels [default: 10].")  # fmt: skip
def import_fkd(
    num_classes: int, crops: int | None, label_type: str, temperature: float,
    top_k: int | None, **options: Any,
) -> None:  # fmt: skip
    """FKD: <split>/<class>/<stem>.tar (torch-save files), a folder or one zip."""
    from storage.archives.fkd import FkdRecords
    from storage.errors import UsageError

    if temperature != 1:
        raise UsageError(
            f"labels of temperature {temperature}: a store keeps probabilities of temperature 1, "
            "and those can't be told from the few classes that were kept"
        )
    _run(
        "fkd",
        lambda source, folder, report: FkdRecords(
            source, folder, report, label_type=label_type, num_classes=num_classes,
            num_views=crops, top_k=top_k,
        ),
        **options,
    )  # fmt: skip


@import_group.command("relabel")
@_import_options(475, "bilinear")
@_CLASSES
@click.option(
    "--crops",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Views to draw of each image.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Classes kept of a pooled label.",
)
@click.option(
    "--map-axes",
    type=click.Choice(["published", "natural"]),
    default="published",
    show_default=True,
    help="published: (top, left) in the map's (x, y), as their "
    "training code has it; natural: (left, top).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the views.")  # fmt: skip
def import_relabel(
    num_classes: int, crops: int, top_k: int, map_axes: str, seed: int, **options: Any
) -> None:
    """ReLabel: <class>/<stem>.pt label maps, pooled over views that are drawn here."""
    from storage.archives.relabel import RelabelRecords

    _run(
        "relabel",
        lambda source, folder, report: RelabelRecords(
            source, folder, report, num_classes=num_classes, num_views=crops, top_k=top_k,
            axes=map_axes, seed=seed,
        ),
        seed=seed, **options,
    )  # fmt: skip


@import_group.command("mldr")
@_import_options(224, "bilinear")
@_CLASSES
@_CROPS
def import_mldr(num_classes: int, crops: int | None, **options: Any) -> None:
    """ml-dr (ImageNet+): <index>.pth.tar of the random-resized-crop variants."""
    from storage.archives.mldr import MldrRecords

    _run(
        "mldr",
        lambda source, folder, report: MldrRecords(
            source, folder, report, num_classes=num_classes, num_views=crops
        ),
        **options,
    )


@import_group.command("tinyvit")
@_import_options(224, "bicubic")
@_CLASSES
@click.option(
    "--crops",
    type=click.IntRange(1),
    default=None,
    help="Epochs to take, from the first [default: all].",
)
@click.option(
    "--augmentation",
    type=click.Choice(["crop-flip"]),
    default=None,
    help="What the views went through (declared): only crop and flip can be kept.",
)
@click.option(
    "--scale",
    type=float,
    nargs=2,
    default=(0.08, 1.0),
    show_default=True,
    help="Smallest and largest share of the image.",
)
@click.option("--flip-probability", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Of mirroring.")  # fmt: skip
def import_tinyvit(
    num_classes: int, crops: int | None, augmentation: str | None, scale: tuple[float, float],
    flip_probability: float, **options: Any,
) -> None:  # fmt: skip
    """TinyViT: logits_top<K>_epoch<e>/rank<r>-{keys.txt,values.bin}."""
    from storage.archives.tinyvit import TinyVitRecords

    _run(
        "tinyvit",
        lambda source, folder, report: TinyVitRecords(
            source, folder, report, augmentation=augmentation, num_classes=num_classes,
            num_views=crops, scale=scale, flip_probability=flip_probability,
        ),
        **options,
    )  # fmt: skip


@import_group.command("sre2l")
@_import_options(224, "bilinear")
@click.option(
    "--crops",
    type=click.IntRange(1),
    default=None,
    help="Epochs to take, from the first [default: all].",
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Classes kept of the dense logits.",
)
@click.option("--order-seed", type=click.IntRange(0), default=42, show_default=True,
              help="Seed of the sampler that ordered the images (--fkd-seed).")  # fmt: skip
def import_sre2l(crops: int | None, top_k: int, order_seed: int, **options: Any) -> None:
    """SRe2L: epoch_<e>/batch_<b>.tar without mixing."""
    from storage.archives.sre2l import Sre2lRecords

    _run(
        "sre2l",
        lambda source, folder, report: Sre2lRecords(
            source, folder, report, num_views=crops, top_k=top_k, order_seed=order_seed
        ),
        **options,
    )


def _run(
    name: str, make: MakeRecords, *, archive: str, out: str, data: str | None,
    report_file: str | None, as_json: bool, seed: int = 0, **declared: Any,
) -> None:  # fmt: skip
    import json

    from storage.archives.importing import import_records
    from storage.archives.report import ImportReport
    from storage.archives.source import ArchiveSource
    from storage.images import scan_folder

    folder = scan_folder(resolve_data(data))
    report = ImportReport(format=name, archive=archive, out=out)
    settings = _declared(seed=seed, **declared)
    with ArchiveSource(archive) as source:
        records = make(source, folder, report)
        import_records(records, folder, Path(out), settings, report, show_blocks)
    if report_file:
        Path(report_file).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    print_result(report.to_json(), as_json, report.text())


def _declared(*, class_names: str | None, **values: Any) -> Declared:
    from storage.archives.importing import Declared

    classes = None
    if class_names:
        lines = Path(class_names).read_text(encoding="utf-8").splitlines()
        classes = tuple(line.strip() for line in lines if line.strip())
    return Declared(classes=classes, **values)


COMMANDS = [import_group]
