"""Networks by name."""

import pytest
import torch

from storage.errors import UsageError
from trainer import models


def test_resnet20_has_the_published_size():
    # He et al. 2016, Table 6: 0.27 M parameters at depth 20, 0.85 M at 56 (10 classes).
    def parameters(name):
        return sum(p.numel() for p in models.create(name, 10).parameters())

    assert round(parameters("resnet20") / 1e6, 2) == 0.27
    assert round(parameters("resnet56") / 1e6, 2) == 0.86  # 0.85 and the projection shortcuts


def test_cifar_resnet_follows_the_published_wiring():
    torch.manual_seed(0)
    net = models.create("resnet8", 7).eval()
    x = torch.randn(2, 3, 32, 32)
    stages = []
    hooks = [
        getattr(net, f"layer{i}").register_forward_hook(lambda _m, _i, out: stages.append(out))
        for i in (1, 2, 3)
    ]
    logits = net(x)
    for hook in hooks:
        hook.remove()
    assert [tuple(s.shape[1:]) for s in stages] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert torch.allclose(logits, net.fc(stages[-1].mean((2, 3))), atol=1e-6)


@pytest.mark.parametrize("name", ["r18", "tv:mobilenet_v2", "timm:resnet10t", "resnet8"])
def test_every_library_gives_a_head_of_the_wanted_width(name):
    net = models.create(name, 5).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "near"),
    [("r19", "r18"), ("tv:resnet19", "resnet18"), ("timm:resnet17", "resnet18")],
)
def test_an_unknown_network_is_refused_with_the_nearest_names(name, near):
    with pytest.raises(UsageError, match=near):
        models.create(name, 5)


def test_equal_seeds_build_equal_networks():
    def weights():
        torch.manual_seed(3)
        return models.create("resnet8", 4).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
