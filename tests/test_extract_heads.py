"""Heads and rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelgen.extract import extractor_for
from labelgen.extract.base import find_sources
from labelgen.extract.heads import HeadOutput, rotate
from storage.errors import TeacherError
from storage.targets.heads import rotation_rows
from tests.extraction import CLASSES, as_teacher, crops, seeded, tiny_resnet
from trainer.models import create


class Branched(nn.Module):
    """A CIFAR ResNet with two auxiliary heads of 4 C classes, as HSAKD's teachers have them."""

    def __init__(self, faulty: str = "") -> None:
        super().__init__()
        self.backbone = create("resnet8", CLASSES)
        self.branch_heads = nn.ModuleList(nn.Linear(d, 4 * CLASSES) for d in (16, 32))
        self.faulty = faulty

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def forward_heads(self, x: Tensor) -> dict[str, Tensor]:
        net = self.backbone
        x = torch.relu(net.bn1(net.conv1(x)))
        pooled = {}
        for i, stage in enumerate((net.layer1, net.layer2, net.layer3), 1):
            x = stage(x)
            pooled[f"branch{i}"] = torch.mean(x, dim=(2, 3))
        pooled["class"] = pooled.pop("branch3")
        if self.faulty == "logits":
            pooled["class"] = pooled["class"] + 1
        if self.faulty == "width":
            pooled["branch1"] = pooled["branch2"]
        if self.faulty == "names":
            del pooled["branch1"]
        return pooled

    def head_layers(self) -> dict[str, nn.Linear]:
        return {
            "class": self.backbone.fc,
            "branch1": self.branch_heads[0],
            "branch2": self.branch_heads[1],
        }


def test_rotations_turn_counter_clockwise() -> None:
    """The reference's own example (shared conventions of HSAKD): [[0, 1], [2, 3]] turned once."""
    square = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(1, 3, 2, 2)
    assert rotate(square, 1)[0, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]
    assert rotate(square, 3)[0, 2].tolist() == [[2.0, 0.0], [3.0, 1.0]]


def test_every_row_is_a_plain_forward_of_the_turned_crop() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 64)
    batch = crops(3, 64)
    outputs = extractor_for(teacher, ["head4/class", "head4_logits/class"])(batch)
    rows = rotation_rows(outputs["head4/class"].numpy())
    logits = rotation_rows(outputs["head4_logits/class"].numpy())
    weight, bias = (p.numpy() for p in (teacher.model.fc.weight, teacher.model.fc.bias))
    for n in range(3):
        for r in range(4):
            turned = np.rot90(batch[n].numpy(), r, axes=(1, 2)).copy()
            with torch.inference_mode():
                expected = teacher.model(torch.from_numpy(turned)[None])[0].numpy()
            np.testing.assert_allclose(logits[4 * n + r], expected, rtol=1e-4, atol=1e-4)
            by_hand = rows[4 * n + r] @ weight.T + bias
            np.testing.assert_allclose(by_hand, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3, "a network blind to rotation shows nothing"


def test_the_unturned_row_is_the_same_with_one_rotation_and_with_four() -> None:
    teacher = as_teacher(seeded(tiny_resnet), "resnet", 64)
    batch = crops(2, 64)
    one = extractor_for(teacher, ["head/class", "head_logits/class"])(batch)
    four = extractor_for(teacher, ["head4/class"])(batch)
    assert one["head/class"].shape == (2, 1, 512)
    assert torch.equal(one["head/class"][:, 0], four["head4/class"][:, 0])
    assert torch.equal(one["head_logits/class"][:, 0], one["logits"])


def test_a_network_with_auxiliary_heads_gives_them_all_in_one_forward() -> None:
    teacher = as_teacher(seeded(Branched), "branched", 32)
    batch = crops(2, 32)
    calls = []
    handle = teacher.model.backbone.conv1.register_forward_hook(lambda *a: calls.append(1))
    wants = ["feature", "head/class", "head/branch1", "head4_logits/branch2"]
    extractor = extractor_for(teacher, wants)
    calls.clear()
    outputs = extractor(batch)
    handle.remove()
    assert len(calls) == 4, "one forward a rotation"
    with torch.inference_mode():
        pooled = teacher.model.forward_heads(batch)
        assert torch.equal(outputs["logits"], teacher.model(batch))
        assert torch.equal(outputs["head/branch1"][:, 0], pooled["branch1"])
        joint = teacher.model.branch_heads[1](pooled["branch2"])
    assert outputs["head4_logits/branch2"].shape == (2, 4, 4 * CLASSES)
    assert torch.equal(outputs["head4_logits/branch2"][:, 0], joint)
    alone = extractor_for(as_teacher(teacher.model.backbone, "resnet8", 32), ["feature"])(batch)
    assert torch.equal(outputs["feature"], alone["feature"])


@pytest.mark.parametrize(
    ("faulty", "said"),
    [("logits", "other logits"), ("width", "'branch1' is .2, 32.; expected .2, 16."),
     ("names", "expected the same names")],
)  # fmt: skip
def test_auxiliary_heads_that_do_not_fit_are_refused(faulty: str, said: str) -> None:
    teacher = as_teacher(seeded(lambda: Branched(faulty)), "branched", 32)
    with pytest.raises(TeacherError, match=said):
        find_sources(teacher, ["heads"])


@pytest.mark.parametrize("rotations", [1, 4])
@pytest.mark.parametrize("logits", [False, True])
def test_names_of_outputs_are_read_back(rotations: int, logits: bool) -> None:
    output = HeadOutput("branch_1", rotations, logits)
    assert HeadOutput.parse(str(output)) == output
    assert HeadOutput.parse("feature") is None
