"""Fine-tuning by several processes: the steps of one, files written once, stops, batch norms."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import detection
import pytest
import segment_sets
import torch
import torch.multiprocessing as mp
from detection import student_config
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from training import stopped_after

from storage.errors import StoreMismatch, UsageError
from trainer import models
from trainer.distributed import World, joined_world
from trainer.metrics import METRICS_NAME, read_metrics
from trainer.norms import check_norm, with_norm
from trainer.optim import parameter_groups
from trainer.step_config import OptimConfig, ScheduleConfig
from transfer.classify import ClassifyRequest, run_classify
from transfer.detect.model import build_detector
from transfer.detect.presets import DetectorConfig
from transfer.detect.run import DetectRequest, run_detect
from transfer.detect.settings import DetectOptions
from transfer.epochs import EpochBatches
from transfer.finetune import FineTuneConfig, fine_tune
from transfer.options import TaskOptions, take_options
from transfer.segment.augment import SegmentBatch
from transfer.segment.loss import PixelLoss
from transfer.segment.model import build_segmenter
from transfer.segment.run import SegmentRequest, run_segment
from transfer.segment.settings import IGNORED, SegmentSettings
from transfer.starts import SCRATCH, Start

PORT = 29_717
CPU = torch.device("cpu")
CONFIG = FineTuneConfig(
    epochs=2,
    optim=OptimConfig(lr=0.01, nesterov=False),
    schedule=ScheduleConfig(kind="poly", warmup_epochs=0.5),
    clip_norm=1.0,
    seed=5,
)


@dataclass(frozen=True)
class Noise:
    """49 rows of drawn inputs: with 4 a step, 12 steps an epoch."""

    def __len__(self) -> int:
        return 49

    def name(self, row: int) -> str:
        return f"row{row}"

    def sample(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.randn(4) + row / 49, torch.tensor([row / 49])


@dataclass(frozen=True)
class Rows:
    values: Tensor
    target: Tensor


def collate(samples):
    return Rows(*(torch.stack(part) for part in zip(*samples, strict=True)))


class Plain(nn.Module):
    """Of equal shares the mean of the gradients is the batch's; one layer takes no part."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.idle = nn.Linear(2, 2)

    def forward(self, values):
        return self.body(values)


def chancy():
    """Batch statistics of each process, and chances in training."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def loss(model, batch):
    return {"square": (model(batch.values) - batch.target).square().mean()}


def batches(world, batch_size=4):
    return EpochBatches(Noise(), collate, seed=5, batch_size=batch_size, world=world)


def tune(out, make, world):
    """(state, evaluations): the latter with how often this process evaluated."""
    out.mkdir(exist_ok=True)
    torch.manual_seed(3)
    model, calls = make(), []

    def evaluate(model):
        calls.append(1)
        return {"sum": float(sum(p.detach().sum() for p in model.parameters()))}

    found = fine_tune(CONFIG, model, parameter_groups(CONFIG.optim, model), batches(world), loss,
                      out, device=CPU, evaluate=evaluate, world=world)  # fmt: skip
    return model.state_dict(), found.evaluations, len(calls)


def pictures():
    """Four images, of which the last two have few pixels that count."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 6, 5), generator=generator).byte()
    target = torch.randint(0, 3, (4, 6, 5), generator=generator).byte()
    target[2:, 1:] = IGNORED
    return images, target


def pixels_loss(rows, world):
    """Of a share of the pictures; both heads."""
    torch.manual_seed(4)
    head, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    images, target = pictures()
    counted = PixelLoss(student_config(), 0.4, CPU, world)
    terms = counted(lambda x: (head(x), second(x)), SegmentBatch(images[rows], target[rows]))
    return torch.stack([terms["main"], terms["aux"]]).detach()


def enter(rank, port=PORT):
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)


def refuse():
    raise UsageError("no such thing")


def _process(rank, place):
    enter(rank)
    place = Path(place)
    with joined_world(CPU) as world:
        found = {"plain": tune(place / "plain", Plain, world),
                 "whole": tune(place / "whole", chancy, world)}  # fmt: skip
        # one of the two is asked to stop, in the middle of an epoch; both do
        with stopped_after(5 if rank else 10**6, pytest.MonkeyPatch()):
            tune(place / "parts", chancy, world)
        if world.is_first:
            saved = torch.load(place / "parts" / "checkpoint.pt", weights_only=True)
            assert saved["run"]["step_in_epoch"] == 11
        world.wait()
        found["parts"] = tune(place / "parts", chancy, world)
        found["again"] = tune(place / "parts", chancy, world)
        found["names"] = batches(world).names(1, 3)
        found["pixels"] = pixels_loss(slice(2 * rank, 2 * rank + 2), world)
        assert world.first(lambda: rank) == 0
        with pytest.raises(UsageError, match="no such thing"):
            world.first(refuse)
        assert world.sum(torch.tensor(rank + 1)).item() == 3
    torch.save(found, place / f"{rank}.pt")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_learn_what_one_learns_and_go_on_as_if_never_stopped(tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone, evaluations, _ = tune(tmp_path / "alone", Plain, World())
    for name, tensor in alone.items():
        torch.testing.assert_close(one["plain"][0][name], tensor, rtol=1e-5, atol=1e-6)
    assert torch.equal(one["plain"][0]["idle.weight"], alone["idle.weight"]), "not decayed either"
    learnt = {name for name, _ in [*Plain().named_parameters(), *chancy().named_parameters()]}
    for kind in ("plain", "whole", "parts"):
        states = one[kind][0], other[kind][0]  # statistics of norms are each process's own
        assert all(torch.equal(states[0][n], states[1][n]) for n in learnt & states[0].keys())
        assert one[kind][1] == other[kind][1], "evaluations are everybody's"
        assert (one[kind][2], other[kind][2]) == (2, 0), "the first process alone evaluates"
        lines = read_metrics(tmp_path / kind / METRICS_NAME)
        assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [1, 2]
    assert [e["sum"] for e in one["plain"][1]] == pytest.approx([e["sum"] for e in evaluations])
    assert same(one["whole"][0], one["parts"][0]) and one["whole"][1] == one["parts"][1]
    assert same(one["again"][0], one["parts"][0]) and one["again"][2] == 0
    assert one["names"] + other["names"] == batches(World()).names(1, 3)
    torch.testing.assert_close((one["pixels"] + other["pixels"]) / 2,
                               pixels_loss(slice(0, 4), World()))  # fmt: skip
    with pytest.raises(StoreMismatch, match="a run with 2 processes, this one has 1: start as"):
        tune(tmp_path / "whole", chancy, World())


@pytest.mark.parametrize(
    ("batch_size", "processes", "said"),
    [
        (4, 5, "5 processes share steps of 4 images: start 4 processes at most"),
        (4, 3, "3 processes make 3 pieces of a step, which has 4 images: expected a divisor"),
        (64, 2, "2 processes make 2 pieces of a step, which has 49 images"),
    ],
)
def test_a_batch_that_processes_cannot_share_is_refused(batch_size, processes, said):
    with pytest.raises(UsageError, match=said):
        batches(World(0, processes), batch_size)


class Activated(nn.Module):
    """Both kinds of batch norm: torch's, and timm's with its activation."""

    def __init__(self):
        super().__init__()
        self.plain, self.act = nn.BatchNorm2d(3), BatchNormAct2d(3)

    def forward(self, images):
        return self.act(self.plain(images))


@pytest.mark.parametrize("training", [True, False])
def test_synchronised_norms_have_the_names_parameters_and_activation_of_plain_ones(training):
    images = 3 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 1
    model = Activated().train(training)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    assert with_norm(model, "sync", World()) is model
    assert with_norm(model, "batch", World(0, 2)) is model
    assert type(model.plain) is nn.BatchNorm2d
    first = model(images)
    model.load_state_dict(wanted)
    converted = with_norm(model, "sync", World(0, 2))
    assert all(isinstance(one, nn.SyncBatchNorm) for one in (converted.plain, converted.act))
    assert {name: id(parameter) for name, parameter in converted.named_parameters()} == before
    assert converted.state_dict().keys() == wanted.keys()
    assert torch.equal(converted(images), first)  # without a process group, all images are here
    assert first.min() == 0, "the activation is there"


def whole_detector():
    config = DetectorConfig(detector="retinanet", width=32, norm="sync")
    network = models.create(detection.ARCH, 4)
    return build_detector(config, network, student_config(), 2, seed=0).model, torch.rand(
        2, 3, 64, 64
    )


def whole_segmenter():
    start = Start(SCRATCH, student_config(segment_sets.ARCH), None, SCRATCH)
    settings = SegmentSettings(decoder="unet", crop=64, norm="sync")
    return build_segmenter(start, settings, 3, seed=0), torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("make", [whole_detector, whole_segmenter])
def test_every_norm_of_a_whole_network_is_converted_and_it_computes_the_same(make):
    torch.manual_seed(0)
    model, images = make()
    names, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    norms = sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())

    def shown():  # maps of batch statistics
        inside = model.backbone if make is whole_detector else model.network.encoder
        found = inside.train()(images)
        return list(found.values() if isinstance(found, dict) else found)

    before = shown()
    assert with_norm(model, "sync", World(0, 2)) is model
    assert sum(isinstance(one, nn.SyncBatchNorm) for one in model.modules()) == norms > 20
    assert not any(isinstance(one, nn.BatchNorm2d) for one in model.modules())
    assert (list(model.state_dict()), list(map(id, model.parameters()))) == (names, parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, shown(), strict=True))


def test_synchronised_norms_of_processes_without_gpus_are_refused():
    check_norm("sync", World(), CPU)
    check_norm("sync", World(0, 2), torch.device("cuda", 0))
    check_norm("batch", World(0, 2), CPU)
    with pytest.raises(UsageError, match=r"--norm sync over 2 processes needs GPUs, .* cpu: give "
                       "--norm batch"):  # fmt: skip
        check_norm("sync", World(0, 2), CPU)


def test_classify_says_that_it_runs_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="runs in one process: start it without torchrun"):
        run_classify(ClassifyRequest(student=tmp_path / "none", data="images"))


@pytest.mark.parametrize(("here", "workers"), [("1", 8), ("4", 2), ("16", 1)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, here, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    names = ("out", "compare", "seeds", "epochs", "batch_size", "lr", "precision", "device", "seed",
             "overwrite")  # fmt: skip
    asked = dict.fromkeys(names) | {"workers": None}
    assert take_options(asked).workers == workers and not asked
    assert take_options(dict.fromkeys(names) | {"workers": 3}).workers == 3


def task(out, batch_size):
    return TaskOptions(out=out, epochs=2, batch_size=batch_size, lr=1e-3, seeds=1, device="cpu",
                       workers=1)  # fmt: skip


def detect_request(place, out, **changes):
    """RetinaNet draws nothing; photos of one size are padded alike in every share."""
    options = {"detector": "retinanet", "width": 32, "short_sides": (48,), "longest": 96,
               "warmup_epochs": 1, "overlays": 1, "norm": "frozen"} | changes  # fmt: skip
    return DetectRequest(student=place / "detect.safetensors", data=(str(place / "voc"),),
                         task=task(place / out, 2), options=DetectOptions(**options))  # fmt: skip


def segment_request(place, out, batch_size=4):
    return SegmentRequest(
        student=place / "segment.safetensors",
        data=str(place / "set"),
        task=task(place / out, batch_size),
        changes={"decoder": "fpn", "crop": 64, "aux_weight": 0.4, "test": "whole"},
        overlays=2,
    )


def _tasks(rank, place):
    enter(rank, PORT + 1)
    place = Path(place)
    values = {"detect": run_detect(detect_request(place, "detect-two"))}
    os.environ["MASTER_PORT"] = str(PORT + 2)
    values["segment"] = run_segment(segment_request(place, "segment-two"))
    (place / f"{rank}.json").write_text(json.dumps(values))
    for number, (run, said) in enumerate([
        (lambda: run_detect(detect_request(place, "no", norm="sync")), "needs GPUs"),
        (lambda: run_segment(segment_request(place, "no", 2)), "2 processes have 1 image each"),
    ], PORT + 3):  # fmt: skip
        os.environ["MASTER_PORT"] = str(number)
        with pytest.raises(UsageError, match=said):
            run()


@pytest.mark.long
def test_whole_tasks_on_two_processes_leave_one_set_of_files(tmp_path):
    detection.write_student(tmp_path / "detect.safetensors")
    detection.write_voc(tmp_path / "voc")
    detection.add_photo(tmp_path / "voc", "p00", [])  # one process has a step without any box
    segment_sets.write_student(tmp_path / "segment.safetensors")
    segment_sets.write_set(tmp_path / "set")
    mp.spawn(_tasks, (str(tmp_path),), nprocs=2)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = run_detect(detect_request(tmp_path, "detect-one"))
    weights = [load_file(tmp_path / f"detect-{n}/student/seed0/detector.safetensors")
               for n in ("one", "two")]  # fmt: skip
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
    for kind in ("detect", "segment"):
        assert one[kind]["starts"] == other[kind]["starts"]
        assert one[kind]["machine"]["processes"] == 2
        written = json.loads((tmp_path / f"{kind}-two" / f"{kind}.json").read_text())
        assert written == one[kind]
        folder = tmp_path / f"{kind}-two" / "student" / "seed0"
        names = sorted(path.name for path in folder.iterdir())
        network = {"detect": "detector.safetensors", "segment": "segmenter.safetensors"}[kind]
        assert names == sorted(
            ["checkpoint.pt", "metrics.jsonl", "overlays", "score.json", network]
        )
    with pytest.raises(UsageError, match=r"task.processes: 1, not 2"):
        run_segment(segment_request(tmp_path, "segment-two"))
    with pytest.raises(UsageError, match=r"processes: 1, not 2"):
        run_detect(detect_request(tmp_path, "detect-two"))
    assert alone["machine"]["processes"] == 1


@pytest.mark.long
def test_torchrun_prints_one_result_and_a_line_for_what_it_refuses(tmp_path):
    student = detection.write_student(tmp_path / "student.safetensors")
    voc = detection.write_voc(tmp_path / "voc")

    def start(*options):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--master-port", str(PORT + 10), "-m", "transfer.cli", "detect", str(student), "--data",
            str(voc), "--detector", "retinanet", "--width", "32", "--short-sides", "48",
            "--longest", "96", "--epochs", "1", "--seeds", "1", "--workers", "1", "--device", "cpu",
            "--overlays", "1", "--out", str(tmp_path / "out"), "--json", *options,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = start("--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["machine"]["processes"] == 2
    assert "find_unused_parameters" not in done.stderr
    refused = start("--batch-size", "1", "--overwrite")
    assert refused.returncode != 0
    assert "transfer: error: 2 processes share steps of 1 images" in refused.stderr
