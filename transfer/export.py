"""Hand a student to another library, and prove that it is the same network there.

Every export is loaded again by the other library's own means, or where that library can't be
installed by undoing its names, and its logits are compared with the student's on seeded noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from storage.atomic import write_atomic
from storage.errors import TeachonceError, UsageError
from trainer.checkpoint import load_student, replace_atomically, save_student
from trainer.config import StudentConfig
from transfer.graphs import Run, write_onnx, write_pt2
from transfer.hub import model_card, timm_config
from transfer.layouts import LAYOUTS, Pixels, from_layout, pixels_for, resnet_name, to_layout

WEIGHTS_NAME = "model.safetensors"  # what timm looks for in a `local-dir:` folder
CONFIG_NAME, CARD_NAME = "config.json", "README.md"
STUDENT_NAME = "student.json"  # how to feed a file that has no place to say so
TOLERANCE = 1e-5  # of logits, relative to the largest where that is above 1
PIXEL_TOLERANCE = 1e-4  # where the first layer was changed: its sums are rounded otherwise


@dataclass(frozen=True)
class ExportReport:
    """Where the export lies and the largest difference of its logits (0 for pure renames).

    Attributes:
        files: their names in the folder. compared: how the difference was found, for people.
    """

    folder: Path
    target: str
    max_difference: float
    files: tuple[str, ...] = ()
    compared: str = ""


@dataclass(frozen=True, eq=False)
class Written:
    """An export read back.

    Attributes:
        run: the network. compared: how it was read. files: names of what was written.
        pixels: what its library does to an image; None: what the student does.
    """

    run: Run
    compared: str
    files: tuple[str, ...]
    pixels: Pixels | None = None


@dataclass(frozen=True)
class Order:
    """What was asked for: where to write, and for which pixels."""

    out: Path
    checkpoint: Path
    config: StudentConfig
    pixel_order: str | None
    pixel_std: tuple[float, ...] | None


def export(
    checkpoint: Path,
    target: str,
    out: Path,
    overwrite: bool = False,
    *,
    pixel_order: str | None = None,
    pixel_std: tuple[float, ...] | None = None,
) -> ExportReport:
    """Write a student for another library, load it there, compare the logits.

    Args:
        checkpoint: student.safetensors of `trainer fit`.
        target: a key of `TARGETS`.
        out: folder to write.
        pixel_order: rgb or bgr, what the other library feeds; pixel_std: what it divides by, of
            0..255. Only for the layouts of `transfer.layouts`; None: as is usual there.
    Raises:
        UsageError: no student, none that the target has a layout for, or `out` is not empty.
        TeachonceError: the exported network gives other logits.
    """
    if target not in TARGETS:
        raise UsageError(f"--to is {target!r}; expected one of {', '.join(TARGETS)}")
    if target not in LAYOUTS and (pixel_order or pixel_std):
        raise UsageError(
            f"--pixel-order and --pixel-std change names of {', '.join(LAYOUTS)} only: {target} "
            "takes the student's own pixels"
        )
    student, config = load_student(checkpoint)
    student.eval()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise UsageError(f"{out} is not empty: give another --out, or --overwrite")
    order = Order(out, checkpoint, config, pixel_order, pixel_std)
    _check_fits(target, config)
    out.mkdir(parents=True, exist_ok=True)
    written = TARGETS[target](student, order)
    difference = _check_parity(student, written, order, target)
    return ExportReport(out, target, difference, written.files, written.compared)


def largest_difference(first: nn.Module, second: nn.Module, size: int) -> float:
    """Largest absolute difference of logits on two seeded random images of side `size`."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((first.eval()(images) - second.eval()(images)).abs().max())


def _check_fits(target: str, config: StudentConfig) -> None:
    """Refuse, before anything is written, a network that the target has no place for."""
    resnet = resnet_name(config.arch)
    if target in LAYOUTS and resnet is None:
        raise UsageError(
            f"the student is {config.arch}: {target} has a known layout for torchvision's and "
            "timm's resnet18, 34, 50, 101 and 152 only; take --to onnx or --to hub"
        )
    prefix = {"torchvision": "tv:", "timm": "timm:"}.get(target)
    if prefix is None or config.arch.startswith(prefix) or resnet is not None:
        return
    own = {"tv": "torchvision", "timm": "timm"}.get(config.arch.partition(":")[0], "hub")
    raise UsageError(f"the student is {config.arch}, not a {target} network: use --to {own}")


def _check_parity(student: nn.Module, written: Written, order: Order, target: str) -> float:
    """The largest difference of logits on noise; raises where it is above TOLERANCE."""
    size, config = order.config.input_size, order.config
    raw = 255 * torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    images = (raw / 255 - mean) / std
    with torch.no_grad():
        expected = student(images)
        found = written.run(images if written.pixels is None else written.pixels.apply(raw))
    difference = float((expected - found).abs().max())
    tolerance = TOLERANCE if written.pixels is None else PIXEL_TOLERANCE
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise TeachonceError(
            f"{order.out} gives logits up to {difference:.2e} from the student's (at most "
            f"{allowed:.0e} expected): the installed {target} builds another {config.arch}"
        )
    return difference


def _to_torchvision(student: nn.Module, order: Order) -> Written:
    from torchvision import models

    _save_weights(student, order)
    name = order.config.arch.partition(":")[2]
    auxiliary = name in ("googlenet", "inception_v3")  # students have no auxiliary heads
    extra = {"aux_logits": False, "init_weights": False} if auxiliary else {}
    network = models.get_model(name, weights=None, num_classes=order.config.num_classes, **extra)
    network.load_state_dict(load_file(order.out / WEIGHTS_NAME))
    return Written(network.eval(), "loaded by torchvision", (WEIGHTS_NAME,))


def _to_timm(student: nn.Module, order: Order) -> Written:
    import timm

    _save_weights(student, order)
    _write_json(order.out / CONFIG_NAME, timm_config(_timm_name(order.config), order.config))
    network = timm.create_model(f"local-dir:{order.out.resolve()}", pretrained=True)
    return Written(network.eval(), "loaded by timm", (WEIGHTS_NAME, CONFIG_NAME))


def _to_hub(student: nn.Module, order: Order) -> Written:
    fits_timm = order.config.arch.startswith("timm:") or resnet_name(order.config.arch) is not None
    name = _timm_name(order.config) if fits_timm else None
    if fits_timm:
        written = _to_timm(student, order)
    else:
        _save_weights(student, order)
        _write_json(order.out / CONFIG_NAME, order.config.to_json())
        network, _ = load_student(order.out / WEIGHTS_NAME)
        files = (WEIGHTS_NAME, CONFIG_NAME)
        written = Written(network.eval(), "loaded by teachonce", files)
    write_atomic(order.out / CARD_NAME, model_card(order.config, name).encode())
    return replace(written, files=(*written.files, CARD_NAME))


def _to_onnx(student: nn.Module, order: Order) -> Written:
    return _to_graph(student, order, write_onnx, "model.onnx", "run by ONNX Runtime")


def _to_pt2(student: nn.Module, order: Order) -> Written:
    return _to_graph(student, order, write_pt2, "model.pt2", "loaded by torch.export")


def _to_graph(
    student: nn.Module,
    order: Order,
    write: Callable[[nn.Module, int, Path], Run],
    name: str,
    compared: str,
) -> Written:
    temporary = order.out / f"part-{name}"  # torch.export insists on the suffix
    try:
        run = write(student, order.config.input_size, temporary)
    except TeachonceError:
        raise
    except Exception as error:  # torch's exporters raise many types on networks they can't follow
        temporary.unlink(missing_ok=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TeachonceError(
            f"torch {torch.__version__} can't write {order.config.arch} as {name} ({reason}): "
            "try another --to"
        ) from error
    replace_atomically(temporary, order.out / name)
    _write_json(order.out / STUDENT_NAME, order.config.to_json())
    return Written(run, compared, (name, STUDENT_NAME))


def _to_layout(target: str) -> Callable[[nn.Module, Order], Written]:
    """Writer of a .pth for a library that is not installed here."""

    def write(student: nn.Module, order: Order) -> Written:
        layout, config = LAYOUTS[target], order.config
        pixels = pixels_for(
            order.pixel_order or layout.order, order.pixel_std, config.mean, config.std
        )
        tensors = to_layout(student.state_dict(), layout, pixels, config.std)
        wrapped = tensors if layout.wrap is None else {layout.wrap: tensors}
        path = order.out / f"{resnet_name(config.arch)}.pth"
        temporary = path.with_name(path.name + ".part")
        torch.save(wrapped, temporary)
        replace_atomically(temporary, path)
        settings = asdict(pixels) | _HINTS[target]
        _write_json(order.out / STUDENT_NAME, {**config.to_json(), "pixels": settings})
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = from_layout(saved if layout.wrap is None else saved[layout.wrap], layout)
        own = pixels == pixels_for("rgb", None, config.mean, config.std)
        return Written(
            _as_torchvision(found, student, config),
            "names undone",
            (path.name, STUDENT_NAME),
            None if own else pixels,
        )

    return write


def _as_torchvision(found: dict[str, Tensor], student: nn.Module, config: StudentConfig) -> Run:
    """A torchvision ResNet of the tensors of a file; a classifier it lacks is the student's."""
    from torchvision import models

    network: nn.Module = models.get_model(
        resnet_name(config.arch), weights=None, num_classes=config.num_classes
    )
    head = {name: t for name, t in student.state_dict().items() if name not in found}
    network.load_state_dict(found | {n: t for n, t in head.items() if n.startswith("fc.")})
    return network.eval()


def _timm_name(config: StudentConfig) -> str:
    return config.arch.partition(":")[2]


def _save_weights(student: nn.Module, order: Order) -> None:
    """Weights that also `trainer` reads: the header says which network they are of."""
    save_student(order.out / WEIGHTS_NAME, student, order.config, {"exported": True})


def _write_json(path: Path, values: object) -> None:
    write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())


# Settings of the other library without which the same tensors are another network.
_HINTS: dict[str, dict[str, object]] = {
    "detectron2": {"MODEL.RESNETS.STRIDE_IN_1X1": False},
    "semseg": {},
    "mmpretrain": {"style": "pytorch"},
}
TARGETS: dict[str, Callable[[nn.Module, Order], Written]] = {
    "torchvision": _to_torchvision,
    "timm": _to_timm,
    "hub": _to_hub,
    "onnx": _to_onnx,
    "pt2": _to_pt2,
    **{name: _to_layout(name) for name in LAYOUTS},
}
