"""The training loop: accumulation, clipping and the moving average, against plain torch."""

import pytest
import torch
from torch import nn

from storage.errors import UsageError
from trainer.batch import Batch
from trainer.learner import Learner
from trainer.loop import train_steps
from trainer.methods import Supervised
from trainer.plan import pieces


class Linear(nn.Module):
    """A student without batch statistics: pieces of a batch add up exactly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 4 * 4, 5)

    def forward(self, images):
        return self.layer(images.flatten(1))


def batches(count, size):
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(size, 3, 4, 4, generator=generator),
              torch.randint(0, 5, (size,), generator=generator), None)
        for _ in range(count)
    ]  # fmt: skip


def join(parts):
    return Batch(torch.cat([p.images for p in parts]), torch.cat([p.target for p in parts]), None)


def train(data, **settings):
    learner, seen = Learner(Linear(), Supervised()), []
    optimizer = torch.optim.SGD(learner.parameters(), 0.1, momentum=0.9)
    end = train_steps(
        learner, optimizer, data, lr_of_step=lambda step: 0.5 / (1 + step), first_step=0,
        on_step=lambda step, loss, crops: seen.append((step, float(loss), crops)), **settings,
    )  # fmt: skip
    return learner.student.layer.weight.detach(), seen, end


def test_accumulated_pieces_make_the_step_of_the_whole_batch():
    parts = batches(6, 4)
    whole = [join(parts[i : i + 3]) for i in (0, 3)]
    ours, seen, end = train(parts, accumulate=3)
    plain, plain_seen, _ = train(whole)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert end == 2
    assert [(step, crops) for step, _, crops in seen] == [(0, 12), (1, 12)]
    assert [loss for _, loss, _ in seen] == pytest.approx([loss for _, loss, _ in plain_seen])


def test_an_epoch_that_lost_a_piece_still_takes_its_last_step():
    _, seen, end = train(batches(5, 4), accumulate=3)
    assert end == 2
    assert [crops for _, _, crops in seen] == [12, 8]


def test_gradients_are_clipped_to_the_norm_before_the_step():
    learner = Learner(Linear(), Supervised())
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    optimizer = torch.optim.SGD(learner.parameters(), 1.0)
    train_steps(learner, optimizer, batches(1, 4), lr_of_step=lambda _step: 1.0, first_step=0,
                on_step=lambda *_: None, clip_norm=0.01)  # fmt: skip
    moved = [p.detach() - before[name] for name, p in learner.named_parameters()]
    norm = torch.sqrt(sum((m**2).sum() for m in moved))
    assert float(norm) == pytest.approx(0.01, rel=1e-4)


def test_a_steps_images_must_divide_into_equal_pieces():
    assert pieces(12, 3) == 4
    with pytest.raises(UsageError, match="which has 10 images"):
        pieces(10, 3)


def test_compiling_leaves_the_names_of_the_state_as_they_are():
    plain, compiled = Learner(Linear(), Supervised()), Learner(Linear(), Supervised(), None, True)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
