"""Images a second that `trainer pack` takes, beside FFCV's own writer, rounds interleaved.

    python benchmarks/packing.py --data FOLDER [--images 3000] [--rounds 3] [--workers 2]

    (a)  source bytes unchanged, plain JPEGs checked by their markers and a sample by decoding
    (b)  the same, every image decoded twice and compared (--check all)
    (c)  re-encoded: --max-side 500 --quality 90
    (d)  ffcv.writer.DatasetWriter, RGBImageField(write_mode="jpg", max_resolution=500,
         jpeg_quality=90), of images that Pillow decodes

The photos of the folder are linked under new names until there are enough. Ratios are medians over
the rounds of ratios within a round. Every side works with the same
number of workers: threads in (a), else processes, whose start counts; that is why many images are
wanted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from storage.images import scan_folder
from trainer.replay.beton import pack
from trainer.replay.reencode import Reencoding


class Photos:
    """(image, class) of every file, as a data set that FFCV's writer indexes."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.files[index]) as file:
            return file.convert("RGB"), 0


def link_photos(source: Path, folder: Path, images: int) -> list[Path]:
    """So many files in a class folder each, all photos of `source` in turn."""
    photos = [source / key for key in scan_folder(source).keys]
    files = []
    for number in range(images):
        photo = photos[number % len(photos)]
        path = folder / photo.parent.name / f"{number:06d}{photo.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(photo.resolve())
        files.append(path)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of full-size photos")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary))


def run(options: argparse.Namespace, temporary: Path) -> None:
    files = link_photos(options.data, temporary / "photos", options.images)
    out = temporary / "out.beton"

    def ours(**settings: object) -> None:
        folder = scan_folder(temporary / "photos")  # listing counts
        pack(folder, out, workers=options.workers, **settings)

    # here, for our packing processes import this file as the command's would import `trainer`
    from trainer.replay.ffcv_loader import quiet_ffcv

    with quiet_ffcv():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

    def theirs() -> None:
        fields = {
            "image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=90),
            "label": IntField(),
        }
        writer = DatasetWriter(str(temporary / "ffcv.beton"), fields, num_workers=options.workers)
        writer.from_indexed_dataset(Photos(files))

    cases = {
        "a  unchanged": ours,
        "b  unchanged, every image decoded": lambda: ours(check="all"),
        "c  re-encoded": lambda: ours(reencoding=Reencoding(max_side=500, quality=90)),
        "d  FFCV's writer, re-encoding": theirs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            for old in temporary.glob("*.beton*"):
                old.unlink()
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    rival = seconds["d  FFCV's writer, re-encoding"]
    for name, times in seconds.items():
        ratio = statistics.median(other / own for own, other in zip(times, rival, strict=True))
        goal = "  target >= 8" if name.startswith("a") else ""
        rate = options.images / statistics.median(times)
        print(f"{name:36s} {rate:7.0f} images/s  {ratio:5.2f} times d{goal}")


if __name__ == "__main__":
    main()
