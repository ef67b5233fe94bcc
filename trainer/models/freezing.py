"""Learning a new head on a network that stays as it is."""

from __future__ import annotations

from torch import nn

from storage.errors import UsageError
from trainer.models.feature_tap import find_head, noise_batch


def freeze_body(network: nn.Module, input_size: int) -> None:
    """Let the linear layer that gives the logits learn, and nothing else.

    All other modules stay in eval mode while the network trains: batch norms keep their
    statistics, dropout does nothing.

    Raises:
        UsageError: no linear layer gives the network's logits.
    """
    was_training = network.training
    head = find_head(network.eval(), noise_batch(input_size, next(network.parameters()).device))
    network.train(was_training)
    if head is None:
        raise UsageError(
            "loop.freeze keeps all but the head, and none of the network's linear layers gives its "
            "logits: take a student that ends in a linear layer"
        )
    network.requires_grad_(False)
    head.linear.requires_grad_(True)
    body = [part for part in network.modules() if part not in (network, head.linear)]

    def rest(_network: nn.Module, _inputs: object) -> None:
        for part in body:
            part.training = False

    network.register_forward_pre_hook(rest)
