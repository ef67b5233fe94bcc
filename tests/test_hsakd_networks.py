"""Networks and branches of HSAKD against the counts of the reference's own."""

import pytest
import torch
from torch import nn

from storage.errors import UsageError
from trainer import models
from trainer.models.branches import BranchedNetwork, Branches, StageTaps, branch_rule, turned_rows

# millions: parameters of the network and of all its branches, multiply-adds of one image through
# the network and through both (measured on the reference's networks, C = 100; ImageNet's 1000)
TABLE = {
    "wrn_40_2": (2.255, 5.769, 327.6, 768.2),
    "wrn_16_2": (0.703, 1.928, 101.1, 239.7),
    "wrn_40_1": (0.570, 1.484, 83.3, 193.5),
    "resnet56": (0.862, 2.206, 125.8, 292.6),
    "resnet20": (0.278, 0.763, 40.8, 94.4),
    "resnet32x4": (7.434, 18.907, 1083.0, 2543.0),
    "resnet8x4": (1.234, 3.557, 177.1, 429.0),
    "vgg13": (9.462, 37.050, 284.9, 1003.0),
    "cifar_resnet50": (23.705, 76.977, 1298.0, 3599.8),
    "cifar_mobilenetv2": (0.813, 4.671, 25.7, 86.6),
    "shufflenetv1": (0.949, 3.119, 38.7, 87.1),
    "shufflenetv2": (1.356, 4.520, 44.5, 117.0),
    "r18": (11.690, 47.555, 1814.0, 4751.0),
    "r34": (21.798, 76.474, 3664.0, 9838.0),
}
STAGES = {
    "wrn_40_2": [(32, 32), (64, 16), (128, 8)],
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "vgg8": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "cifar_mobilenetv2": [(12, 32), (16, 16), (48, 8), (160, 4)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4)],
}


def count_multiply_adds(network, run):
    """Of convolutions and linear layers, from the shapes alone."""
    total = [0]

    def see(module, args, output):
        weight = module.weight
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        total[0] += weight.numel() * positions

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(see) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return total[0]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_multiply_adds_are_those_of_the_reference(name):
    classes, side = (1000, 224) if name in ("r18", "r34") else (100, 32)
    with torch.device("meta"):
        network = models.create(models.branched_name(name), classes).eval()
        image = torch.empty(1, 3, side, side)
    assert isinstance(network, BranchedNetwork)
    found = (
        parameters(network.backbone) / 1e6,
        parameters(network.branches) / 1e6,
        count_multiply_adds(network, lambda: network(image)) / 1e6,
        count_multiply_adds(
            network,
            lambda: [network.head_layers()[n](rows)
                     for n, rows in network.forward_heads(image).items() if n != "class"],
        ) / 1e6,
    )  # fmt: skip
    places = (3, 3, *((0, 0) if side == 224 else (1, 1)))
    for ours, theirs, digits in zip(found, TABLE[name], places, strict=True):
        assert ours == pytest.approx(theirs, abs=0.501 * 10**-digits)


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_references_shapes_and_branches_4c_logits(name):
    torch.manual_seed(0)
    network = models.create(name, 5).eval()
    rule = branch_rule(network, name)
    taps, branches = StageTaps(network, rule), Branches(rule, 5).eval()
    with torch.no_grad(), taps.listening() as heard:
        logits = network(torch.randn(2, 3, 32, 32))
    assert [(s.shape[1], s.shape[2]) for s in heard.stages] == STAGES[name]
    found = branches(heard.stages)
    assert list(found) == [f"branch{i}" for i in range(1, len(STAGES[name]) + 1)]
    assert all(rows.shape == (2, 20) for rows in found.values())
    assert torch.equal(network.get_submodule(rule.head)(heard.pooled), logits)


def test_a_vggs_features_are_the_written_out_network():
    torch.manual_seed(0)
    network = models.create("vgg8", 5).eval()
    x = torch.randn(2, 3, 32, 32)
    state = network.state_dict()
    y = x
    for number in range(5):
        y = nn.functional.max_pool2d(y, 2) if number in (1, 2, 3) else y
        name = f"block{number}"
        y = nn.functional.conv2d(y, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        y = (y / (1 + 1e-5) ** 0.5).relu()  # a batch norm that has seen nothing
    expected = y.mean((2, 3)) @ state["classifier.weight"].T
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-6)


def test_rotations_are_counter_clockwise_and_image_major():
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    rows = turned_rows(torch.stack([image, image + 10])[:, None].expand(-1, 3, -1, -1))
    assert rows.shape == (8, 3, 2, 2)
    assert rows[1, 0].tolist() == [[1, 3], [0, 2]]
    for n in range(2):
        for r in range(4):
            assert torch.equal(rows[4 * n + r, 0], torch.rot90(image + 10 * n, r))


def test_a_network_without_known_branches_is_refused_by_name():
    with pytest.raises(UsageError, match=r"tv:mobilenet_v2 has no branches.*tv:resnet18"):
        models.create("hsakd-tv-mobilenet_v2", 10)


@pytest.mark.parametrize("name", ["resnet8", "hsakd-resnet8"])
def test_the_plain_network_of_a_branched_one_is_the_same_network(name):
    torch.manual_seed(0)
    network = models.create(name, 4)
    plain = network.backbone if name.startswith("hsakd") else network
    torch.manual_seed(0)
    again = models.create("resnet8", 4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in plain.state_dict().items())
