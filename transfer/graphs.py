"""A student as a graph that runs without its Python code: ONNX and torch.export."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from storage.extras import needs_extra

Run = Callable[[Tensor], Tensor]
INPUT, OUTPUT = "images", "logits"


def write_onnx(student: nn.Module, size: int, path: Path) -> Run:
    """Write one ONNX file with a free batch size, and run it with ONNX Runtime.

    Raises:
        UsageError: the packages of the extra `onnx` are missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise needs_extra("--to onnx", str(error.name), "onnx") from error
    with _quietly():
        torch.onnx.export(
            student,
            (_example(size),),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def write_pt2(student: nn.Module, size: int, path: Path) -> Run:
    """Write a torch.export archive with a free batch size, and load it again."""
    with _quietly():
        program = torch.export.export(
            student, (_example(size),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, path)
        return torch.export.load(path).module()


def _example(size: int) -> Tensor:
    # two images: a batch of one would be taken for a constant
    return torch.zeros(2, 3, size, size)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' remarks on their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
