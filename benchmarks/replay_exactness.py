"""How many replayed crops differ in any bit from pillow-simd's crop of the same box.

    python benchmarks/replay_exactness.py --data FOLDER [--crops 20000]

Packs the folder, draws random resized crops as `labelgen` does, replays them through FFCV and
compares each with `Image.open(file).crop(box).resize(...)`. Leaves with 1 if any differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from storage.images import ImageStatus, scan_folder
from storage.views import RandomResizedCrop
from trainer.replay.beton import Beton, pack
from trainer.replay.loader import FFCVReplayLoader

VIEWS = 20
SIZE = 224


def count_differences(beton: Beton, root: Path, interpolation: str, rounds: range) -> list[int]:
    """[crops compared, crops that differ, values that differ, largest difference]."""
    loader = FFCVReplayLoader(
        beton, size=SIZE, views=VIEWS, interpolation=interpolation, batch_images=8, workers=2
    )
    resample = Image.Resampling[interpolation.upper()]
    rows = np.flatnonzero(beton.status == ImageStatus.OK)
    totals = [0, 0, 0, 0]
    for number in rounds:
        box = np.zeros((beton.num_rows, VIEWS, 4), np.uint16)
        flip = np.zeros((beton.num_rows, VIEWS), np.uint8)
        for row in rows:
            views = RandomResizedCrop().draw(
                0, beton.digests[row].tobytes(), *map(int, beton.sizes[row]), number * VIEWS, VIEWS
            )
            box[row], flip[row] = views.box, views.flip
        for batch in loader.epoch(rows, box, flip):
            for row, images in zip(batch.rows, batch.images.numpy(), strict=True):
                with Image.open(root / beton.keys[row]) as file:
                    source = file.convert("RGB")
                for view, ours in enumerate(images):
                    top, left, height, width = box[row, view].tolist()
                    crop = source.crop((left, top, left + width, top + height))
                    crop = crop.resize((SIZE, SIZE), resample)
                    if flip[row, view]:
                        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                    difference = np.abs(np.asarray(crop).astype(np.int16) - ours)
                    totals[0] += 1
                    totals[1] += bool(difference.any())
                    totals[2] += int(np.count_nonzero(difference))
                    totals[3] = max(totals[3], int(difference.max()))
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument("--crops", type=int, default=20_000, help="of each interpolation")
    options = parser.parse_args()
    folder = scan_folder(options.data)
    differing = 0
    with tempfile.TemporaryDirectory() as temporary:
        report = pack(folder, Path(temporary) / "photos.beton", workers=2)
        print(f"{report.kept_jpeg} JPEGs unchanged, {report.stored_raw} as pixels, "
              f"{len(report.masked)} masked")  # fmt: skip
        beton = Beton.open(report.path)
        readable = report.num_rows - len(report.masked)
        rounds = range(-(-options.crops // (readable * VIEWS)))
        for interpolation in ("bilinear", "bicubic"):
            crops, wrong, values, largest = count_differences(
                beton, folder.root, interpolation, rounds
            )
            differing += wrong
            print(f"{interpolation}: {wrong} of {crops} crops differ ({values} values, "
                  f"largest difference {largest})", flush=True)  # fmt: skip
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
