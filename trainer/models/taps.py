"""Listening to modules of a network while it runs, without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

INPUT, OUTPUT = "input", "output"
# (name of the module, the module, INPUT or OUTPUT, the value); returns nothing.
Visit = Callable[[str, nn.Module, str, Tensor], None]


@dataclass(frozen=True)
class Tap:
    """One value taken from a running network.

    Attributes:
        output: name it is handed on under.
        module: whose input or output it is; where a module runs several times, its last time.
        side: INPUT or OUTPUT.
        reduce: makes it a float32 tensor of its own, at once: the value may be overwritten by an
            in-place operation right after.
    """

    output: str
    module: str
    side: str
    reduce: Callable[[Tensor], Tensor]


class Listener:
    """Taps on a network, for as long as it isn't closed.

    Attributes:
        found: what the taps took, by their outputs' names; None: they do nothing.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        self.found: dict[str, Tensor] | None = None
        modules = dict(model.named_modules())
        self._handles = [self._attach(modules[tap.module], tap) for tap in taps]

    def close(self) -> None:
        """Take the hooks off; the network is as before."""
        for handle in self._handles:
            handle.remove()

    def _attach(self, module: nn.Module, tap: Tap) -> RemovableHandle:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self.found is not None:
                self.found[tap.output] = tap.reduce(args[0])

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.found is not None:
                self.found[tap.output] = tap.reduce(output)

        if tap.side == INPUT:
            return module.register_forward_pre_hook(before)
        return module.register_forward_hook(after)


def bare(model: nn.Module) -> nn.Module:
    """The network inside a torch.compile wrapper, or the network itself."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


@contextmanager
def visiting(model: nn.Module, visit: Visit) -> Iterator[None]:
    """Call `visit` for the first input and the output of every module that runs, in order."""
    handles: list[RemovableHandle] = []

    def watch(name: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                visit(name, module, INPUT, args[0])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                visit(name, module, OUTPUT, output)

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    for name, module in model.named_modules():
        watch(name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
