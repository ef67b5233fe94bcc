"""The loop of dense tasks: against plain torch, stopped and gone on with, and gone wrong."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from storage.errors import StoreMismatch, TrainingError, UsageError
from tests.training import stopped_after
from trainer.checkpoint import CHECKPOINT_NAME
from trainer.metrics import METRICS_NAME, read_metrics
from trainer.optim import parameter_groups
from trainer.step_config import OptimConfig, ScheduleConfig
from transfer.epochs import EpochBatches, seeded_draws
from transfer.finetune import FineTuneConfig, fine_tune


@dataclass(frozen=True)
class Noise:
    """Rows whose inputs are drawn, with a target that can be learnt."""

    rows: int = 12
    bad_row: int | None = None

    def __len__(self) -> int:
        return self.rows

    def name(self, row: int) -> str:
        return f"row{row}"

    def sample(self, row: int) -> tuple[Tensor, Tensor]:
        values = torch.randn(4) + row
        target = torch.tensor([torch.nan if row == self.bad_row else float(row)])
        return values, target


@dataclass(frozen=True)
class Rows:
    values: Tensor
    target: Tensor


def collate(samples):
    return Rows(*(torch.stack(part) for part in zip(*samples, strict=True)))


def loss(model, batch):
    return {"square": (model(batch.values) - batch.target).square().mean()}


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 1))


CONFIG = FineTuneConfig(
    epochs=4,
    optim=OptimConfig(lr=1e-5, nesterov=False),
    schedule=ScheduleConfig(kind="poly", warmup_epochs=0.5),
    seed=5,
)


def run(out, config=CONFIG, data=None, evaluate=None, every=1, loss=loss):
    """(network, what fine_tune gave)."""
    out.mkdir(exist_ok=True)
    model = network()
    groups = [*parameter_groups(config.optim, model[0]),
              *parameter_groups(config.optim, model[2], lr_factor=10.0)]  # fmt: skip
    data = data or EpochBatches(Noise(), collate, seed=config.seed, batch_size=5)
    found = fine_tune(config, model, groups, data, loss, out, device=torch.device("cpu"),
                      evaluate=evaluate, evaluate_every=every)  # fmt: skip
    return model, found


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_loop_takes_the_steps_that_plain_torch_takes(tmp_path):
    model, _ = run(tmp_path)
    plain = network()
    optimizer = torch.optim.SGD(
        [{"params": plain[0].parameters()}, {"params": plain[2].parameters()}],
        lr=1.0, momentum=0.9, weight_decay=1e-4,
    )  # fmt: skip
    data = EpochBatches(Noise(), collate, seed=5, batch_size=5)
    assert data.steps == 2  # 12 rows: two are dropped
    torch.manual_seed(5)
    for step in range(8):
        lr = 1e-5 if step < 1 else 1e-5 * (1 - (step - 1) / 7) ** 0.9
        for group, factor in zip(optimizer.param_groups, (1, 10), strict=True):
            group["lr"] = lr * factor
        batch = list(data.batches(step // 2, 0))[step % 2]
        optimizer.zero_grad()
        (plain(batch.values) - batch.target).square().mean().backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, monkeypatch, steps):
    def score(model):
        return {"sum": float(sum(p.detach().sum() for p in model.parameters()))}

    whole, first = run(tmp_path / "whole", evaluate=score, every=2)
    with stopped_after(steps, monkeypatch):
        run(tmp_path / "parts", evaluate=score, every=2)
    parts, second = run(tmp_path / "parts", evaluate=score, every=2)
    assert same(whole, parts)
    assert first.evaluations == second.evaluations
    assert [line["epoch"] for line in second.evaluations] == [2, 4]
    lines = [
        [{k: v for k, v in line.items() if k != "crops_per_s"} for line in read_metrics(path)
         if line["kind"] == "train" and line["step"] not in (0, steps)]
        for path in (tmp_path / "whole" / METRICS_NAME, tmp_path / "parts" / METRICS_NAME)
    ]  # fmt: skip
    assert lines[0] == lines[1]
    assert second.seconds > 0


def test_a_finished_run_is_not_repeated(tmp_path):
    model, _ = run(tmp_path)
    written = (tmp_path / CHECKPOINT_NAME).stat().st_mtime_ns
    again, _ = run(tmp_path)
    assert same(model, again)
    assert (tmp_path / CHECKPOINT_NAME).stat().st_mtime_ns == written


def test_an_evaluation_that_a_killed_process_left_out_is_made(tmp_path):
    run(tmp_path)
    assert not [line for line in read_metrics(tmp_path / METRICS_NAME) if line["kind"] == "eval"]
    _, found = run(tmp_path, evaluate=lambda _model: {"score": 1.0})
    assert [line["epoch"] for line in found.evaluations] == [4]


def test_a_loss_that_is_not_finite_names_its_images_and_keeps_the_last_checkpoint(tmp_path):
    config = replace(CONFIG, epochs=2)
    data = EpochBatches(Noise(), collate, seed=5, batch_size=5)
    late = next(row for row in range(12)
                if f"row{row}" in data.names(1, 1) and f"row{row}" not in
                data.names(0, 0) + data.names(0, 1) + data.names(1, 0))  # fmt: skip
    broken = EpochBatches(Noise(bad_row=late), collate, seed=5, batch_size=5)
    with pytest.raises(TrainingError, match=rf"step 3 \(epoch 1, images .*row{late}\b"):
        run(tmp_path, config, broken)
    saved = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)
    assert saved["run"] == {"epoch": 1, "step_in_epoch": 0, "step": 2}
    assert all(value.isfinite().all() for value in saved["model"].values())
    resumed, _ = run(tmp_path, config)
    whole, _ = run(tmp_path.with_name("whole"), config)
    assert same(resumed, whole)


def test_a_folder_with_a_run_of_other_settings_is_refused_by_name(tmp_path):
    run(tmp_path)
    other = replace(CONFIG, task={"crop": 32}, optim=replace(CONFIG.optim, lr=1.0))
    with pytest.raises(StoreMismatch, match=r"optim.lr: 1.0, not 1e-05; task.crop: 32, not None"):
        run(tmp_path, other)


def test_weights_that_go_wrong_after_a_last_finite_loss_are_not_kept(tmp_path):
    config = replace(CONFIG, optim=replace(CONFIG.optim, lr=3e37), epochs=1,
                     schedule=ScheduleConfig(kind="constant"))  # fmt: skip

    def steep(model, batch):
        return {"sum": 1e10 * model(batch.values).sum()}

    data = EpochBatches(Noise(rows=2), collate, seed=5, batch_size=2)
    with pytest.raises(TrainingError, match="of the student is not finite after step 0"):
        run(tmp_path, config, data, loss=steep)
    assert not (tmp_path / CHECKPOINT_NAME).exists()


def test_clipping_holds_the_step_within_its_norm(tmp_path):
    config = replace(CONFIG, clip_norm=1e-6, epochs=1,
                     optim=OptimConfig(lr=1.0, momentum=0.0, weight_decay=0.0),
                     schedule=ScheduleConfig(kind="constant"))  # fmt: skip
    data = EpochBatches(Noise(rows=5), collate, seed=5, batch_size=5)
    model, _ = run(tmp_path, config, data)
    moves = [(a - b).norm() for a, b in
             zip(model.parameters(), network().parameters(), strict=True)]  # fmt: skip
    assert 1e-7 < max(moves) < 2e-5  # the second layer has ten times the rate


def test_settings_out_of_range_are_refused():
    for make in (
        lambda: ScheduleConfig(power=0.0),
        lambda: replace(CONFIG, epochs=0),
        lambda: replace(CONFIG, precision="fp8"),
        lambda: replace(CONFIG, clip_norm=0.0),
    ):
        with pytest.raises(UsageError, match="expected"):
            make()


def test_draws_depend_on_seed_epoch_and_row_alone():
    before = torch.get_rng_state()
    drawn = {}
    for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        with seeded_draws(*place):
            drawn.setdefault(place, []).append(float(torch.rand(())))
    assert torch.equal(before, torch.get_rng_state())
    assert drawn[0, 0, 0][0] == drawn[0, 0, 0][1]
    assert len({values[0] for values in drawn.values()}) == 4


def test_an_epoch_resumed_in_its_middle_gives_the_batches_that_are_left():
    data = EpochBatches(Noise(), collate, seed=1, batch_size=3)
    whole = list(data.batches(2, 0))
    rest = list(data.batches(2, 3))
    assert len(whole) == 4 and len(rest) == 1
    assert torch.equal(whole[3].values, rest[0].values)
    assert data.names(2, 3) == [f"row{int(row)}" for row in whole[3].target]
    assert not torch.equal(whole[0].target, next(data.batches(3, 0)).target)


@pytest.mark.long  # a worker imports torch
def test_workers_give_the_batches_of_this_process():
    alone = EpochBatches(Noise(), collate, seed=1, batch_size=3)
    helped = EpochBatches(Noise(), collate, seed=1, batch_size=3, workers=1)
    for epoch in (0, 1):  # the second with workers that stayed
        for one, other in zip(alone.batches(epoch, 0), helped.batches(epoch, 0), strict=True):
            assert torch.equal(one.values, other.values)


def test_a_set_smaller_than_a_batch_is_one_batch():
    data = EpochBatches(Noise(rows=3), collate, seed=1, batch_size=16)
    assert data.steps == 1
    assert sorted(next(data.batches(0, 0)).target.flatten().tolist()) == [0, 1, 2]
