"""Auxiliary branches of HSAKD (IJCAI 2021): a classifier at every stage of a network.

Branch l reads what stage l puts out. It is a fresh copy of stages l + 1 to L, then the tail that
the network has before its pooling, a mean over positions and a linear layer to 4 C joint classes
(class and rotation). The last branch has one more stage instead, as the last one but with stride
1. So all branches end at the last stage's width and resolution, and share no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storage.errors import UsageError
from trainer.models.taps import INPUT, OUTPUT, Listener, Tap, bare

CLASS_HEAD = "class"
ROTATIONS = 4


def kaiming(module: nn.Module) -> None:
    """Convolutions N(0, 2 / (k^2 C_out)) inside a module; everything else stays as it is."""
    for inner in module.modules():
        if isinstance(inner, nn.Conv2d):
            nn.init.kaiming_normal_(inner.weight, mode="fan_out", nonlinearity="relu")


def as_built(module: nn.Module) -> None:
    """Leave torch's own initialisation, as the reference has it for some families."""


@dataclass(frozen=True, kw_only=True)
class BranchRule:
    """What branches of one network are made of.

    Attributes:
        taps: the modules whose outputs are its stages', by name; L of them.
        head: name of the linear layer that gives its logits.
        width: of what a branch's linear layer reads.
        stage: number of a stage, 2 to L, to a fresh one; L + 1 gives the extra one.
        tail: what a network has between its last stage and the mean over positions.
        reset: initialises a branch.
    """

    taps: tuple[str, ...]
    head: str
    width: int
    stage: Callable[[int], nn.Module]
    tail: Callable[[], nn.Module] = nn.Identity
    reset: Callable[[nn.Module], None] = kaiming

    def branch(self, number: int) -> nn.Sequential:
        """Branch 1 to L without its linear layer, [B, C_l, H, W] -> [B, width, h, w]."""
        last = len(self.taps)
        numbers = range(number + 1, last + 1) if number < last else (last + 1,)
        return nn.Sequential(*(self.stage(each) for each in numbers), self.tail())


class Branches(nn.Module):
    """The L branches of a network.

    Args:
        classes: C of the network; a branch tells 4 C apart.
    """

    def __init__(self, rule: BranchRule, classes: int) -> None:
        super().__init__()
        count = len(rule.taps)
        self.bodies = nn.ModuleList(rule.branch(number) for number in range(1, count + 1))
        self.heads = nn.ModuleList(nn.Linear(rule.width, ROTATIONS * classes) for _ in rule.taps)
        rule.reset(self)

    def layers(self) -> dict[str, nn.Linear]:
        """The linear layers by name: branch1 to branchL."""
        found = {}
        for number, head in enumerate(self.heads, 1):
            assert isinstance(head, nn.Linear)
            found[branch_name(number)] = head
        return found

    def pooled(self, stages: Sequence[Tensor]) -> dict[str, Tensor]:
        """Outputs of the stages to what the linear layers read, [B, width] by name."""
        return {
            branch_name(number): body(stage).mean(dim=(2, 3))
            for number, (body, stage) in enumerate(zip(self.bodies, stages, strict=True), 1)
        }

    def forward(self, stages: Sequence[Tensor]) -> dict[str, Tensor]:
        """Outputs of the stages, [B, C_l, H_l, W_l] each, to joint logits [B, 4 C] by name."""
        layers = self.layers()
        return {name: layers[name](rows) for name, rows in self.pooled(stages).items()}


def branch_name(number: int) -> str:
    """Name of branch 1 to L, in stores and in metrics."""
    return f"branch{number}"


class StageTaps:
    """Listens to a network's stages and to what its classifier reads, while it runs."""

    def __init__(self, network: nn.Module, rule: BranchRule) -> None:
        names = {name: branch_name(number) for number, name in enumerate(rule.taps, 1)}
        taps = [Tap(output, name, OUTPUT, _as_it_is) for name, output in names.items()]
        taps.append(Tap(CLASS_HEAD, rule.head, INPUT, _as_it_is))
        self._listener, self._stages = Listener(bare(network), taps), tuple(names.values())

    @contextmanager
    def listening(self) -> Iterator[Heard]:
        """What the forward pass inside lets hear."""
        found: dict[str, Tensor] = {}
        self._listener.found = found
        try:
            yield Heard(found, self._stages)
        finally:
            self._listener.found = None


@dataclass(frozen=True)
class Heard:
    """Outputs of one forward pass, with their gradients."""

    values: dict[str, Tensor]
    names: tuple[str, ...]

    @property
    def stages(self) -> list[Tensor]:
        """[B, C_l, H_l, W_l] of every stage."""
        return [self.values[name] for name in self.names]

    @property
    def pooled(self) -> Tensor:
        """[B, d], what the classifier read."""
        return self.values[CLASS_HEAD]


def _as_it_is(value: Tensor) -> Tensor:
    """No copy: gradients pass, and no stage's output is overwritten by the families here."""
    return value


class BranchedNetwork(nn.Module):
    """A network with its branches: an HSAKD teacher. Called, it is the plain network.

    Attributes:
        frozen: the plain network doesn't learn and stays in eval mode, its buffers included.
    """

    def __init__(self, backbone: nn.Module, classes: int, name: str) -> None:
        super().__init__()
        rule = branch_rule(backbone, name)
        self.backbone, self.branches = backbone, Branches(rule, classes)
        self.taps, self._head = StageTaps(backbone, rule), rule.head
        self.frozen = False

    def freeze_backbone(self) -> None:
        """Let the branches alone learn from here on."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> BranchedNetwork:
        """As any module, but a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> class logits [B, C]."""
        logits: Tensor = self.backbone(x)
        return logits

    def forward_heads(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> what each head's linear layer reads, [B, d] by name."""
        with self.taps.listening() as heard:
            self.backbone(x)
        return {CLASS_HEAD: heard.pooled} | self.branches.pooled(heard.stages)

    def head_layers(self) -> dict[str, nn.Linear]:
        """The linear layers of the class head and of all branches."""
        head = self.backbone.get_submodule(self._head)
        assert isinstance(head, nn.Linear)
        return {CLASS_HEAD: head} | self.branches.layers()


def branch_rule(network: nn.Module, name: str) -> BranchRule:
    """The rule of a network.

    Raises:
        UsageError: none is known for it.
    """
    from torchvision.models import ResNet

    network = bare(network)
    if isinstance(network, ResNet):
        return _torchvision_rule(network)
    own: Callable[[], BranchRule] | None = getattr(network, "branch_rule", None)
    if own is None:
        raise UsageError(
            f"{name} has no branches: HSAKD's are known for torchvision's ResNets (tv:resnet18) "
            "and the CIFAR networks of this package (resnet20, wrn_16_2, vgg8 ...)"
        )
    return own()


def _torchvision_rule(network: nn.Module) -> BranchRule:
    """ImageNet ResNets: stages layer1 to layer4; branches in the network's own blocks."""
    taps = ("layer1", "layer2", "layer3", "layer4")
    stages = [list(network.get_submodule(name).children()) for name in taps]
    width = stages[-1][-1].conv2.out_channels
    block = type(stages[0][0])

    def stage(number: int) -> nn.Sequential:
        place = min(number, 4)
        planes = width >> (4 - place)
        inside = planes * block.expansion if number > 4 else planes * block.expansion // 2
        first = _torchvision_block(block, inside, planes, 1 if number > 4 else 2)
        rest = (block(planes * block.expansion, planes) for _ in stages[place - 1][1:])
        return nn.Sequential(first, *rest)

    return BranchRule(taps=taps, head="fc", width=width * block.expansion, stage=stage)


def _torchvision_block(
    block: Callable[..., nn.Module], inside: int, planes: int, stride: int
) -> nn.Module:
    if stride == 1:
        return block(inside, planes)
    shortcut = nn.Sequential(
        nn.Conv2d(inside, 2 * inside, 1, stride, bias=False), nn.BatchNorm2d(2 * inside)
    )
    return block(inside, planes, stride, shortcut)


def turned_rows(images: Tensor) -> Tensor:
    """[B, 3, S, S] to [4 B, 3, S, S]: row 4 n + r is image n turned by 90 r degrees, counter-
    clockwise, in channels_last."""
    turns = [torch.rot90(images, r, (2, 3)) for r in range(ROTATIONS)]
    rows = torch.stack(turns, dim=1).flatten(0, 1)
    return rows.contiguous(memory_format=torch.channels_last)
