"""Several processes: the same step as one, equal weights everywhere, resume, one line of errors."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from training import SIZE, make_store

from storage.errors import UsageError
from trainer.batch import Batch
from trainer.config import StudentConfig, TrainConfig
from trainer.distributed import World, joined_world
from trainer.learner import Learner
from trainer.loop import train_steps
from trainer.methods import Supervised
from trainer.networks import prepare
from trainer.plan import pieces, share_of_rank
from trainer.step_config import LoopConfig

PORT = 29_517


@given(steps=st.integers(1, 5), share=st.integers(1, 4), processes=st.integers(1, 4))
def test_the_shares_of_all_ranks_make_up_every_step(steps, share, processes):
    step_images = share * processes
    order = np.arange(steps * step_images)[::-1].copy()
    shares = [share_of_rank(order, step_images, rank, processes) for rank in range(processes)]
    for step in range(steps):
        taken = [s[step * share : (step + 1) * share] for s in shares]
        wanted = order[step * step_images : (step + 1) * step_images]
        assert np.concatenate(taken).tolist() == wanted.tolist()


def test_a_batch_that_processes_cannot_share_is_refused():
    assert pieces(12, 2, 3) == 2
    with pytest.raises(UsageError, match="has 12 images"):
        pieces(12, 1, 5)
    with pytest.raises(UsageError, match=r"5 processes share steps of 3 images: start 3 processes"):
        pieces(3, 1, 5)


def _network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))


def _batches():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 8, 3, 4, 4, generator=generator)
    return images, torch.randint(0, 5, (3, 8), generator=generator)


def _train(learner, rows):
    images, target = _batches()
    data = [Batch(images[i, rows], target[i, rows], None) for i in range(3)]
    optimizer = torch.optim.SGD(learner.parameters(), 0.1, momentum=0.9)
    train_steps(learner, optimizer, data, lr_of_step=lambda _step: 0.1, first_step=0,
                on_step=lambda *_: None)  # fmt: skip


def _process(rank, place):
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(PORT)}  # fmt: skip
    torch.set_num_threads(1)
    with joined_world(torch.device("cpu")) as world:
        learner = Learner(_network(), Supervised())
        _train(world.wrap(learner, torch.device("cpu")), slice(4 * rank, 4 * rank + 4))
        torch.save(learner.student.state_dict(), f"{place}/{rank}.pt")
        assert world.any(rank == 1)
        assert not world.any(False)
        assert world.gather(rank) == [0, 1]


def test_two_processes_take_the_steps_that_one_takes_with_the_whole_batch(tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    alone = Learner(_network(), Supervised())
    _train(alone, slice(0, 8))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in alone.student.state_dict().items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-5, atol=1e-6)


def run_config(**loop):
    return TrainConfig(
        method="supervised", labels=None, epochs=1, batch_size=4, views_per_image=1,
        data_identity="", loop=LoopConfig(**loop),
        student=StudentConfig(arch="resnet8", num_classes=3, input_size=32, mean=(0.5,) * 3,
                              std=(0.5,) * 3, interpolation="bilinear", classes=None),
    )  # fmt: skip


def test_synchronised_norms_are_refused_without_gpus(tmp_path):
    with pytest.raises(UsageError, match=r"loop.norm=sync over 2 processes .* loop.norm=batch"):
        prepare(run_config(norm="sync"), tmp_path, torch.device("cpu"), world=World(0, 2))
    with pytest.raises(UsageError, match="expected one of batch, sync"):
        LoopConfig(norm="synced")


def test_synchronised_norms_go_on_from_plain_ones_and_one_process_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.networks.check_norm", lambda *_: None)
    plain, _ = prepare(run_config(), tmp_path, torch.device("cpu"), world=World(0, 2))
    synced, _ = prepare(run_config(norm="sync"), tmp_path, torch.device("cpu"), world=World(0, 2))
    kinds = [{type(m) for m in one.student.modules()} for one in (plain, synced)]
    assert nn.BatchNorm2d in kinds[0] and nn.SyncBatchNorm not in kinds[0]
    assert nn.SyncBatchNorm in kinds[1] and nn.BatchNorm2d not in kinds[1]
    synced.load(plain.state())
    alone, _ = prepare(run_config(norm="sync"), tmp_path, torch.device("cpu"))
    assert nn.BatchNorm2d in {type(module) for module in alone.student.modules()}


def command(folder, out, *options, processes=2):
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-port", str(PORT + 1), "-m", "trainer.cli", "fit", "--labels",
        str(folder / "store.zarr"), "--out", str(out), "--student", "resnet8", "--size", str(SIZE),
        "--batch-size", "16", "--views-per-image", "2", "--device", "cpu", "--loader", "torch",
        "--workers", "1", "--val", str(folder / "images"), "--json", *options,
    ]  # fmt: skip


def run(folder, out, *options, processes=2):
    return subprocess.run(command(folder, out, *options, processes=processes), env=environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def stop_after_a_pass(folder, out, *options):
    """SIGTERM to all processes when the first pass is saved; the exit status."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(folder, out, *options), env=environment(), **quiet) as going:
        until = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists() and time.monotonic() < until:
            time.sleep(0.02)
        going.send_signal(signal.SIGTERM)
        return going.wait()


def write_large_folder(root):
    """20 photos of noise, 12 MiB together: two pages of a beton."""
    rng = np.random.default_rng(7)
    for number in range(20):
        place = root / f"class{number % 3}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (800, 800, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place, quality=90)
    return root


@pytest.mark.long
def test_torchrun_trains_stops_and_goes_on_as_if_it_had_not(tmp_path):
    """In quasi-random order, whose pages the processes share."""
    make_store(write_large_folder(tmp_path / "images"), tmp_path / "store.zarr")
    chosen = ("--epochs", "6", "--set", "order.kind=quasi-random", "--set", "order.memory_mib=8")
    whole = run(tmp_path, tmp_path / "whole", *chosen)
    assert whole.returncode == 0, whole.stderr
    reports = [json.loads(text) for text in whole.stdout.strip().split("\n}\n") if text]
    assert len(reports) == 1, "only the first process reports"
    assert stop_after_a_pass(tmp_path, tmp_path / "parts", *chosen) != 0
    assert not (tmp_path / "parts" / "student.safetensors").exists()
    resumed = run(tmp_path, tmp_path / "parts", *chosen)
    assert resumed.returncode == 0, resumed.stderr
    a = load_file(tmp_path / "whole" / "student.safetensors")
    b = load_file(tmp_path / "parts" / "student.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    one = run(tmp_path, tmp_path / "whole", *chosen, processes=1)
    assert "2 processes" in one.stderr
    assert one.returncode != 0
