"""The parts of demo.sh that are not commands of the project: the data set and the final table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

SIDE = 32  # the 8x8 digits are enlarged, so that crops of them still show something


def write_digits(root: Path) -> None:
    """scikit-learn's 1797 handwritten digits as an ImageFolder tree: 4 in 5 train, 1 in 5 val.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository; scikit-learn ships the 8x8 test part.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / ("val" if i % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")
    print(f"{len(digits.target)} digits in {root}", file=sys.stderr)


def print_table(root: Path) -> None:
    """Teacher, student from hard labels, student from the store: accuracy, size, time."""
    from rich.console import Console
    from rich.table import Table

    def read(name: str) -> dict:
        return json.loads((root / f"{name}.json").read_text())

    store = read("labels")
    files = (path for path in (root / "store.zarr").rglob("*") if path.is_file())
    store_mb = sum(path.stat().st_size for path in files) / 1e6
    table = Table(title="scikit-learn digits, this machine")
    for column in ("network", "learnt from", "parameters", "top-1 %", "training s", "labels MB"):
        is_text = column in ("network", "learnt from")
        table.add_column(column, justify="left" if is_text else "right")
    rows = (
        ("teacher", "hard labels", "-"),
        ("student-hard", "hard labels", "-"),
        ("student-store", f"{store['crops']} stored crop labels", f"{store_mb:.2f}"),
    )
    for name, learnt_from, labels in rows:
        run = read(name)
        table.add_row(
            f"{name.split('-')[0]} ({run['student']})",
            learnt_from,
            f"{run['parameters']:,}",
            f"{100 * run['evaluation']['top1']:.2f}",
            f"{run['seconds']:.1f}",
            labels,
        )
    Console().print(table)


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    {"digits": write_digits, "table": print_table}[command](folder)
