"""Crops/s and peak memory of `labelgen run` over those of a label generator built as FKD's is.

    python benchmarks/fkd_generator.py --data PHOTOS --teacher tv:mobilenet_v2 --weights FILE

The rival follows FKD's published generator (Shen & Xing 2022; a DataLoader over images whose items
are all M crops of an image as one float tensor, bicubic resize, ToTensor, Normalize by
torchvision; chunks of 50 crops through the frozen network in fp32, contiguous; a Python loop over
the crops that sorts all classes and keeps k; one torch.save an image). Both label the same images
with the same network, crops, area range, interpolation and number of worker processes, each in a
process of its own, round by round; the start of the processes isn't timed. Memory is the largest
sum of the proportional set sizes of a process and its children, looked at once a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

CHUNK = 50  # FKD's --num_seg
AREA = (0.08, 0.936)  # FKD's --min_scale_crops and --max_scale_crops
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What both generators are asked for."""

    data: str
    teacher: str
    weights: str | None
    crops: int
    images: int
    workers: int
    batch_images: int
    batch_size: int
    out: str


def label_as_fkd(job: Job) -> tuple[int, float]:
    """The rival: crops labelled and seconds."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import InterpolationMode, RandomResizedCrop
    from torchvision.transforms import functional as F

    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve
    from storage.images import scan_folder

    teacher = load_teacher(resolve(job.teacher, weights=job.weights))
    model = teacher.model.to(memory_format=torch.contiguous_format)
    folder, spec = scan_folder(job.data), teacher.spec

    class AllCrops(Dataset):
        def __len__(self) -> int:
            return min(job.images, len(folder))

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
            with Image.open(folder.path(row)) as opened:
                image = opened.convert("RGB")
            width, height = image.size
            pixels, coords, flips = [], [], []
            for _ in range(job.crops):
                top, left, h, w = RandomResizedCrop.get_params(image, list(AREA), [3 / 4, 4 / 3])
                crop = F.resized_crop(image, top, left, h, w, [spec.input_size] * 2,
                                      InterpolationMode.BICUBIC)  # fmt: skip
                flips.append(bool(torch.rand(1) < 0.5))
                if flips[-1]:
                    crop = F.hflip(crop)
                pixels.append(F.normalize(F.to_tensor(crop), spec.mean, spec.std))
                coords.append(torch.tensor([top / height, left / width, h / height, w / width]))
            return torch.stack(pixels), torch.stack(coords), torch.tensor(flips), row

    def top_k(probabilities: torch.Tensor, k: int = 5) -> torch.Tensor:
        kept = []
        for row in probabilities:
            values, index = row.sort(descending=True)
            kept.append(torch.stack([index[:k].float(), values[:k]]))
        return torch.stack(kept)

    loader = DataLoader(
        AllCrops(), batch_size=job.batch_images, num_workers=job.workers,
        multiprocessing_context="fork",
    )  # fmt: skip
    done, start = 0, time.perf_counter()
    for pixels, coords, flips, rows in loader:
        for image in range(len(rows)):
            chunks = pixels[image].split(CHUNK)
            labels = torch.cat([top_k(model(chunk).softmax(dim=1)) for chunk in chunks])
            name = Path(job.out) / f"{int(rows[image])}.tar"
            torch.save([coords[image].numpy(), flips[image].numpy(), labels.numpy()], name)
            done += job.crops
    return done, time.perf_counter() - start


def label_with_labelgen(job: Job) -> tuple[int, float]:
    """Ours: crops labelled and seconds."""
    from labelgen.run import generate
    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve
    from storage.views import RandomResizedCrop

    spec = replace(resolve(job.teacher, weights=job.weights), interpolation="bicubic")
    result = generate(
        load_teacher(spec), job.data, Path(job.out) / "store.zarr", crops=job.crops, top_k=5,
        sampler=RandomResizedCrop(scale=AREA), workers=job.workers, batch_size=job.batch_size,
    )  # fmt: skip
    return result.new_crops, result.seconds


def forward_alone(job: Job) -> tuple[int, float]:
    """The network on one resident batch, for the memory that nobody can save."""
    import torch

    from labelgen.teacher import load_teacher
    from labelgen.teachers import resolve

    teacher = load_teacher(resolve(job.teacher, weights=job.weights))
    side, count = teacher.spec.input_size, job.batch_size
    batch = torch.rand(count, 3, side, side).contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(5):
            teacher.model(batch)
    return 5 * count, time.perf_counter() - start


def measure(work: Callable[[Job], tuple[int, float]], job: Job) -> dict[str, float]:
    """Run it in a process of its own: crops/s and peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor, sampled_memory() as peak:
        crops, seconds = executor.submit(work, job).result()
    return {"crops_per_s": crops / seconds, "peak_mib": max(peak) / 2**20}


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Bytes of all processes below this one, sampled into a list while the block runs."""
    seen, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            seen.append(sum(_proportional_bytes(pid) for pid in _descendants(os.getpid())))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def _descendants(pid: int) -> list[int]:
    """All processes that a process, or one below it, has started."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found[1:]


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--teacher", default="tv:mobilenet_v2", show_default=True)
@click.option("--weights", type=click.Path(exists=True), default=None)
@click.option("--crops", default=500, show_default=True, help="Views an image.")
@click.option("--images", default=8, show_default=True, help="Images the rival labels a round.")
@click.option("--batch-images", default=4, show_default=True, help="The rival's -b.")
@click.option("--batch-size", default=64, show_default=True, help="Crops a forward of labelgen.")
@click.option("--workers", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(
    data: str,
    teacher: str,
    weights: str | None,
    crops: int,
    images: int,
    batch_images: int,
    batch_size: int,
    workers: int,
    rounds: int,
) -> None:
    """Print both rates, both peaks and their ratios as JSON."""
    found: dict[str, list[dict[str, float]]] = {"fkd": [], "labelgen": [], "forward": []}
    works = {"fkd": label_as_fkd, "labelgen": label_with_labelgen, "forward": forward_alone}
    chosen = _first_images(data, images)
    for number in range(rounds):
        for name, work in works.items():
            with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as folder:
                _link(chosen, Path(folder))
                job = Job(folder, teacher, weights, crops, images, workers, batch_images,
                          batch_size, out)  # fmt: skip
                found[name].append(measure(work, job))
                print(f"round {number}: {name} {found[name][-1]}", file=sys.stderr)
    rates = [ours["crops_per_s"] / theirs["crops_per_s"]
             for ours, theirs in zip(found["labelgen"], found["fkd"], strict=True)]  # fmt: skip
    peaks = {name: max(run["peak_mib"] for run in runs) for name, runs in found.items()}
    report = {
        "job": {k: v for k, v in asdict(job).items() if k not in ("data", "out", "weights")},
        "crops_per_s": {name: round(statistics.median(run["crops_per_s"] for run in runs), 2)
                        for name, runs in found.items()},
        "rate_over_fkd": round(statistics.median(rates), 3),
        "rates_over_fkd": [round(rate, 3) for rate in rates],
        "peak_mib": {name: round(peak) for name, peak in peaks.items()},
        "peak_over_fkd": round(peaks["labelgen"] / peaks["fkd"], 4),
        "peak_beyond_forward_over_fkd": round(
            (peaks["labelgen"] - peaks["forward"]) / (peaks["fkd"] - peaks["forward"]), 4
        ),
    }  # fmt: skip
    click.echo(json.dumps(report, indent=2))


def _first_images(data: str, count: int) -> list[Path]:
    from storage.images import scan_folder

    folder = scan_folder(data)
    step = max(1, len(folder) // count)
    return [folder.path(row) for row in range(0, len(folder), step)][:count]


def _link(images: list[Path], folder: Path) -> None:
    for image in images:
        place = folder / image.parent.name / image.name
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(image.absolute())


if __name__ == "__main__":
    main()
